"""The columns of a published data set -> `prompt`, `completion`, `choices`, `answer`, in lm-evaluation-harness's words."""

import ast
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jinja2
from datasets import Dataset, IterableDataset

from .contents import column_names


class ColumnError(ValueError):
    """The columns of a data set are not as the recipe says; the message names field, value and columns."""


@dataclass(frozen=True)
class Columns:
    """How a row becomes an example; the same four lines describe the task to lm-evaluation-harness.

    Args:
        text: `doc_to_text`: a column, or a Jinja template over the columns, that gives the prompt.
        choice: `doc_to_choice`: a column that holds the choices, a list of Jinja templates, or a template that gives a
            list.
        target: `doc_to_target`: a column or a template that gives the index of the right choice, or its text. Digits that a
            template gives are an index.
        delimiter: `target_delimiter`: stands between prompt and choice.
    """

    text: str
    choice: str | tuple[str, ...]
    target: str
    delimiter: str = " "

    def apply(self, dataset: Dataset | IterableDataset, name: str) -> Dataset | IterableDataset:
        """Return the split `name` with the four columns of a multiple-choice example, and no other.

        Raises:
            ColumnError: a template or a column does not give what is expected, in the first row where that is so.
        """
        columns = column_names(dataset)
        text, target = _reader(self.text, columns), _reader(self.target, columns)
        choice = _choices_reader(self.choice, columns)
        is_filled_in = not _is_column(self.target, columns)

        def example(row: dict[str, Any], number: int) -> dict[str, Any]:
            where = f"of row {number} of {name!r}"
            prompt = _read(text, row, f"`doc_to_text` {self.text!r} {where}")
            offered = _read(choice, row, f"`doc_to_choice` {self.choice!r} {where}")
            right = _read(target, row, f"`doc_to_target` {self.target!r} {where}")
            if not isinstance(offered, (list, tuple)) or not offered:
                raise ColumnError(f"`doc_to_choice` {where} gives {offered!r}, expected a list of choices.")
            answer = _index(right, [str(each) for each in offered], where, is_filled_in)
            choices = [f"{self.delimiter}{each}" for each in offered]
            return {"prompt": str(prompt), "completion": choices[answer], "choices": choices, "answer": answer}

        return dataset.map(example, with_indices=True, remove_columns=columns)


def _index(right: Any, offered: list[str], where: str, is_filled_in: bool) -> int:
    """The index that a target names.

    As in lm-evaluation-harness, digits that a template gives are an index, also where a choice reads the same; what a column
    holds is looked up among the choices first.
    """
    hint = "Test splits of benchmarks often come without answers: name a split that has them."
    if isinstance(right, str):
        is_number = right.strip().lstrip("-").isdigit()
        if right.strip() in offered and not (is_filled_in and is_number):
            return offered.index(right.strip())
        if right.strip() in offered:
            hint = "Digits that a template gives are an index; name the column alone to look its text up among the choices."
        right = int(right) if is_number else right
    if isinstance(right, int) and 0 <= right < len(offered):
        return right
    raise ColumnError(
        f"`doc_to_target` {where} gives {right!r}, expected an index from 0 to {len(offered) - 1} or one of {offered}. "
        f"{hint}"
    )


def _read(reader: Callable[[dict], Any], row: dict[str, Any], what: str) -> Any:
    try:
        return reader(row)
    except (jinja2.UndefinedError, KeyError) as error:
        raise ColumnError(f"{what} cannot be filled in: {error}. Columns: {', '.join(row)}.") from error


def _is_column(source: str, columns: list[str]) -> bool:
    """Whether it names a column: a word that names none is a mistake rather than a text."""
    return source in columns or source.isidentifier()


def _reader(source: str, columns: list[str]) -> Callable[[dict], Any]:
    """A column by its name, else a template."""
    if _is_column(source, columns):
        return lambda row: row[source]
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True, autoescape=False)
    try:
        template = environment.from_string(source)
    except jinja2.TemplateSyntaxError as error:
        raise ColumnError(f"{source!r} is no Jinja template: {error}.") from error
    return lambda row: template.render(row)


def _choices_reader(source: str | tuple[str, ...], columns: list[str]) -> Callable[[dict], Any]:
    if not isinstance(source, str):  # templates, each of which is taken as it stands, even a single word
        readers = [_reader(each, []) if "{" in each else (lambda row, text=each: text) for each in source]
        return lambda row: [reader(row) for reader in readers]
    reader = _reader(source, columns)
    return reader if _is_column(source, columns) else lambda row: ast.literal_eval(reader(row))
