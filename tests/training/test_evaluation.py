"""Each evaluation set with choices has its accuracy wherever the Trainer and its callbacks look for metrics."""

import itertools
import json

import pytest
import torch
from datasets import Dataset, IterableDataset
from tiny import TRAINING, make_examples, make_model
from transformers import EarlyStoppingCallback, TrainerCallback
from trl import SFTConfig, SFTTrainer

from trim_trainer import TrimConfig, TrimHistory, TrimTrainer
from trim_trainer.data.choices import CalibrationError
from trim_trainer.data.splits import NUM_STREAM_ROWS

EVALUATING = {"eval_strategy": "steps", "eval_steps": 2, "max_steps": 4, "trim_steps": 1, "target_layers": 5}


def examples(number, first=300):
    return Dataset.from_list(make_examples(number, first))


def without_choices(dataset):
    return dataset.select_columns(["prompt", "completion"])


@torch.no_grad()
def plain_accuracy(trainer, dataset):
    """By one plain pass per choice: prompt, choice, end of text."""
    model, tokenizer, num_right = trainer.model.eval(), trainer.processing_class, 0
    for row in dataset:
        start, scores = len(tokenizer(row["prompt"])["input_ids"]), []
        for choice in row["choices"]:
            ids = torch.tensor([tokenizer(f"{row['prompt']}{choice}</s>")["input_ids"]])
            log_probs = model(input_ids=ids).logits[0].log_softmax(-1)
            scores.append(sum(log_probs[place - 1, ids[0, place]].item() for place in range(start, ids.shape[1])))
        num_right += scores.index(max(scores)) == row["answer"]
    return pytest.approx(num_right / len(dataset), abs=1e-6)


def endless(first=300):
    """A stream of multiple choice without an end, and the rows that were drawn of it."""
    drawn = []

    def generate():
        for number in itertools.count():
            drawn.append(number)
            yield make_examples(1, first + number % 500)[0]

    return IterableDataset.from_generator(generate), drawn


class Seen(TrainerCallback):
    """What callbacks are told of each evaluation."""

    def __init__(self):
        self.metrics = []

    def on_evaluate(self, args, state, control, metrics, **kwargs):
        self.metrics.append(dict(metrics))


def test_each_set_of_a_dict_has_its_accuracy_everywhere(make_trainer, tmp_path):
    sets = {"first": examples(20), "other": examples(30, 400), "plain": without_choices(examples(5, 500))}
    seen = Seen()
    trainer = make_trainer(eval_dataset=sets, callbacks=[seen], **EVALUATING)
    trainer.train()
    logged = list(trainer.state.log_history)
    for name in sets:
        entries = [entry for entry in logged if f"eval_{name}_loss" in entry]
        assert [entry["step"] for entry in entries] == [2, 4]
        told = [metrics for metrics in seen.metrics[:6] if f"eval_{name}_loss" in metrics]
        key = f"eval_{name}_accuracy"
        if name == "plain":
            assert not any(key in metrics for metrics in [*entries, *told])
            continue
        truth = plain_accuracy(trainer, sets[name])
        assert [entry[key] for entry in entries] == [metrics[key] for metrics in told]
        assert entries[-1][key] == trainer.evaluate()[key] == truth
        assert trainer.history.trimmed.quality[name].accuracy == truth
        assert trainer.history.untrimmed.quality[name].num_examples == len(sets[name])
    assert trainer.history.trimmed.quality["plain"].accuracy is None
    trainer.save_model()
    assert set(TrimHistory.load(tmp_path / "run").trimmed.quality) == set(sets)


def test_the_card_names_each_set(make_trainer, tmp_path):
    sets = {"first": examples(20), "other": examples(30, 400)}
    trainer = make_trainer(eval_dataset=sets, **EVALUATING)
    trainer.train()
    trainer.save_model()
    card = (tmp_path / "run" / "README.md").read_text()
    before, after = trainer.history.untrimmed.quality, trainer.history.trimmed.quality
    for name, number in (("first", 20), ("other", 30)):
        one, other = (f"{100 * each[name].accuracy:.1f} %" for each in (before, after))
        assert f"accuracy on `{name}` {one} before training → {other} with 5 layers (n = {number})" in card
        assert f"| accuracy on `{name}` (95 % interval, n = {number}) | {one} (" in card
        assert (
            f"| loss on `{name}` (nats per scored token) | {before[name].loss:.4f} | {after[name].loss:.4f} |" in card
        )


