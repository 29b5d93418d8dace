"""Rows in any of TRL's formats become token ids and labels by SFTTrainer's own code, with a trainer or without one.

`SFTTrainer._prepare_dataset` is private to TRL; `tests/data/test_preparation.py` holds its signature and what it reads of
`self` and of the config in the installed version.
"""

import copy
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Protocol

from datasets import Dataset, IterableDataset
from datasets.iterable_dataset import ExamplesIterable
from transformers import AutoTokenizer, PreTrainedTokenizerBase, ProcessorMixin
from trl import SFTConfig, SFTTrainer
from trl.chat_template_utils import get_training_chat_template, has_generation_markers

ProcessingClass = PreTrainedTokenizerBase | ProcessorMixin
ROW = "__row__"  # column with the number of a row, by which it is found again; a formatting function does not see it


class Preparing(Protocol):
    """An SFTTrainer, or what stands in for one."""

    def _prepare_dataset(self, dataset, processing_class, args, packing, formatting_func, dataset_name) -> Any: ...


@dataclass(frozen=True)
class TextSettings:
    """What SFTTrainer's preparation asks of a config: names and meanings as in `SFTConfig`, and defaults but for one."""

    dataset_text_field: str = "text"
    max_length: int | None = None  # tokens; None: whole texts
    truncation_mode: str = "keep_start"
    completion_only_loss: bool | None = None
    assistant_only_loss: bool = False
    eos_token: str | None = None
    chat_template_path: str | None = None
    # What changes no text.
    dataset_num_proc: ClassVar[int | None] = None
    shuffle_dataset: ClassVar[bool] = False

    @classmethod
    def of(cls, args: SFTConfig | dict[str, Any]) -> "TextSettings":
        """Those of a config, or of a recipe's settings; what a recipe does not name is as above."""
        found = args if isinstance(args, dict) else vars(args)
        return cls(**{field.name: found[field.name] for field in fields(cls) if field.name in found})


class WithoutTrainer:
    """Stands in for an SFTTrainer where there is none: it has what `_prepare_dataset` reads of `self`.

    Args:
        processing_class: Of the model. A copy is changed as `eos_token` and `chat_template_path` say.
        settings: How texts are prepared.
        sample: A row: whether it has a completion decides on `completion_only_loss` where the settings do not.
    """

    _prepare_dataset = SFTTrainer._prepare_dataset

    def __init__(self, processing_class: ProcessingClass, settings: TextSettings, sample: dict[str, Any]):
        self.processing_class = processing_class = _configured(processing_class, settings)
        self._tokenizer = copy.copy(getattr(processing_class, "tokenizer", processing_class))
        if self._tokenizer.eos_token is None:  # nothing ends a text then
            self._tokenizer = _NoEos()
        is_marked = not settings.assistant_only_loss or has_generation_markers(processing_class.chat_template)
        self.chat_template = None if is_marked else get_training_chat_template(processing_class)
        has_completion = "prompt" in sample and "completion" in sample
        only = settings.completion_only_loss
        self.completion_only_loss = has_completion if only is None else only


@dataclass(frozen=True)
class _NoEos:
    eos_token: str = ""


def _configured(processing_class: ProcessingClass, settings: TextSettings) -> ProcessingClass:
    """The tokenizer or processor with the end of text and the chat template that a config names."""
    if settings.eos_token is None and settings.chat_template_path is None:
        return processing_class
    changed = copy.deepcopy(processing_class)
    if settings.eos_token is not None:
        getattr(changed, "tokenizer", changed).eos_token = settings.eos_token
    if settings.chat_template_path is not None:
        path = Path(settings.chat_template_path)
        is_template = path.is_file() and path.suffix in (".jinja", ".j2")
        changed.chat_template = (
            path.read_text(encoding="utf-8") if is_template else AutoTokenizer.from_pretrained(path).chat_template
        )
    return changed


def prepare_alone(
    rows: list[dict[str, Any]], processing_class: ProcessingClass, settings: TextSettings
) -> list[dict[str, Any] | None]:
    """Prepare rows as `prepare` does, without a trainer."""
    stand_in = WithoutTrainer(processing_class, settings, rows[0])
    return prepare(stand_in, rows, stand_in.processing_class, settings)


def prepare(
    trainer: Preparing,
    rows: list[dict[str, Any]],
    processing_class: ProcessingClass,
    args: SFTConfig | TextSettings,
    formatting_func: Callable[[dict], str] | None = None,
) -> list[dict[str, Any] | None]:
    """Prepare rows as SFTTrainer prepares its evaluation set: never packed, cut at `max_length`.

    They go through it as a stream, which hands each one on as it is: columns need not fit one Arrow type, and keys that a
    row does not have are not filled in.

    Returns:
        A row for each, with `input_ids` and `labels`; None: it keeps no token that counts within `max_length`.
    """
    formatting = None if formatting_func is None else _hiding_number(formatting_func)
    dataset = IterableDataset(ExamplesIterable(partial(_numbered, rows), {}))
    prepared = trainer._prepare_dataset(dataset, processing_class, args, False, formatting, "calibration")
    found = {row[ROW]: _with_cut_mask(row, args) for row in prepared}
    return [found.get(number) for number in range(len(rows))]


def _with_cut_mask(row: dict[str, Any], args: SFTConfig | TextSettings) -> dict[str, Any]:
    """Where the mask of the completion did not decide on the labels, TRL leaves it, and does not cut it."""
    if "completion_mask" not in row or args.max_length is None:
        return row
    kept = slice(args.max_length) if args.truncation_mode == "keep_start" else slice(-args.max_length, None)
    return row | {"completion_mask": row["completion_mask"][kept]}


def _numbered(rows: list[dict[str, Any]]) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, row in enumerate(rows):
        row = copy.deepcopy(row)  # TRL renames keys of messages in place
        if row.get("chat_template_kwargs", ...) is None:  # filled in by Arrow where a row has none
            del row["chat_template_kwargs"]
        yield number, row | {ROW: number}


def _hiding_number(formatting_func: Callable[[dict], str]) -> Callable[[dict], str]:
    return lambda row: formatting_func({name: value for name, value in row.items() if name != ROW})


def read_rows(dataset: Iterable[dict]) -> list[dict[str, Any]]:
    """The rows of a data set as training reads them, or as Python has them where their format is none that trains.

    Tensors stay tensors, as TRL's templates see them; numpy, Arrow and data frames hold no messages.
    """
    is_table = isinstance(dataset, Dataset) and dataset.format["type"] in ("numpy", "arrow", "pandas", "polars")
    if is_table or isinstance(dataset, IterableDataset):
        dataset = dataset.with_format(None)
    return [dict(row) for row in dataset]
