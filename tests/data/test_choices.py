"""A multiple-choice row is checked by the same rules wherever it is read, and other rows are left alone."""

import json

import numpy as np
import pytest
import torch
import yaml
from datasets import Dataset
from tiny import TRAINING, make_examples

from trim_trainer import TrimConfig, TrimTrainer, score_layers
from trim_trainer.cli.main import main
from trim_trainer.data.choices import CalibrationError, check_choices
from trim_trainer.data.tokens import tokenize_examples

COLOURS = [" red", " blue", " green"]


def message(text):
    return [{"role": "assistant", "content": text}]


def chat(**changes):
    row = {"prompt": [{"role": "user", "content": "Hi"}], "choices": [message("a"), message("b")], "answer": 1}
    return row | changes


# What is wrong with the last of three rows -> what is said of it. Columns have one type, as in a file.
WRONG = {
    "an index too large": ({"answer": 7}, "`answer` is 7, expected the index of the right choice, from 0 to 2"),
    "an index below 0": ({"answer": -1}, "`answer` is -1, expected the index"),
    "no answer": ({"answer": None}, "`answer` is None, expected the index"),
    "a text": ({"choices": "red or blue"}, "`choices` is 'red or blue', a str, expected a list"),
    "no choice": ({"choices": []}, "`choices` is [], a list of 0, expected a list of at least two"),
    "one choice": ({"choices": [" red"], "answer": 0}, "`choices` is [' red'], a list of 1, expected"),
    "a text twice": (
        {"choices": [" red", " red"], "answer": 0},
        "the right answer ' red' stands in `choices` more than",
    ),
    "a gap": (
        {"choices": [" red", None], "answer": 0},
        "`choices[1]` is None, expected a text, as the `prompt` is one",
    ),
}
# The same where every row is like it.
ALL_WRONG = {
    "answers that are texts": ({"answer": "red"}, "`answer` is 'red', expected the index"),
    "answers that are floats": ({"answer": 1.0}, "`answer` is 1.0, expected the index"),
    "answers that are truths": ({"answer": True}, "`answer` is True, expected the index"),
    "numbers": ({"choices": [1, 2, 3]}, "`choices[0]` is 1, expected a text"),
    "a table": ({"choices": {"text": COLOURS, "label": ["A", "B", "C"]}}, "a dict, expected a list of at least two"),
    "messages behind a text": ({"choices": [message("a"), message("b")]}, "expected a text, as the `prompt` is one"),
}


def wrong_rows(name):
    rows = [{key: row[key] for key in ("prompt", "choices", "answer")} for row in make_examples(3)]
    if name in ALL_WRONG:
        return [row | ALL_WRONG[name][0] for row in rows], f"Row 0 of {{}}: {ALL_WRONG[name][1]}"
    rows[2] |= WRONG[name][0]
    return rows, f"Row 2 of {{}}: {WRONG[name][1]}"


def expect(said, name, calls):
    with pytest.raises(CalibrationError) as error:
        calls()
    head, tail = said.split("{}")
    assert str(error.value).startswith(f"{head}{name}{tail[:2]}") and tail[2:] in str(error.value)


@pytest.mark.parametrize("name", [*WRONG, *ALL_WRONG])
def test_every_reader_refuses_the_same_rows(name, tiny_model, tokenizer, tmp_path, capsys):
    rows, said = wrong_rows(name)
    model = tiny_model()
    expect(said, "calibration", lambda: score_layers(model, tokenizer, rows))
    plain = Dataset.from_list([{"prompt": f"the {i}", "completion": " cat"} for i in range(80)])
    args = TrimConfig(output_dir=str(tmp_path / "run"), target_layers=3, **TRAINING)
    for place in ("train_dataset", "eval_dataset", "calibration_dataset"):
        sets = {"train_dataset": plain, place: rows}
        expect(said, place, lambda sets=sets: TrimTrainer(model, args, processing_class=tokenizer, **sets))
    sets = {"train_dataset": plain, "eval_dataset": {"a": plain.select([0]), "b": rows}}
    expect(said, "eval_dataset['b']", lambda: TrimTrainer(model, args, processing_class=tokenizer, **sets))

    data = tmp_path / "data.jsonl"
    if "a text" != name and "a gap" != name:  # of one type per column, else no file
        data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        data.write_text("".join(json.dumps(rows[2]) + "\n"))
        said = said.replace("Row 2", "Row 0")
    task = tmp_path / "task.yaml"
    task.write_text(yaml.safe_dump({"dataset_name": str(data), "dataset_test_split": "train"}))
    head, tail = said.split("{}")
    for arguments, source in (
        (["scan", "nowhere", "--data", str(data)], repr(str(data))),
        (["evaluate", "nowhere", "--task", str(task)], "'task'"),
    ):
        assert main(arguments) == 2
        printed = capsys.readouterr().err
        assert f"trim-trainer: {head}{source}{tail[:2]}" in printed and tail[2:] in printed


