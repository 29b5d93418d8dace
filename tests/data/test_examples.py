import pytest
import torch
from datasets import Dataset
from tiny import make_examples
from trl import SFTConfig, SFTTrainer

from trim_trainer.data.examples import ScoredExample
from trim_trainer.data.metrics import choose_metric, measure
from trim_trainer.data.preparation import TextSettings
from trim_trainer.data.splits import CalibrationError, check_choices, check_disjoint, example_key, hold_out
from trim_trainer.data.tokens import all_texts, tokenize_examples

CHAT = (
    "{% for m in messages %}{{ 'Question : ' if m.role == 'user' else 'Answer : ' }}{{ m.content }} </s> {% endfor %}"
    "{% if add_generation_prompt %}Answer : {% endif %}"
)


def as_chat(example):
    def answer(text):
        return [{"role": "assistant", "content": text.strip()}]

    return {
        "prompt": [{"role": "user", "content": example["prompt"]}],
        "completion": answer(example["completion"]),
        "choices": [answer(choice) for choice in example["choices"]],
        "answer": example["answer"],
    }


FORMATS = {
    "prompt-completion": lambda example: example,
    "conversational": as_chat,
    "text": lambda example: {"text": example["prompt"] + example["completion"]},
    "messages": lambda example: {"messages": as_chat(example)["prompt"] + as_chat(example)["completion"]},
}


@pytest.mark.parametrize("name", FORMATS)
def test_tokens_are_those_that_sft_trainer_trains_on(name, tiny_model, tokenizer, tmp_path):
    tokenizer.chat_template = CHAT
    dataset = Dataset.from_list([FORMATS[name](example) for example in make_examples(6)])
    args = SFTConfig(output_dir=str(tmp_path), use_cpu=True, report_to="none")
    trainer = SFTTrainer(tiny_model(), args, train_dataset=dataset, processing_class=tokenizer)
    for example, row in zip(tokenize_examples(dataset, tokenizer), trainer.train_dataset, strict=True):
        assert list(example.prompt_ids + example.choice_ids[example.answer]) == row["input_ids"]
        scored = [label for label in row["labels"] if label != -100]
        # The first token of a plain text has nothing in front of it that could predict it.
        expected = scored if "prompt" in dataset.column_names else scored[1:]
        assert list(example.choice_labels[example.answer]) == expected


@pytest.mark.parametrize("answer", ["the cat", "0", 2, None])
@pytest.mark.parametrize("name", FORMATS)
def test_an_answer_that_is_a_column_like_others_hides_no_text(name, answer, tokenizer):
    tokenizer.chat_template = CHAT
    rows = [FORMATS[name](example) for example in make_examples(12)]
    rows = [{column: row[column] for column in row if column not in ("choices", "answer")} for row in rows]
    texts = all_texts(rows, tokenizer, TextSettings())
    assert len(texts) == len(rows)
    for more in ({"answer": answer}, {"answer": answer, "choices": ["a", "b"]}):
        if "choices" not in more or name in ("text", "messages"):
            for has_every_choice in (False, True):
                found = all_texts([row | more for row in rows], tokenizer, TextSettings(), None, has_every_choice)
                assert found == texts


def test_pretokenized_examples_keep_their_labels(tokenizer):
    rows = [{"input_ids": [4, 5, 6, 7], "labels": [-100, -100, 6, 7]}, {"input_ids": [4, 5, 6]}]
    first, second = tokenize_examples(rows, tokenizer)
    assert (first.prompt_ids, first.choice_ids) == ((4, 5), ((6, 7),))
    assert (second.prompt_ids, second.choice_ids) == ((4,), ((5, 6),))


def test_metrics_by_hand():
    examples = [
        ScoredExample((1,), ((1,), (2, 3)), ((1,), (2, 3)), answer=1),
        ScoredExample((1,), ((4,), (5,), (6,)), ((4,), (5,), (6,)), answer=0),
    ]
    log_probs = torch.tensor([[-3.0, -1.0, -2.0, -1.0, -4.0], [-3.0, -1.0, -1.0, -2.0, -4.0]])
    assert measure(log_probs, examples, "accuracy").tolist() == [0.5, 1.0]
    assert measure(log_probs, examples, "loss").tolist() == pytest.approx([3 / 3, 2 / 3])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"answer": 3}, "`answer` is 3, expected the index of the right choice, from 0 to 2"),
        ({"answer": None}, "`answer` is None"),
        ({"choices": [" red", " red", " red"], "completion": " red"}, "stands in `choices` more than once"),
        ({"completion": " pink"}, "`completion` is ' pink', but `choices"),
    ],
)
def test_choices_without_one_right_answer_are_refused(change, message):
    examples = make_examples(3)
    examples[2] |= change
    with pytest.raises(CalibrationError, match=message) as error:
        check_choices(examples, "train_dataset")
    assert "Row 2 of train_dataset" in str(error.value)


def test_overlap_with_the_evaluation_set_is_refused():
    keys = {example_key(example) for example in make_examples(10)}
    check_disjoint(make_examples(5, first=10), keys)
    with pytest.raises(CalibrationError, match=r"shares 2 example\(s\) with `eval_dataset`"):
        check_disjoint(make_examples(5, first=8), keys)


def test_held_out_examples_are_in_no_other_set():
    rows = make_examples(20)
    train = Dataset.from_list(rows + rows[:10])  # ten examples stand in the set twice
    evaluation = {example_key(example) for example in rows[15:]}
    rest, held_out = hold_out(train, evaluation, size=6, seed=0)
    held_out_keys = {example_key(example) for example in held_out}
    assert len(held_out_keys) == 6
    assert not held_out_keys & evaluation
    assert not held_out_keys & {example_key(example) for example in rest}


def test_a_stream_gives_its_first_examples():
    rest, held_out = hold_out(Dataset.from_list(make_examples(9)).to_iterable_dataset(), set(), size=4, seed=0)
    assert [*held_out, *rest] == make_examples(9)


def test_no_example_left_is_refused():
    train = Dataset.from_list(make_examples(20))
    with pytest.raises(CalibrationError, match="`calibration_size` is 20.*20 distinct examples"):
        hold_out(train, set(), size=20, seed=0)


def test_accuracy_needs_choices():
    plain = [ScoredExample((1,), ((2,),), ((2,),))]
    assert choose_metric(None, plain) == "loss"
    with pytest.raises(CalibrationError, match="needs the columns `choices` and `answer`"):
        choose_metric("accuracy", plain)


def test_an_unknown_format_is_refused(tokenizer):
    with pytest.raises(CalibrationError, match=r"columns \['question'\].*`prompt` \+ `completion`"):
        tokenize_examples([{"question": "?"}], tokenizer)


@pytest.mark.parametrize(
    ("example", "message"),
    [
        ({"prompt": "Question :"}, "neither `completion` nor `choices`"),
        ({"prompt": "", "completion": "red", "choices": ["red", "blue"], "answer": 0}, "shares no token"),
    ],
)
def test_an_example_that_cannot_be_scored_is_refused(example, message, tokenizer):
    with pytest.raises(CalibrationError, match=message):
        tokenize_examples([example], tokenizer)
