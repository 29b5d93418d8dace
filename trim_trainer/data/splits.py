"""Splits that share nothing: what makes two examples the same one, holding out, drawing, checking."""

import json
import random
from collections.abc import Iterable

from datasets import Dataset, IterableDataset


class CalibrationError(ValueError):
    """The calibration set cannot be used; the message says which example or setting is wrong."""


def example_key(example: dict) -> str:
    """What makes two examples the same one: prompt and completion, or the whole text; else all columns."""
    for columns in (("prompt", "completion"), ("messages",), ("text",), ("input_ids",)):
        if columns[0] in example:
            values = [example.get(column) for column in columns]
            if columns[0] == "prompt" and values[1] is None and "choices" in example:
                values[1] = example["choices"][example["answer"]]
            return json.dumps(values, sort_keys=True, default=str)
    return json.dumps(example, sort_keys=True, default=str)


def check_choices(dataset: Iterable[dict], name: str) -> None:
    """Check that each multiple-choice example has exactly one right answer among its choices.

    Raises:
        CalibrationError: names the data set, the row, the value and the rule.
    """
    for row, example in enumerate(dataset):
        if "choices" not in example:
            return
        choices, answer = example["choices"], example.get("answer")
        where = f"Row {row} of {name}: "
        if not isinstance(answer, int) or not 0 <= answer < len(choices):
            raise CalibrationError(
                f"{where}`answer` is {answer!r}, expected the index of the right choice, from 0 to {len(choices) - 1}."
            )
        if choices.count(choices[answer]) > 1:
            raise CalibrationError(f"{where}the right answer {choices[answer]!r} stands in `choices` more than once.")
        if example.get("completion", choices[answer]) != choices[answer]:
            raise CalibrationError(
                f"{where}`completion` is {example['completion']!r}, but `choices[{answer}]` is {choices[answer]!r}. "
                "Training and calibration would disagree about the right answer."
            )


def check_disjoint(calibration: Iterable[dict], evaluation_keys: set[str]) -> None:
    """Raise a CalibrationError if an example of the calibration set is in the evaluation set."""
    shared = sum(example_key(example) in evaluation_keys for example in calibration)
    if shared:
        raise CalibrationError(
            f"`calibration_dataset` shares {shared} example(s) with `eval_dataset`. Layers chosen on the evaluation set "
            "make its accuracy meaningless: pass another split, or leave `calibration_dataset` out to hold examples "
            "out of the training set."
        )


def hold_out(
    train_dataset: Dataset | IterableDataset, evaluation_keys: set[str], size: int, seed: int
) -> tuple[Dataset | IterableDataset, Dataset | list[dict]]:
    """Take `size` examples out of the training set.

    Every copy of a held-out example leaves the training set, and no example of the evaluation set is taken.

    Returns:
        The training set without them, and the calibration set.

    Raises:
        CalibrationError: fewer than `size + 1` examples could be used.
    """
    if isinstance(train_dataset, IterableDataset):
        held_out = list(train_dataset.take(size))
        check_disjoint(held_out, evaluation_keys)
        return train_dataset.skip(size), held_out
    keys = [example_key(example) for example in train_dataset]
    candidates = list({key: row for row, key in enumerate(keys) if key not in evaluation_keys}.values())
    if len(candidates) <= size:
        raise CalibrationError(
            f"`calibration_size` is {size}, but the training set has {len(candidates)} distinct examples that are not "
            "in the evaluation set, and at least one has to be left to train on. Lower `calibration_size` or pass "
            "`calibration_dataset`."
        )
    rows = sorted(random.Random(seed).sample(candidates, size))
    taken = {keys[row] for row in rows}
    rest = [row for row, key in enumerate(keys) if key not in taken]
    return train_dataset.select(rest), train_dataset.select(rows)


def draw_rows(dataset: Iterable[dict], size: int, seed: int) -> Iterable[dict]:
    """Return `size` rows, after a shuffle if the set is larger; of a stream or a list the first."""
    if isinstance(dataset, IterableDataset):
        return list(dataset.take(size))
    if len(dataset) <= size:
        return dataset
    if isinstance(dataset, Dataset):
        return dataset.shuffle(seed=seed).select(range(size))
    return list(dataset)[:size]