@pytest.mark.parametrize("answer", ["72", 3.5, 7, None, ["a"], True])
def test_an_answer_without_choices_is_a_column_like_others(answer, tiny_model, tokenizer, tmp_path, capsys):
    rows = [{"prompt": row["prompt"], "completion": row["completion"]} for row in make_examples(6)]
    beside = [row | {"answer": answer} for row in rows]
    check_choices(beside, "rows")
    expected = score_layers(tiny_model(), tokenizer, rows)
    assert score_layers(tiny_model(), tokenizer, beside) == expected
    with_gaps = [row | {"choices": None} for row in beside]
    assert score_layers(tiny_model(), tokenizer, with_gaps) == expected
    tiny_model().save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    Dataset.from_list(beside).to_json(tmp_path / "data.jsonl")
    assert main(["scan", str(tmp_path / "model"), "--data", str(tmp_path / "data.jsonl"), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["metric"] == "loss" and report["scores"] == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (chat(choices=["a", "b"]), "`choices[0]` is 'a', expected a list of messages"),
        (chat(choices=[message("a")[0], message("b")[0]]), "expected a list of messages, as the `prompt` is one"),
        (chat(choices=[message("a"), [{"role": "assistant", "content": "a", "name": None}]]), "more than once"),
        (chat(completion=message("a")), "`completion` is [{'role': 'assistant', 'content': 'a'}], but `choices[1]`"),
        (chat(answer=np.bool_(True)), "`answer` is True, expected the index"),
        (chat(answer=torch.tensor(1.0)), "`answer` is 1.0, expected the index"),
    ],
)
def test_chats_and_types_that_look_like_an_index(row, said):
    with pytest.raises(CalibrationError) as error:
        check_choices([chat(), row], "rows")
    assert str(error.value).startswith("Row 1 of rows: ") and said in str(error.value)


@pytest.mark.parametrize("name", [None, "numpy", "torch", "arrow", "pandas"])
def test_right_answers_are_right_in_every_format(name, tokenizer):
    check_choices([chat(), chat(answer=np.int64(0)), chat(answer=torch.tensor(1))], "rows")
    table = Dataset.from_list(make_examples(4)).with_format(name)
    check_choices(table, "rows")
    assert tokenize_examples(table, tokenizer) == tokenize_examples(make_examples(4), tokenizer)


def test_completions_of_none_and_fields_of_none_do_not_disagree():
    check_choices(
        [chat(completion=None), chat(completion=[{"role": "assistant", "content": "b", "name": None}])], "rows"
    )


@pytest.mark.parametrize("columns", [{"text": "a"}, {"messages": message("a")}, {"input_ids": [1, 2], "prompt": "a"}])
def test_choices_that_no_prompt_stands_before_are_a_column_like_others(columns, tokenizer):
    check_choices([columns | {"choices": {"label": ["A"]}, "answer": "A"}], "rows")


def test_rows_without_choices_among_others_are_said_once(caplog):
    rows = make_examples(3)
    rows[1] = {"prompt": "the", "completion": " cat", "choices": None, "answer": None}
    check_choices(rows, "rows")
    assert "Only 2 of the 3 rows of rows have `choices`: no accuracy over them." in caplog.text
