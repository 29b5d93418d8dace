"""No example stands in two sets, whatever format the rows are in, and no stream is read to its end."""

import itertools
import pickle

import numpy as np
import pytest
import torch
from datasets import Dataset, IterableDataset
from tiny import make_examples

from trim_trainer.data.choices import CalibrationError
from trim_trainer.data.contents import plain
from trim_trainer.data.splits import RowKey, check_disjoint, draw_rows, example_key, hold_out

FORMATS = (None, "numpy", "torch", "arrow", "pandas")
LONG = " ".join(f"w{i}" for i in range(1200))


def chat(number):
    """A chat of 2,400 words that begins and ends like all others."""
    content = f"{LONG} {number} {LONG}"
    return {"messages": [{"role": "user", "content": content}, {"role": "assistant", "content": LONG}]}


def endless(rows):
    """A stream without an end, which counts the rows that were drawn of it."""
    drawn = []

    def generate():
        for number in itertools.count():
            drawn.append(number)
            yield rows(number)

    return IterableDataset.from_generator(generate), drawn


def as_rows(dataset):
    return list(dataset.with_format(None))


@pytest.mark.parametrize("name", FORMATS)
def test_long_chats_that_begin_and_end_alike_are_different(name):
    dataset = Dataset.from_list([chat(number) for number in range(30)]).with_format(name)
    rest, held_out = hold_out(dataset, set(), size=8, seed=0)
    assert (len(rest), len(held_out)) == (22, 8)
    both = [row["messages"][0]["content"] for row in as_rows(rest) + list(held_out)]
    assert sorted(both) == sorted(chat(number)["messages"][0]["content"] for number in range(30))
    assert rest.format["type"] == dataset.format["type"]


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize(
    "row",
    [chat, lambda i: {"input_ids": [1] * 600 + [i] + [1] * 600}, lambda i: {"prompt": "Q", "completion": str(i)}],
)
def test_the_same_row_is_found_in_another_format(name, row):
    formatted = Dataset.from_list([row(number) for number in range(12)]).with_format(name)
    plain = {example_key(row(number)) for number in range(5, 20)}
    with pytest.raises(CalibrationError, match=r"shares 7 example\(s\) with `eval_dataset`"):
        check_disjoint(formatted, plain)
    _, held_out = hold_out(formatted, plain, size=4, seed=0)
    assert {example_key(each) for each in held_out} <= {example_key(row(number)) for number in range(5)}


def test_the_fields_that_a_table_fills_with_none_make_no_difference():
    plain = [{"role": "user", "content": "Hi"}]
    calls = [{"role": "assistant", "content": "", "tool_calls": [{"name": "f", "arguments": {"x": 1}}]}]
    table = Dataset.from_list([{"messages": plain + calls}, {"messages": plain}])
    assert table[0]["messages"][0] == plain[0] | {"tool_calls": None}
    assert example_key(table[0]) == example_key({"messages": plain + calls})
    assert example_key(table[1]) == example_key({"messages": plain})


TURNS = {"prompt": [{"role": "user", "content": "Hi"}], "completion": [{"role": "assistant", "content": "Ho"}]}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}


@pytest.mark.parametrize(
    ("one", "other", "is_same"),
    [
        (TURNS | {"tools": [TOOL]}, TURNS, False),
        (TURNS | {"tools": [TOOL]}, TURNS | {"tools": '[{"type": "function", "function": {"parameters": {"type": "object"}, "name": "f"}}]'}, True),
        (TURNS | {"tools": []}, TURNS | {"tools": None}, True),
        (TURNS | {"chat_template_kwargs": {"enable_thinking": True}}, TURNS | {"chat_template_kwargs": {"enable_thinking": False}}, False),
        (TURNS | {"chat_template_kwargs": {}}, TURNS, True),
        (TURNS | {"id": 1}, TURNS | {"id": 2}, True),  # goes into no text
        ({"text": "a", "tools": "x"}, {"text": "a"}, True),
        ({"messages": TURNS["prompt"], "tools": [TOOL]}, {"messages": TURNS["prompt"]}, False),
        ({"conversations": [{"from": "user", "value": "Hi"}]}, {"messages": TURNS["prompt"]}, True),
        ({"prompt": "a", "choices": ["b", "c"], "answer": np.int64(1)}, {"prompt": "a", "completion": "c"}, True),
        ({"prompt": "a", "completion": "c", "answer": "c"}, {"prompt": "a", "completion": "c", "answer": 7}, True),
        ({"prompt": "a", "choices": ["b", "c"], "answer": "c"}, {"prompt": "a", "completion": "c"}, False),  # no index
        ({"input_ids": torch.tensor([1, 2]), "text": "a"}, {"input_ids": [1, 2]}, True),
        ({"question": "a", "id": 1}, {"question": "a", "id": 2}, False),  # no known format: all columns
    ],
)  # fmt: skip
def test_what_makes_two_rows_the_same(one, other, is_same):
    assert (example_key(one) == example_key(other)) is is_same


