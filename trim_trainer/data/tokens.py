"""Rows in any of TRL's text formats become scored examples: what is scored is what trains, token for token."""

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

from datasets import Dataset, IterableDataset
from trl.data_utils import common_prefix_length

from .choices import CalibrationError, has_choices
from .contents import column_names
from .examples import IGNORED, ScoredExample
from .preparation import ProcessingClass, TextSettings, WithoutTrainer, prepare, prepare_alone, read_rows

logger = logging.getLogger(__name__)

# Rows -> what SFTTrainer makes of each; None: no token is left that counts.
Prepare = Callable[[list[dict[str, Any]]], list[dict[str, Any] | None]]
IMAGES = ("image", "images")  # columns of TRL's formats that are no text
FORMATS = ("prompt", "messages", "conversations", "input_ids")  # columns of TRL's formats, beside the text's own


def tokenize_examples(dataset: Iterable[dict], tokenizer: ProcessingClass, **settings) -> list[ScoredExample]:
    """Turn examples in any of TRL's text formats into token ids, as SFTTrainer does for training.

    Args:
        dataset: Examples with `prompt` and `completion` (and `choices`, `answer`), `messages`, `text` or `input_ids`.
        tokenizer: The model's tokenizer or processor.
        settings: Fields of `TextSettings`; by default texts are not cut.

    Raises:
        CalibrationError: an example is in no known format, or none has a token to score.
    """
    texts = TextSettings(**settings)
    rows = read_rows(dataset)
    for row in rows:
        check_format(row, texts.dataset_text_field)
    return score_rows(rows, partial(prepare_alone, processing_class=tokenizer, settings=texts), texts.max_length)


def score_rows(rows: list[dict[str, Any]], prepare: Prepare, max_length: int | None = None) -> list[ScoredExample]:
    """Make a scored example of each row that keeps tokens that count; of multiple choice, all choices have to.

    Each choice is prepared as the training example in which it is the completion.

    Args:
        rows: Examples in TRL's formats.
        prepare: SFTTrainer's preparation.
        max_length: Behind which it cuts, tokens.

    Raises:
        CalibrationError: an example cannot be scored, or none has a token to score.
    """
    if not rows:
        raise CalibrationError("The data set is empty, expected at least one example to score.")
    for row in rows:
        _check_text_only(row)
    offered = [_by_choice(row) for row in rows]
    prepared = iter(prepare([row for variants in offered for row in variants]))
    examples = []
    for row, variants in zip(rows, offered, strict=True):
        texts = [_Text.of(next(prepared), max_length) for _ in variants]
        if all(texts):
            examples.append(_plain(texts[0]) if not has_choices(row) else _with_choices(texts, row))
    if len(examples) < len(rows):
        _say_skipped(len(rows) - len(examples), len(rows), max_length)
    return examples


def all_texts(
    rows: list[dict[str, Any]],
    processing_class: ProcessingClass,
    settings: TextSettings,
    formatting_func: Callable[[dict], str] | None = None,
    has_every_choice: bool = False,
) -> list[list[int]]:
    """Token ids of every text as SFTTrainer prepares it.

    Args:
        rows: Examples in TRL's formats.
        processing_class: Of the model.
        settings: How texts are prepared.
        formatting_func: As for SFTTrainer.
        has_every_choice: Whether multiple choice gives a text for each choice. Else one for the right choice, and one for
            each other choice where it comes up first.

    Raises:
        CalibrationError: there is none, or one is in no known format.
    """
    if not rows:
        raise CalibrationError("The data set is empty, expected at least one text.")
    if formatting_func is None:
        for row in rows:
            check_format(row, settings.dataset_text_field)
    variants, seen = [], set()
    for row in rows:
        right = row.get("answer", 0) if has_choices(row) else 0
        for number, variant in enumerate(_by_choice(row)):
            if number == right or has_every_choice or str(variant["completion"]) not in seen:
                variants.append(variant)
                seen.add(str(variant.get("completion")))
    stand_in = WithoutTrainer(processing_class, settings, rows[0])
    prepared = prepare(stand_in, variants, stand_in.processing_class, settings, formatting_func)
    return [[] if row is None else list(map(int, row["input_ids"])) for row in prepared]


