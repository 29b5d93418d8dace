"""Two rows are equal when their contents are, whatever format, library or type of table holds them."""

import time
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from datasets import Dataset
from PIL import Image

from trim_trainer.data.contents import digest, plain, plain_rows

LONG = list(range(2000))
FORMATS = (None, "numpy", "torch", "arrow", "pandas")


def noon(hours):
    return datetime(2026, 1, 1, 12 + hours, tzinfo=timezone(timedelta(hours=hours)))


def image(colour, mode="RGB"):
    return Image.new(mode, (4, 4), colour)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (np.int64(3), 3),
        (np.float64(0.1), 0.1),
        (np.bool_(True), True),
        (np.str_("red"), "red"),
        (torch.tensor(3), 3),
        (torch.tensor(LONG), LONG),
        (np.array(LONG, dtype=np.int32), LONG),
        ([torch.tensor([1, 2]), torch.tensor([3])], [[1, 2], [3]]),
        (np.array(["red", "blue"], dtype=object), ["red", "blue"]),
        (pa.array([1, 2]), [1, 2]),
        (pd.Series([1, 2]), [1, 2]),
        ((1, (2, 3)), [1, [2, 3]]),
        ({"b": 1, "a": 2}, {"a": 2, "b": 1}),
        ({"role": "user", "name": None}, {"role": "user"}),
        ([{"call": {"x": 1, "y": None}}], [{"call": {"x": 1}}]),
        (float("nan"), np.float64("nan")),
        (b"\x00\xff", bytearray(b"\x00\xff")),
        (Decimal("1.50"), Decimal("1.5")),
        (noon(0), noon(2)),
        (pd.Timestamp("2026-01-01 12:00"), datetime(2026, 1, 1, 12)),
        (np.datetime64("2026-01-01T12:00:00", "ns"), datetime(2026, 1, 1, 12)),
        (image("red"), image("red").copy()),
        ({1, 2}, {2, 1}),
    ],
)
def test_equal_contents_are_equal(one, other):
    assert digest({"x": one}) == digest({"x": other})


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (torch.tensor(LONG), torch.tensor([*LONG[:1000], -1, *LONG[1001:]])),  # printed alike
        (np.arange(5000), np.where(np.arange(5000) == 2500, -1, np.arange(5000))),
        (np.float64(0.1), np.float64(0.1) + 1e-16),
        (1, "1"),
        (1, True),
        ([1, 2], [2, 1]),
        ([[1], [2, 3]], [[1, 2], [3]]),
        (b"ab", "ab"),
        ("nan", float("nan")),
        (None, "None"),
        (Decimal("1.5"), "1.5"),
        (datetime(2026, 1, 1, tzinfo=UTC), "2026-01-01T00:00:00+00:00"),
        (datetime(2026, 1, 1), datetime(2026, 1, 1).date()),
        (image("red"), image("blue")),
        (image("red"), image("red").resize((2, 8))),
        ([2**70] * 20, [2**70 + 1] * 20),
        ([None, 1], [1, None]),
    ],
)
def test_different_contents_are_different(one, other):
    assert digest({"x": one}) != digest({"x": other})


@pytest.mark.parametrize("name", FORMATS)
def test_rows_of_every_format_are_python(name):
    rows = [
        {"prompt": [{"role": "user", "content": str(i)}], "answer": i, "ids": [i, i + 1], "x": i / 3} for i in range(3)
    ]
    dataset = Dataset.from_list(rows).with_format(name)
    assert list(plain_rows(dataset)) == rows
    streamed = Dataset.from_list(rows).to_iterable_dataset().with_format(None if name == "pandas" else name)
    assert list(plain_rows(streamed)) == rows


def test_rows_of_a_list_are_python_and_keep_what_is_none():
    rows = [{"answer": torch.tensor(1), "choices": np.array(["a", "b"]), "messages": [{"role": "user", "name": None}]}]
    (row,) = plain_rows(rows)
    assert row == {"answer": 1, "choices": ["a", "b"], "messages": [{"role": "user", "name": None}]}
    assert type(row["answer"]) is int and type(row["choices"]) is list


def test_a_transform_stays():
    dataset = Dataset.from_list([{"x": 1}]).with_transform(
        lambda batch: {"y": [torch.tensor(2 * x) for x in batch["x"]]}
    )
    assert list(plain_rows(dataset)) == [{"y": 2}]
    assert plain(torch.tensor([1.5], dtype=torch.bfloat16)) == [1.5]


def test_a_hundred_thousand_rows_take_seconds():
    rows = [
        {"prompt": f"Question {i} " * 10, "completion": "red", "input_ids": LONG[: 128 + i % 7]} for i in range(1000)
    ]
    started = time.process_time()
    for row in rows:
        digest(row)
    assert time.process_time() - started < 0.3  # a hundred times as many in half a minute, on the slowest machine
