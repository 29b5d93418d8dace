"""Splits that share nothing: what makes two examples the same one, holding out, drawing, comparing."""

import json
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from dataclasses import dataclass
from itertools import islice
from typing import Any

from datasets import Dataset, IterableDataset
from trl import maybe_convert_to_chatml

from .choices import CalibrationError, check_choices, has_choices, right_choice
from .contents import digest, plain, plain_rows

__all__ = [
    "CalibrationError",
    "RowKey",
    "check_choices",
    "check_disjoint",
    "draw_rows",
    "example_key",
    "first_rows",
    "hold_out",
]

# What SFTTrainer makes the tokens of a row from, the first that it finds; and what goes in beside it, and into a chat.
_TEXTS = (("input_ids",), ("prompt", "completion"), ("messages",), ("text",))
_IMAGES, _TEMPLATE = ("images", "image"), ("tools", "chat_template_kwargs")
# Rows that are looked at of an evaluation set that is a stream: it may have no end.
NUM_STREAM_ROWS = 1000
# Rows of a stream in a row, beyond the held-out ones, that may all be copies of these before the stream counts as used up.
MAX_COPIES = 10_000


def example_key(example: dict, text_field: str = "text") -> str:
    """What makes two examples the same one: the contents that become their tokens; in no known format, all columns.

    Args:
        example: A row, in any format of `datasets`.
        text_field: Column of plain texts.
    """
    if "conversations" in example:
        example = maybe_convert_to_chatml(plain(example))
    if text_field != "text" and text_field in example:
        example = {**example, "text": example[text_field]}
    columns = next((columns for columns in _TEXTS if columns[0] in example), None)
    if columns is None:
        return digest(example)
    held = {column: example.get(column) for column in columns}
    if columns[0] == "prompt" and held["completion"] is None and has_choices(example):
        held["completion"] = right_choice(example)
    if columns[0] != "input_ids":
        is_chat = not isinstance(example[columns[0]], str)
        held |= {column: _given(example.get(column)) for column in (*_IMAGES, *(_TEMPLATE if is_chat else ()))}
    return digest(held)


def _given(value: Any) -> Any:
    """What a column says: an empty list says the same as none, and tools may be written as JSON, which SFTTrainer reads."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:  # no JSON: SFTTrainer will say so
            return value
    return None if isinstance(value, (list, tuple, Mapping)) and not value else value


@dataclass(frozen=True)
class RowKey:
    """`example_key` of the rows of a run.

    Args:
        text_field: `dataset_text_field`: column of plain texts.
        formatting_func: Of SFTTrainer: makes the text of a row that has no tokens yet.
    """

    text_field: str = "text"
    formatting_func: Callable[[dict], str] | None = None

    def __call__(self, row: dict) -> str:
        """The key of a row."""
        if self.formatting_func is not None and "input_ids" not in row:
            return example_key({"text": self.formatting_func(row)})
        return example_key(row, self.text_field)

    def of_all(self, dataset: Iterable[dict]) -> Iterator[str]:
        """The keys of all rows, in their order; a function of the user's gets rows as it gets them in training."""
        return map(self, plain_rows(dataset) if self.formatting_func is None else dataset)


def check_disjoint(calibration: Iterable[dict], evaluation_keys: Set[str], key: RowKey = RowKey()) -> None:
    """Raise a CalibrationError if an example of the calibration set is in the evaluation set."""
    shared = sum(each in evaluation_keys for each in key.of_all(calibration))
    if shared:
        raise CalibrationError(
            f"`calibration_dataset` shares {shared} example(s) with `eval_dataset`. Layers chosen on the evaluation set "
            "make its accuracy meaningless: pass another split, or leave `calibration_dataset` out to hold examples "
            "out of the training set."
        )


