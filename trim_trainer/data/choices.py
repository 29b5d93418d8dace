"""What a multiple-choice example has to be: a prompt, choices that can follow it, and the index of the right one."""

import logging
from collections.abc import Iterable
from typing import Any

from .contents import is_same, plain, plain_rows

logger = logging.getLogger(__name__)


class CalibrationError(ValueError):
    """The calibration set cannot be used; the message says which example or setting is wrong."""


def has_choices(example: dict) -> bool:
    """Whether a row is multiple choice: it has a prompt and `choices` behind it. Else `answer` is a column like others."""
    return "input_ids" not in example and "prompt" in example and example.get("choices") is not None


def right_choice(example: dict) -> Any:
    """The completion that `answer` names; None: it names none."""
    choices, answer = plain(example["choices"]), plain(example.get("answer"))
    return choices[answer] if isinstance(choices, list) and _is_index(answer, choices) else None


def _is_index(answer: Any, choices: list) -> bool:
    return type(answer) is int and 0 <= answer < len(choices)


def check_choices(dataset: Iterable[dict], name: str) -> None:
    """Check that each multiple-choice example has exactly one right answer among its choices.

    Args:
        dataset: Rows in any format; all of them are read.
        name: What the data set is called where it was passed.

    Raises:
        CalibrationError: names the data set, the row, the value and the rule.
    """
    columns = getattr(dataset, "column_names", None)
    if columns is not None and "choices" not in columns:
        return
    number = num_offered = 0
    for number, example in enumerate(plain_rows(dataset), start=1):
        if has_choices(example):
            num_offered += 1
            _check_example(example, f"Row {number - 1} of {name}: ")
    if 0 < num_offered < number:
        logger.warning(
            "Only %d of the %d rows of %s have `choices`: no accuracy over them.", num_offered, number, name
        )


def _check_example(example: dict, where: str) -> None:
    choices, answer = plain(example["choices"]), plain(example.get("answer"))
    is_chat = not isinstance(example["prompt"], str)
    if not isinstance(choices, list) or len(choices) < 2:
        kind = f"a {type(choices).__name__}" if not isinstance(choices, list) else f"a list of {len(choices)}"
        raise CalibrationError(
            f"{where}`choices` is {_shown(choices)}, {kind}, expected a list of at least two completions of the prompt. "
            "A recipe maps other columns with `doc_to_choice`; a row without choices leaves `choices` out, or None."
        )
    for number, choice in enumerate(choices):
        if not (_is_messages(choice) if is_chat else isinstance(choice, str)):
            expected = "a list of messages" if is_chat else "a text"
            raise CalibrationError(
                f"{where}`choices[{number}]` is {_shown(choice)}, expected {expected}, as the `prompt` is one."
            )
    if not _is_index(answer, choices):
        raise CalibrationError(
            f"{where}`answer` is {_shown(answer)}, expected the index of the right choice, from 0 to {len(choices) - 1}. "
            "A recipe maps other columns with `doc_to_target`; a row without choices leaves `choices` out, or None."
        )
    _check_right_one(example, choices, answer, where)


def _check_right_one(example: dict, choices: list, answer: int, where: str) -> None:
    right = choices[answer]
    if any(is_same(choice, right) for number, choice in enumerate(choices) if number != answer):
        raise CalibrationError(f"{where}the right answer {_shown(right)} stands in `choices` more than once.")
    completion = example.get("completion")
    if completion is not None and not is_same(completion, right):
        raise CalibrationError(
            f"{where}`completion` is {_shown(completion)}, but `choices[{answer}]` is {_shown(right)}. "
            "Training and calibration would disagree about the right answer."
        )


def _is_messages(value: Any) -> bool:
    is_list = isinstance(value, list) and len(value) > 0
    return is_list and all(isinstance(message, dict) and "role" in message for message in value)


def _shown(value: Any) -> str:
    """A value for a message, not at any length."""
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:200]}…"