def _say_skipped(num_skipped: int, num_rows: int, max_length: int | None) -> None:
    cut = "" if max_length is None else f" within `max_length` {max_length}"
    if num_skipped == num_rows:
        way_out = (
            "Give each more than one token, and a completion."
            if max_length is None
            else "Raise `max_length`, set it to None, or keep the ends of texts with `truncation_mode='keep_end'`."
        )
        raise CalibrationError(f"None of the {num_rows} examples has a token to score{cut}. {way_out}")
    logger.warning(
        "%d of %d examples have no token to score%s: they score nothing, as they train nothing.",
        num_skipped,
        num_rows,
        cut,
    )


def image_column(row: dict[str, Any]) -> str | None:
    """The column in which a row has images; None: it has none."""
    return next((column for column in IMAGES if row.get(column) is not None and row[column] != []), None)


def may_have_images(dataset: Dataset | IterableDataset) -> bool:
    """Whether a data set has a column of images, in whichever of its rows; it is not read to its end."""
    return not set(IMAGES).isdisjoint(column_names(dataset))


def _check_text_only(row: dict[str, Any]) -> None:
    column = image_column(row)
    if column is not None:
        raise CalibrationError(
            f"An example has something in `{column}`, which training sees, but layers are scored on text alone. Pass a "
            "`calibration_dataset` of texts."
        )


def check_format(row: dict[str, Any], text_field: str) -> None:
    """Raise a CalibrationError for a row in none of TRL's formats, or with nothing to score."""
    if not any(column in row for column in (*FORMATS, text_field)):
        raise CalibrationError(
            f"An example has the columns {sorted(row)}, expected one of TRL's formats: `prompt` + `completion`, "
            f"`messages`, `{text_field}` or `input_ids`."
        )
    if "prompt" in row and "input_ids" not in row and row.get("completion") is None and not has_choices(row):
        raise CalibrationError("An example has a `prompt`, but neither `completion` nor `choices`: nothing to score.")


def _by_choice(row: dict[str, Any]) -> list[dict[str, Any]]:
    """The row once for each choice, as if that were the right one; the row itself where there are none."""
    if not has_choices(row):
        return [row]
    answer, right = int(row["answer"]) if "answer" in row else 0, row.get("completion")
    completions = [right if k == answer and right is not None else choice for k, choice in enumerate(row["choices"])]
    return [row | {"completion": completion, "answer": k} for k, completion in enumerate(completions)]


@dataclass(frozen=True)
class _Text:
    """A row as it trains, whose first token does not count: nothing predicts it."""

    ids: tuple[int, ...]
    labels: tuple[int, ...]
    start: int  # place of the first token of the completion, or of the first that counts
    is_cut: bool  # it is as long as it may be

    @classmethod
    def of(cls, row: dict[str, Any] | None, max_length: int | None) -> "_Text | None":
        """Read what SFTTrainer has made of a row; None: no token counts."""
        if row is None:
            return None
        ids = tuple(map(int, row["input_ids"]))
        given = row.get("labels")
        labels = ids if given is None else tuple(map(int, given))
        is_counted = [label != IGNORED for label in labels]
        if not any(is_counted[1:]):
            return None
        mask = row.get("completion_mask")  # there only where it does not decide on the labels
        start = next((place for place, bit in enumerate(is_counted if mask is None else mask) if bit), len(ids))
        return cls(ids, (IGNORED, *labels[1:]), start, max_length is not None and len(ids) >= max_length)


def _plain(text: _Text) -> ScoredExample:
    start = next(place for place, label in enumerate(text.labels) if label != IGNORED)
    return ScoredExample(text.ids[:start], (text.ids[start:],), (text.labels[start:],))


def _with_choices(texts: list[_Text], row: dict[str, Any]) -> ScoredExample:
    """One example of all choices: the prompt is what they share in front of the first completion."""
    if any(text.start == 0 and not text.is_cut for text in texts):
        raise CalibrationError(
            f"The `prompt` {row['prompt']!r} shares no token with prompt + completion, so nothing predicts the first "
            "token of a choice. Give each example a prompt."
        )
    shared = min(common_prefix_length(texts[0].ids, text.ids) for text in texts)
    start = min(shared, *(text.start for text in texts))
    before = texts[0].labels[:start]
    return ScoredExample(
        texts[0].ids[:start],
        tuple(text.ids[start:] for text in texts),
        tuple(text.labels[start:] for text in texts),
        int(row.get("answer", 0)),
        before if any(label != IGNORED for label in before) else (),
    )