def hold_out(
    train_dataset: Dataset | IterableDataset,
    evaluation_keys: Set[str],
    size: int,
    seed: int,
    key: RowKey = RowKey(),
) -> tuple[Dataset | IterableDataset, Dataset | list[dict]]:
    """Take `size` examples out of the training set, of a stream the first.

    Every copy of a held-out example leaves the training set, and no example of the evaluation set is taken.

    Returns:
        The training set without them, and the calibration set.

    Raises:
        CalibrationError: fewer than `size + 1` examples could be used.
    """
    if isinstance(train_dataset, IterableDataset):
        return _hold_out_of_stream(train_dataset, evaluation_keys, size, key)
    keys = list(key.of_all(train_dataset))
    candidates = list({each: row for row, each in enumerate(keys) if each not in evaluation_keys}.values())
    if len(candidates) <= size:
        raise CalibrationError(
            f"`calibration_size` is {size}, but the training set has {len(candidates)} distinct examples that are not "
            "in the evaluation set, and at least one has to be left to train on. Lower `calibration_size` or pass "
            "`calibration_dataset`."
        )
    rows = sorted(random.Random(seed).sample(candidates, size))
    taken = {keys[row] for row in rows}
    rest = [row for row, each in enumerate(keys) if each not in taken]
    held_out = train_dataset.select(rows)
    return train_dataset.select(rest), draw_rows(held_out, size, seed) if key.formatting_func is None else held_out


def _hold_out_of_stream(
    stream: IterableDataset, evaluation_keys: Set[str], size: int, key: RowKey
) -> tuple[IterableDataset, list[dict]]:
    """The same of a stream, which is read as far as `size` rows that can be used."""
    held_out: dict[str, dict] = {}
    num_read = 0
    for row in islice(stream, size + MAX_COPIES):
        num_read, name = num_read + 1, key(row)
        if len(held_out) == size and name not in held_out:
            return stream.filter(_Without(frozenset(held_out), key)), [plain(each) for each in held_out.values()]
        if name not in evaluation_keys:
            held_out.setdefault(name, row)
    raise CalibrationError(
        f"`calibration_size` is {size}, but the first {num_read:,} rows of `train_dataset`, a stream, have {len(held_out)} "
        "distinct examples that are not in the evaluation set, and at least one has to be left to train on. Lower "
        "`calibration_size` or pass `calibration_dataset`."
    )


class _Without:
    """Whether a row of a stream is none of those that were held out, which may come again later on.

    Raises:
        CalibrationError: nothing but these comes any more, so training would wait for ever.
    """

    def __init__(self, held_out: Set[str], key: RowKey):
        self.held_out, self.key, self._num_in_a_row = held_out, key, 0

    def __call__(self, row: dict) -> bool:
        is_other = self.key(row) not in self.held_out
        self._num_in_a_row = 0 if is_other else self._num_in_a_row + 1
        if self._num_in_a_row > len(self.held_out) + MAX_COPIES:
            raise CalibrationError(
                f"The last {self._num_in_a_row:,} rows of `train_dataset`, a stream, are all among the "
                f"{len(self.held_out)} that are held out to calibrate on. Lower `calibration_size` or pass "
                "`calibration_dataset`."
            )
        return is_other


def first_rows(stream: IterableDataset) -> tuple[list[dict], bool]:
    """The first `NUM_STREAM_ROWS` rows of a stream as Python objects, and whether these are all."""
    rows = list(islice(plain_rows(stream), NUM_STREAM_ROWS + 1))
    return rows[:NUM_STREAM_ROWS], len(rows) <= NUM_STREAM_ROWS


def draw_rows(dataset: Iterable[dict], size: int, seed: int) -> Iterable[dict]:
    """Return `size` rows as Python objects, after a shuffle if the set is larger; of a stream or a list the first."""
    if isinstance(dataset, Dataset) and len(dataset) > size:
        dataset = dataset.shuffle(seed=seed).select(range(size))
    rows = plain_rows(dataset)
    return rows if isinstance(rows, Dataset) else list(islice(rows, size))