def test_the_text_is_that_of_the_run():
    rows = [{"content": "a", "id": number} for number in range(3)]
    assert len(set(RowKey("content").of_all(rows))) == 1
    joined = RowKey(formatting_func=lambda row: f"{row['prompt']} {row['context']}")
    rows = [{"prompt": "a", "completion": "b", "context": str(number // 2)} for number in range(4)]
    assert len(set(joined.of_all(rows))) == 2


def test_a_stream_is_held_out_of_as_far_as_needed():
    stream, drawn = endless(lambda number: make_examples(1, number % 500)[0])
    rest, held_out = hold_out(stream, {example_key(make_examples(1, 2)[0])}, size=4, seed=0)
    assert held_out == [make_examples(1, number)[0] for number in (0, 1, 3, 4)]
    assert len(drawn) < 20
    keys = {example_key(row) for row in held_out}
    assert not keys & {example_key(row) for row in rest.take(1100)}  # they come again after 500 rows


@pytest.mark.parametrize("name", FORMATS[:3])
def test_a_formatted_stream_loses_the_held_out_rows(name):
    rows = [{"input_ids": [1, number], "text": str(number)} for number in range(9)]
    stream = Dataset.from_list(rows * 2).to_iterable_dataset().with_format(name)
    rest, held_out = hold_out(stream, set(), size=4, seed=0)
    assert held_out == rows[:4]
    assert [plain(row) for row in rest] == rows[4:] * 2
    pickle.dumps(rest)  # for the workers of a data loader


@pytest.mark.parametrize("num_rows", [3, 4])
def test_a_stream_of_too_few_rows_is_refused(num_rows):
    finite = Dataset.from_list(make_examples(num_rows) * 3).to_iterable_dataset()
    with pytest.raises(
        CalibrationError, match=f"first {3 * num_rows} rows of `train_dataset`.* have {num_rows} distinct"
    ):
        hold_out(finite, set(), size=4, seed=0)
    stream, _ = endless(lambda number: make_examples(num_rows)[number % num_rows])
    with pytest.raises(CalibrationError, match=f"`calibration_size` is 4.*have {num_rows} distinct"):
        hold_out(stream, set(), size=4, seed=0)


def test_a_stream_that_has_nothing_but_held_out_rows_left_is_refused():
    stream, _ = endless(lambda number: make_examples(1, number if number < 6 else 0)[0])
    rest, _ = hold_out(stream, set(), size=4, seed=0)
    rows = iter(rest)
    assert [next(rows), next(rows)] == make_examples(2, 4)
    with pytest.raises(CalibrationError, match="are all among the 4 that are held out"):
        next(rows)


def test_drawn_rows_are_python_whatever_they_are_drawn_from():
    rows = [{"prompt": str(number), "answer": number} for number in range(6)]
    table = Dataset.from_list(rows).with_format("torch")
    assert list(draw_rows(table, 6, seed=0)) == rows
    drawn = list(draw_rows(table, 3, seed=0))
    assert len(drawn) == 3 and all(row in rows for row in drawn)
    assert draw_rows(rows, 3, seed=0) == draw_rows(iter(rows), 3, seed=0) == rows[:3]
    stream, drawn = endless(lambda number: {"prompt": str(number)})
    assert draw_rows(stream, 2, seed=0) == [{"prompt": "0"}, {"prompt": "1"}] and len(drawn) < 10
