"""Columns of published data sets become prompts and choices, as the recipes say."""

from pathlib import Path

import pytest
from datasets import Dataset, Features, IterableDataset, List
from published import CASE_HOLD, MEDMCQA, PHRASEBANK, TEXT, Published

from trim_trainer.data.columns import ColumnError, Columns
from trim_trainer.evaluation.tasks import read_task
from trim_trainer.recipe import parse_recipe

RECIPES = Path(__file__).parents[2] / "recipes"

ARC = Published(
    {
        "id": "Mercury_417466", "question": "Which of these is a gas?",
        "choices": {"text": ["It's ice", "steam"], "label": ["A", "B"]}, "answerKey": "B",
    },
    Features({"id": TEXT, "question": TEXT, "choices": {"text": List(TEXT), "label": List(TEXT)}, "answerKey": TEXT}),
)  # fmt: skip


def converted(columns, published):
    return Columns.apply(columns, Dataset.from_list([published.row], features=published.features), "test")[0]


def columns_of(name):
    return parse_recipe(["--config", str(RECIPES / name)]).script_args.columns


@pytest.mark.parametrize("size", ["", "-8b"])
def test_medmcqa(size):
    assert converted(columns_of(f"medical{size}.yaml"), MEDMCQA) == {
        "prompt": "Question: Which vitamin is supplied from only animal source:\nAnswer:",
        "completion": " Vitamin B12",
        "choices": [" Vitamin C", " Vitamin B7", " Vitamin B12", " Vitamin D"],
        "answer": 2,
    }


@pytest.mark.parametrize("size", ["", "-8b"])
def test_case_hold(size):
    found = converted(columns_of(f"legal{size}.yaml"), CASE_HOLD)
    assert found["prompt"].startswith("The court agreed. See Roe, 1 U.S. at 2 (<HOLDING>).\n")
    assert (found["completion"], found["answer"]) == (" holding 3", 3)
    assert found["choices"] == [f" holding {k}" for k in range(5)]


@pytest.mark.parametrize("size", ["", "-8b"])
def test_financial_phrasebank(size):
    found = converted(columns_of(f"finance{size}.yaml"), PHRASEBANK)
    assert found["prompt"] == "Sentence: Operating profit rose to EUR 13.1 mn .\nSentiment for an investor:"
    assert (found["completion"], found["answer"]) == (" positive", 2)
    assert found["choices"] == [" negative", " neutral", " positive"]


def test_arc():
    found = converted(read_task(RECIPES / "tasks" / "arc_easy.yaml").script.columns, ARC)
    assert found["choices"] == [" It's ice", " steam"]
    assert (found["completion"], found["answer"]) == (" steam", 1)


ROWS = Dataset.from_list([{"question": "Two?", "options": ["one", "two"], "right": "two", "hidden": -1}])


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (
            Columns("{{query}}", "options", "right"),
            r"`doc_to_text` '\{\{query\}\}' of row 0 of 'train'.*Columns: question",
        ),
        (Columns("question", "choices", "right"), "`doc_to_choice` 'choices' of row 0"),
        (Columns("question", "question", "right"), "expected a list of choices"),
        (Columns("question", "options", "hidden"), "gives -1, expected an index from 0 to 1.*splits.*without answers"),
        (
            Columns("question", ("a", "b"), "right"),
            r"gives 'two', expected an index from 0 to 1 or one of \['a', 'b'\]",
        ),
        (Columns("{{question", "options", "right"), "is no Jinja template"),
    ],
)
def test_what_does_not_fit_is_said(columns, message):
    with pytest.raises(ColumnError, match=message):
        columns.apply(ROWS, "train")


def test_a_target_may_be_the_text_of_a_choice():
    example = Columns("{{question}} Answer:", "options", "right", delimiter="\n").apply(ROWS, "train")[0]
    assert example == {"prompt": "Two? Answer:", "completion": "\ntwo", "choices": ["\none", "\ntwo"], "answer": 1}


def test_half_a_mapping_is_refused():
    options = ["--output_dir", "out", "--doc_to_text", "question"]
    with pytest.raises(ValueError, match="`doc_to_choice` and `doc_to_target` must be set too"):
        parse_recipe(options).script_args.columns  # noqa: B018


NUMBERS = Dataset.from_list(
    [{"question": "?", "options": ["1", "2", "3"], "label": "C", "labels": ["A", "B", "C"], "right": "2"}]
)


def test_a_column_is_known_by_its_name_also_where_that_is_no_word():
    rows = [{"Question text": "Two?", "all-choices": ["1", "2"], "the answer": "2"}]
    columns = Columns("Question text", "all-choices", "the answer")
    for dataset in (Dataset.from_list(rows), IterableDataset.from_generator(lambda: iter(rows))):
        found = next(iter(columns.apply(dataset, "train")))
        assert found == {"prompt": "Two?", "completion": " 2", "choices": [" 1", " 2"], "answer": 1}


def test_digits_of_a_template_are_an_index_and_those_of_a_column_a_choice():
    """As in lm-evaluation-harness."""
    by_index = Columns("question", "options", "{{labels.index(label)}}").apply(NUMBERS, "train")[0]
    assert (by_index["answer"], by_index["completion"]) == (2, " 3")
    by_text = Columns("question", "options", "right").apply(NUMBERS, "train")[0]
    assert (by_text["answer"], by_text["completion"]) == (1, " 2")
    years = Dataset.from_list([{"question": "?", "year": "2020"}])
    with pytest.raises(
        ColumnError, match="gives 2020, .*Digits that a template gives are an index; name the column alone"
    ):
        Columns("question", ("2019", "2020"), "{{year}}").apply(years, "train")
    with pytest.raises(ColumnError, match="gives 3, expected an index from 0 to 2"):
        Columns("question", "options", "{{options[-1]}}").apply(NUMBERS, "train")