def test_one_set_has_its_accuracy_in_the_entry_of_its_loss(make_trainer):
    trainer = make_trainer(eval_dataset=examples(20), **EVALUATING)
    trainer.train()
    entries = [entry for entry in trainer.state.log_history if any(key.startswith("eval_") for key in entry)]
    assert len(entries) == 2 and all({"eval_loss", "eval_accuracy"} <= entry.keys() for entry in entries)
    assert entries[-1]["eval_accuracy"] == plain_accuracy(trainer, examples(20))


@pytest.mark.parametrize(
    "metric",
    [
        "eval_accuracy",
        pytest.param("accuracy", marks=pytest.mark.slow),
        pytest.param("eval_first_accuracy", marks=pytest.mark.slow),
    ],
)
def test_early_stopping_and_the_best_model_follow_an_accuracy(metric, make_trainer, tmp_path, caplog):
    sets = {"first": examples(20), "other": examples(20, 400)} if "first" in metric else examples(20)
    best = {"save_strategy": "steps", "save_steps": 2, "load_best_model_at_end": True, "metric_for_best_model": metric}
    trainer = make_trainer(
        eval_dataset=sets, callbacks=[EarlyStoppingCallback(2)], **(EVALUATING | best | {"learning_rate": 0.0, "max_steps": 16})
    )  # fmt: skip
    trainer.train()
    assert trainer.state.global_step == 6  # at 2, 4 and 6 it is the same
    name = "eval_first_accuracy" if "first" in metric else "eval_accuracy"
    state = json.loads((tmp_path / "run" / "checkpoint-6" / "trainer_state.json").read_text())
    truth = plain_accuracy(trainer, examples(20))
    assert state["best_metric"] == truth and state["best_global_step"] == 2
    assert [entry[name] for entry in state["log_history"] if name in entry] == [truth] * 3


def test_any_set_can_be_evaluated(make_trainer):
    trainer = make_trainer(target_layers=5)
    other, third = examples(15, 500), examples(9, 600)
    assert trainer.evaluate(other)["eval_accuracy"] == plain_accuracy(trainer, other)
    assert trainer.evaluate(other, metric_key_prefix="test")["test_accuracy"] == plain_accuracy(trainer, other)
    both = trainer.evaluate({"other": other.with_format("torch"), "third": third})
    assert both["eval_other_accuracy"] == plain_accuracy(trainer, other)
    assert both["eval_third_accuracy"] == plain_accuracy(trainer, third)
    assert trainer.evaluate(other.to_iterable_dataset())["eval_accuracy"] == plain_accuracy(trainer, other)
    assert trainer.evaluate(trainer.eval_dataset).keys() == trainer.evaluate().keys() > {"eval_accuracy", "eval_loss"}
    assert "eval_accuracy" not in trainer.evaluate(without_choices(other))
    bad = Dataset.from_list([row | {"answer": 7} for row in make_examples(3)])
    with pytest.raises(CalibrationError, match="Row 0 of eval_dataset: `answer` is 7"):
        trainer.evaluate(bad)


def test_a_set_put_in_place_of_the_first_has_no_accuracy_of_that(make_trainer, caplog):
    trainer = make_trainer(target_layers=5)
    trainer.eval_dataset = trainer.eval_dataset.select(range(3))
    assert "eval_accuracy" not in trainer.evaluate()
    assert "has tokens already: no accuracy over its `choices`" in caplog.text


def test_an_accuracy_of_the_users_own_stays(make_trainer):
    trainer = make_trainer(target_layers=5, compute_metrics=lambda prediction: {"accuracy": 0.125})
    assert trainer.evaluate()["eval_accuracy"] == 0.125
    assert "test_accuracy" in trainer.predict(trainer.eval_dataset).metrics


def test_predictions_have_no_accuracy_over_choices(make_trainer):
    trainer = make_trainer(target_layers=5)
    trainer.evaluate()
    assert not any("accuracy" in key and "token" not in key for key in trainer.predict(trainer.eval_dataset).metrics)


def test_without_a_target_the_metrics_are_those_of_sft_trainer(make_trainer):
    fields = {"eval_dataset": {"first": examples(6), "other": examples(6, 400)}}
    expected = make_trainer(SFTTrainer, SFTConfig, **fields).evaluate()
    assert make_trainer(**fields).evaluate().keys() == expected.keys()


