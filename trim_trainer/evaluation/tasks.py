"""What a model is evaluated on: the data of a recipe, as questions with choices or as running text."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from datasets import Dataset, IterableDataset
from transformers import PreTrainedTokenizerBase
from trl import TrlParser

from ..causes import tell
from ..checkpoints.loading import Source, find_file
from ..data.choices import check_choices
from ..data.examples import IGNORED, ScoredExample
from ..data.preparation import ProcessingClass, TextSettings, prepare_alone, read_rows
from ..data.sources import load_source
from ..data.tokens import check_format, tokenize_examples
from ..recipe import RecipeArguments, check_settings, load_split, make_parser, take
from ..records.files import RECIPE_NAME
from ..records.measurement import EVALUATION
from ..records.settings import changed_settings, read_settings, says_none
from ..training.hooks import options_of


@dataclass(frozen=True)
class Task:
    """An evaluation set with a name."""

    name: str
    script: RecipeArguments
    limit: int | None = None  # examples, or windows of running text; None: all
    texts: TextSettings = TextSettings()  # how they are prepared, as far as the YAML says it

    @property
    def settings(self) -> dict[str, Any]:
        """What it is, as plain values: results of tasks with other ones are not compared."""
        return {"limit": self.limit} | changed_settings(self.script) | asdict(self.texts)

    def subset(self) -> Dataset:
        """`limit` examples of the evaluation set, the same ones each time."""
        return take(self.load(), self.limit)

    def load(self) -> Dataset:
        """The whole evaluation set, with the columns of TRL's formats.

        Raises:
            ValueError: the data set has no such split, or its columns are not as the task says.
        """
        script = replace(self.script, max_eval_samples=None)
        return load_split(script, "dataset_test_split", script.dataset_test_split)

    def check(self) -> None:
        """Raise a ValueError if the evaluation set cannot be used, before a model is loaded for it."""
        dataset = self.load()
        if not isinstance(dataset, IterableDataset):  # rows of a stream are checked as they are drawn
            check_choices(dataset, repr(self.name))
            for row in dataset.select(range(min(1, len(dataset)))):
                check_format(row, self.texts.dataset_text_field)

    def examples(self, tokenizer: ProcessingClass, window: int = 512) -> list[ScoredExample]:
        """The evaluation set as tokens, `limit` of it, prepared as SFTTrainer prepares it.

        Running text is put together with a blank line between rows, and cut into windows that are scored one by one. The
        first tokens of a window have little before them, so perplexity is higher than with windows that overlap.

        Args:
            tokenizer: Of the model, or its processor.
            window: Tokens.
        """
        dataset, text = self.load(), self.texts.dataset_text_field
        if dataset.column_names != [text]:
            rows = read_rows(take(dataset, self.limit))
            check_choices(rows, repr(self.name))
            return tokenize_examples(rows, tokenizer, **asdict(self.texts))
        tokenizer = getattr(tokenizer, "tokenizer", tokenizer)
        ids = tokenizer("\n\n".join(row[text] for row in dataset if (row[text] or "").strip()))["input_ids"]
        windows = [ids[start : start + window] for start in range(0, len(ids), window)]
        rows = [{"input_ids": part} for part in windows[: self.limit] if len(part) > 1]
        return tokenize_examples(rows, tokenizer)

    def training_texts(self, tokenizer: ProcessingClass, limit: int) -> list[list[int]]:
        """Texts of the training split as tokens, `limit` of them, the same ones each time.

        Raises:
            ValueError: the data set has no such split.
        """
        script = replace(self.script, max_train_samples=None)
        rows = read_rows(take(load_split(script, "dataset_train_split", script.dataset_train_split), limit))
        return [list(row["input_ids"]) for row in prepare_alone(rows, tokenizer, self.texts) if row is not None]


def count_characters(examples: list[ScoredExample], tokenizer: PreTrainedTokenizerBase) -> int:
    """Characters that the scored tokens stand for, of the right choices, special tokens left out."""
    scored = ([*example.prompt_labels, *example.choice_labels[example.answer]] for example in examples)
    texts = tokenizer.batch_decode(
        [[label for label in labels if label != IGNORED] for labels in scored], skip_special_tokens=True
    )
    return sum(map(len, texts))


def find_task(source: Source, limit: int | None = None) -> Task | None:
    """The evaluation set of the run that left a checkpoint, by the recipe beside it; None: no recipe names its data.

    Raises:
        ValueError: the recipe cannot be read, or its data cannot be used from here.
    """
    found = find_file(source.path, RECIPE_NAME, source.revision)
    if found is None:
        return None
    task = replace(read_task(found, limit), name=EVALUATION)
    if task.script.dataset_name is None and not task.script.datasets:
        return None
    try:
        task.check()
    except (ValueError, OSError) as error:
        raise ValueError(
            f"The data of {RECIPE_NAME} beside {source.path!r} cannot be used: {tell(error)} Name another recipe with "
            "--task, or none with --task none."
        ) from error
    return task


def read_task(path: str | Path, limit: int | None = None) -> Task:
    """Read a recipe, or a YAML with the data of one alone; its test split is the evaluation set.

    Args:
        path: YAML; the name of the file is the name of the task.
        limit: Examples at most, drawn with seed 0; None: `max_eval_samples` of the YAML.

    Raises:
        FileNotFoundError: no such file.
        ValueError: unknown keys, or a value that breaks a rule.
    """
    path = Path(path)
    settings = read_settings(path)
    check_settings(path, settings, options_of(make_parser()))
    known = {field.name for field in fields(RecipeArguments)}
    parser = TrlParser(RecipeArguments, prog=str(path), usage="the data of a task")
    parser.set_defaults_with_config(**{key: value for key, value in settings.items() if key in known})
    (script,) = parser.parse_args_into_dataclasses([], look_for_args_file=False)
    texts = {name: None if says_none(value) else value for name, value in settings.items()}
    return Task(path.stem, script, limit or script.max_eval_samples, TextSettings.of(texts))


def read_tasks(paths: Iterable[str | Path], limit: int | None = None, reserved: Iterable[str] = ()) -> list[Task]:
    """Read several tasks, each with a name of its own: that of its file, with the folder's where others are called so.

    Args:
        paths: As for `read_task`.
        limit: As for `read_task`.
        reserved: Names that something else has.

    Raises:
        ValueError: two of them cannot be told apart, or see `read_task`.
    """
    tasks, taken = [(Path(path), read_task(path, limit)) for path in paths], set(reserved)
    counted = Counter(task.name for _, task in tasks)
    named = []
    for path, task in tasks:
        is_alone = counted[task.name] == 1 and task.name not in reserved
        name = task.name if is_alone else f"{path.resolve().parent.name}/{task.name}"
        if name in taken:
            raise ValueError(f"Two tasks are called {name!r}. Copy {str(path)!r} under another name, or name it once.")
        taken.add(name)
        named.append(replace(task, name=name))
    return named


def read_training(data: str) -> tuple[list[dict[str, Any]], TextSettings]:
    """Texts that a model will be trained on, and how they are prepared.

    Args:
        data: Hub id, folder, file or `pypi:` source in one of TRL's formats; or a recipe, whose data they are.

    Raises:
        ValueError: the data have no training split, or are a stream.
    """
    if not data.endswith((".yaml", ".yml")):
        splits = load_source(data)
        return read_rows(splits["train" if "train" in splits else next(iter(splits))]), TextSettings()
    task = read_task(data)
    dataset = load_split(task.script, "dataset_train_split", task.script.dataset_train_split)
    if isinstance(dataset, IterableDataset):
        raise ValueError(f"{data!r} streams its data, all of which have to be seen. Leave `dataset_streaming` out.")
    return read_rows(take(dataset, task.script.max_train_samples)), task.texts


def read_calibration(path: str | Path, split: str | None = None) -> tuple[Dataset, TextSettings]:
    """The data of a recipe on which its run scores layers, its calibration split, else its training split, and how they are prepared.

    Raises:
        ValueError: the recipe has no such split, or streams its data.
    """
    task = read_task(path)
    script = task.script
    if script.dataset_streaming or script.streaming:
        raise ValueError(f"{str(path)!r} streams its data, of which examples cannot be drawn. Leave `streaming` out.")
    name = "dataset_train_split" if script.dataset_calibration_split is None else "dataset_calibration_split"
    found = load_split(script, name, getattr(script, name)) if split is None else load_split(script, "split", split)
    return found, task.texts