@pytest.mark.parametrize("in_dict", [False, True])
def test_an_endless_evaluation_stream_is_not_read_to_its_end(in_dict, make_trainer, tmp_path, caplog):
    stream, drawn = endless()
    sets = {"stream": stream, "table": examples(8, 900)} if in_dict else stream
    trainer = make_trainer(eval_dataset=sets, target_layers=5, max_steps=2)
    trainer.train()
    trainer.save_model()
    assert len(drawn) < 3 * NUM_STREAM_ROWS
    name = "eval_dataset['stream']" if in_dict else "eval_dataset"
    assert f"`{name}` is a stream of more than {NUM_STREAM_ROWS} rows" in caplog.text
    assert set(trainer.history.trimmed.quality) == ({"table"} if in_dict else set())
    card = (tmp_path / "run" / "README.md").read_text()
    assert "was a stream: the calibration examples were compared with its first 1,000 rows only" in card


def test_a_calibration_set_in_the_first_rows_of_an_evaluation_stream_is_refused(make_trainer):
    stream, _ = endless(first=205)  # the calibration set is 200 to 211
    with pytest.raises(CalibrationError, match=r"shares 7 example\(s\) with `eval_dataset`"):
        make_trainer(eval_dataset=stream, target_layers=5)


def test_an_endless_stream_to_train_on_gives_what_is_held_out(make_trainer):
    train, drawn = endless(first=0)
    trainer = make_trainer(train_dataset=train, calibration=False, target_layers=5, max_steps=2, calibration_size=6)
    assert len(trainer.trimming.examples) == 6 and len(drawn) < 60
    trainer.train()
    assert trainer.history.depth == 5


def test_rows_to_calibrate_on_are_drawn_from_streams_and_iterators(sets, tokenizer, tmp_path):
    train, evaluation, _ = sets
    args = TrimConfig(str(tmp_path / "run"), target_layers=5, calibration_size=6, **TRAINING)

    def calibrated_on(rows):
        options = {"train_dataset": train, "eval_dataset": evaluation, "calibration_dataset": rows}
        return TrimTrainer(make_model(), args, processing_class=tokenizer, **options).trimming.examples

    stream, drawn = endless(first=200)
    expected = calibrated_on(make_examples(6, 200))
    assert calibrated_on(stream) == calibrated_on(iter(make_examples(9, 200))) == expected and len(drawn) < 20
    with pytest.raises(CalibrationError, match=r"shares 3 example\(s\) with `eval_dataset`"):
        calibrated_on(endless(first=97)[0])
    wrong = (row | {"answer": row["answer"] if number < 4 else 3} for number, row in enumerate(make_examples(9, 200)))
    with pytest.raises(CalibrationError, match="Row 4 of calibration_dataset: `answer` is 3"):
        calibrated_on(wrong)
    with pytest.raises(CalibrationError, match="`calibration_dataset` is empty"):
        calibrated_on(Dataset.from_list(make_examples(1)).to_iterable_dataset().skip(1))


@pytest.mark.parametrize("is_long", [False, True])
def test_a_finite_evaluation_stream_has_its_accuracy_in_every_evaluation(is_long, make_trainer, monkeypatch):
    if is_long:
        monkeypatch.setattr("trim_trainer.data.splits.NUM_STREAM_ROWS", 10)
    rows = examples(12)
    trainer = make_trainer(eval_dataset={"stream": rows.to_iterable_dataset()}, **EVALUATING)
    trainer.train()
    logged = [entry for entry in trainer.state.log_history if "eval_stream_loss" in entry]
    assert len(logged) == 2
    truth = plain_accuracy(trainer, rows)
    assert logged[-1]["eval_stream_accuracy"] == truth
    if is_long:  # nobody knows before it is read to its end
        assert trainer.history.trimmed.quality == {} and len(trainer.evaluation_sets.caveats) == 1
    else:
        assert trainer.history.trimmed.quality["stream"].accuracy == truth and not trainer.evaluation_sets.caveats


@pytest.mark.parametrize("name", ["torch", "numpy", "arrow", "pandas"])
def test_sets_in_any_format_are_scored_as_plain_ones(name, sets, tokenizer, tmp_path):
    def examples_of(*given):
        args = TrimConfig(str(tmp_path / "run"), target_layers=5, **TRAINING)
        names = ("train_dataset", "eval_dataset", "calibration_dataset")
        trainer = TrimTrainer(make_model(), args, processing_class=tokenizer, **dict(zip(names, given, strict=False)))
        return trainer.trimming.examples, trainer.evaluation_sets.examples

    train, evaluation, calibration = sets
    expected = examples_of(*sets)
    assert examples_of(train, evaluation, calibration.with_format(name)) == expected
    if name in ("torch", "numpy"):  # SFTTrainer reads no tables
        assert examples_of(train, evaluation.with_format(name), calibration) == expected
        assert examples_of(train.with_format(name), evaluation) == examples_of(train, evaluation)
