"""A resumed run does what it is asked: what can be honoured is, the rest is refused with both values."""

import dataclasses
import json
import shutil

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from safetensors.torch import load_file
from tiny import TRAINING, TRIMMING, make_examples, make_model, make_tokenizer
from transformers import AutoModelForCausalLM, TrainerCallback
from trl import SFTConfig, SFTTrainer

from trim_trainer import TrimConfig, TrimHistory, TrimTrainer
from trim_trainer.architectures.modules import find_layers
from trim_trainer.checkpoints.whole import CheckpointError
from trim_trainer.recovery.distillation import TARGETS_NAME

# Drops after 4, 6 and 8 of 16 steps: checkpoint-6 has 4 layers of 6.
ASKED = {
    "target_layers": 3, "trim_steps": 2, "trim_delay": 4, "save_strategy": "steps", "save_steps": 2,
    "calibration_metric": "loss",
}  # fmt: skip
# The first checkpoint is the best one.
BEST = {
    "eval_strategy": "steps", "eval_steps": 2, "load_best_model_at_end": True, "metric_for_best_model": "num_tokens",
    "greater_is_better": False,
}  # fmt: skip
HELD_OUT = {"calibration_size": 12}
LORA = LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj", "v_proj"], lora_dropout=0.0)


def some(number, first):
    return Dataset.from_list(make_examples(number, first))


def make(folder, trainer_class=TrimTrainer, config_class=TrimConfig, model=None, **fields):
    options = {
        name: fields.pop(name) for name in ("calibration_dataset", "peft_config", "callbacks") if name in fields
    }
    if trainer_class is TrimTrainer and "calibration_size" not in fields:
        options = {"calibration_dataset": some(12, 200)} | options
    evaluation = fields.pop("eval_dataset", None) or some(24, 100)
    if config_class is TrimConfig:
        fields = TRIMMING | ASKED | fields
    return trainer_class(
        model or make_model(), config_class(output_dir=str(folder), **(TRAINING | fields)), train_dataset=some(64, 0),
        eval_dataset=evaluation, processing_class=make_tokenizer(), **options,
    )  # fmt: skip


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Folders of runs that have come to their end, by name."""
    settings = {
        "whole": {},
        "held out": HELD_OUT,
        "all parameters": {"sparse_update_ratio": None},
        "lora": {"peft_config": LORA},
        "floor": {"max_metric_drop": 0.0},
        "kept": {"save_depths": [5]},
        "best": BEST,
    }
    done = {}

    def run(name):
        if name not in done:
            done[name] = tmp_path_factory.mktemp(name.replace(" ", "-")) / "run"
            trainer = make(done[name], **settings[name])
            if name == "floor":  # as if four layers were too few
                trainer.trimming.floor.is_crossed = lambda metric: trainer.history.depth == 4
            trainer.train()
            trainer.save_model(str(done[name] / "final"))
        return done[name]

    return run


@pytest.fixture
def copied(runs, tmp_path):
    """Returns a function that copies such a folder, to go on in."""

    def copy(name="whole"):
        shutil.copytree(runs(name), tmp_path / "run")
        return tmp_path / "run"

    return copy


def resume(folder, step=6, **fields):
    trainer = make(folder, **fields)
    trainer.train(resume_from_checkpoint=str(folder / f"checkpoint-{step}"))
    assert trainer.history.depth == len(find_layers(trainer.causal_lm)) == trainer.causal_lm.config.num_hidden_layers
    return trainer


def steps(trainer):
    return steps_of(trainer.history)


def steps_of(history):
    return [(a_round.step, a_round.depth_after) for a_round in history.drops]


def assert_same_weights(trainer, folder):
    expected = load_file(folder / "final" / "model.safetensors")
    found = trainer.model.state_dict()
    assert expected.keys() <= found.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name


# What is honoured.


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"target_layers": 2}, [(4, 5), (6, 4), (8, 3), (10, 2)]),
        ({"target_layers": 4}, [(4, 5), (6, 4)]),
        pytest.param(
            {"target_layers": None, "target_ratio": 0.66}, [(4, 5), (6, 4), (8, 3), (10, 2)], marks=pytest.mark.slow
        ),
        pytest.param({"target_layers": 2, "layers_per_trim": 2}, [(4, 5), (6, 4), (8, 2)], marks=pytest.mark.slow),
        pytest.param(
            {"target_layers": 1, "trim_steps": None}, [(4, 5), (6, 4), (7, 3), (8, 2), (9, 1)], marks=pytest.mark.slow
        ),
        pytest.param({"trim_steps": 3}, [(4, 5), (6, 4), (9, 3)], marks=pytest.mark.slow),
        ({"trim_steps": None}, [(4, 5), (6, 4), (8, 3)]),
        pytest.param({"trim_delay": 12}, [(4, 5), (6, 4), (12, 3)], marks=pytest.mark.slow),
        ({"trim_strategy": "epoch", "trim_steps": None, "trim_delay": 0}, [(4, 5), (6, 4), (16, 3)]),
        pytest.param({"target_layers": 2, "max_steps": 10}, [(4, 5), (6, 4), (8, 3), (10, 2)], marks=pytest.mark.slow),
        ({"save_depths": [4]}, [(4, 5), (6, 4), (8, 3)]),
    ],
    ids=str,
)
def test_the_drops_that_are_left_are_those_that_are_asked_for_now(fields, expected, copied):
    folder = copied()
    trainer = resume(folder, **fields)
    assert steps(trainer) == expected
    assert trainer.history.target_layers == trainer.history.depth and trainer.history.stopped is None
    if "save_depths" in fields:
        assert AutoModelForCausalLM.from_pretrained(folder / "depth-4").config.num_hidden_layers == 4


@pytest.mark.slow
def test_a_run_that_was_planned_anew_keeps_its_new_plan(copied, tmp_path):
    folder = copied()
    asked = {"target_layers": 1, "trim_steps": None}
    once = resume(folder, **asked)
    once.save_model(str(tmp_path / "once" / "final"))
    again = resume(folder, step=8, **asked)
    assert steps(again) == steps(once)
    assert_same_weights(again, tmp_path / "once")


@pytest.mark.parametrize("has_record", [True, False])
def test_what_is_asked_for_again_is_done_again_bit_for_bit(has_record, copied):
    """Also from checkpoints of versions that recorded less."""
    folder = copied()
    if not has_record:
        for path in folder.rglob("trim_run.json"):
            path.unlink()
    trainer = resume(folder, 4)
    assert steps(trainer) == [(4, 5), (6, 4), (8, 3)]
    assert_same_weights(trainer, folder)


@pytest.mark.parametrize(
    "fields",
    [
        {"seed": 9},
        *(
            pytest.param(each, marks=pytest.mark.slow)
            for each in ({"racing_confidence": 0.9}, {"scan_batch_tokens": 64})
        ),
        {"merge_adapter": False},
        {"protected_layers": "kept"},
    ],
    ids=str,
)
def test_settings_of_what_is_left_may_change(fields, copied):
    folder = copied()
    if "protected_layers" in fields:
        fields = {"protected_layers": list(TrimHistory.load(folder / "checkpoint-6").kept[-3:])}
    trainer = resume(folder, **fields)
    assert steps(trainer)[-1] == (8, 3)
    assert set(fields.get("protected_layers", ())) <= set(trainer.history.kept)


@pytest.mark.slow
def test_a_depth_that_was_kept_may_be_asked_for_again(copied):
    assert resume(copied("kept"), save_depths=[5]).history.depth == 3


@pytest.mark.slow
def test_a_run_that_stopped_at_its_floor_goes_on_where_there_is_another_or_none(copied):
    folder = copied("floor")
    last = TrimHistory.load(folder / "checkpoint-8")
    assert (last.depth, steps_of(last)) == (5, [(4, 5)]) and "depth 5 was restored" in last.stopped
    again = resume(folder, 8, max_metric_drop=0.0)
    assert (again.history.depth, again.history.stopped) == (5, last.stopped)
    for floor in (100.0, None):
        deeper = resume(folder, 8, max_metric_drop=floor)
        assert steps(deeper) == [(4, 5), (10, 4), (12, 3)] and deeper.history.stopped is None


def test_a_target_that_a_stopped_run_has_reached_is_reached(copied):
    trainer = resume(copied("floor"), 8, target_layers=5, max_metric_drop=0.0)
    assert (trainer.history.depth, trainer.history.stopped) == (5, None)


@pytest.mark.slow
def test_another_evaluation_set_is_measured_before_and_after(copied, tmp_path):
    others = some(30, 300)
    trainer = resume(copied(), eval_dataset=others)
    fresh = make(tmp_path / "fresh", eval_dataset=others)
    fresh.train()
    assert trainer.history.untrimmed.evaluation == fresh.history.untrimmed.evaluation
    assert trainer.history.untrimmed.evaluation.num_examples == trainer.history.trimmed.evaluation.num_examples == 30


@pytest.mark.slow
def test_what_a_teacher_has_said_at_another_temperature_is_forgotten(tmp_path):
    make_model(seed=1).save_pretrained(tmp_path / "teacher")
    make(tmp_path / "run", distill_from=str(tmp_path / "teacher")).train()
    shutil.copytree(tmp_path / "run", tmp_path / "without")
    (tmp_path / "without" / "checkpoint-6" / TARGETS_NAME).unlink()
    found, expected = (
        resume(tmp_path / name, distill_from=str(tmp_path / "teacher"), distill_temperature=3.0).model.state_dict()
        for name in ("run", "without")
    )
    assert all(torch.equal(tensor, found[name]) for name, tensor in expected.items())


# What is refused.


def other_criterion(calibration):
    return torch.zeros(calibration.num_layers)


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        (
            "whole",
            {"target_layers": 5},
            r"`target_layers` is 5, but .*checkpoint-6' has only 4 layers left.*target of 3",
        ),
        ("whole", {"target_layers": None, "target_ratio": 0.17}, r"`target_ratio` is 0.17, a target of 5 layers, but"),
        (
            "whole",
            {"importance": "tail"},
            r"`importance` is 'tail', but .*checkpoint-6' is of a run with 'late_sensitivity'",
        ),
        ("whole", {"calibration_metric": None}, r"`calibration_metric` is 'accuracy', but .* of a run with 'loss'"),
        ("whole", {"compensation_size": 8}, r"`compensation_size` is 8, but .* of a run with 0"),
        ("whole", {"sparse_update_ratio": None}, r"`sparse_update_ratio` is None, but .* of a run with 0.25"),
        ("all parameters", {}, r"`sparse_update_ratio` is 0.25, but .* of a run with None"),
        ("whole", {"protected_layers": "gone"}, r"`protected_layers` is \[\d, \d\], but .*has dropped \[\d, \d\]"),
        ("whole", {"save_depths": [5, 4]}, r"`save_depths` is \[5, 4\], but .*has 4 layers and has passed \[5\]"),
        (
            "whole",
            {"calibration_dataset": some(12, 300)},
            r"The calibration set has 12 examples that are not those of",
        ),
        ("held out", {"calibration_size": 9}, r"`calibration_size` is 9, but .* of a run with 12"),
        ("held out", HELD_OUT | {"seed": 4}, r"that are not those of .*\(`seed` is 4, it was 3\)"),
        ("whole", {"max_metric_drop": 0.5}, r"`max_metric_drop` is 0.5, but .*without a quality floor"),
        ("whole", {"peft_config": LORA}, r"makes an adapter of kind 'LORA', but .* holds 'none'"),
        ("lora", {"sparse_update_ratio": None}, r"makes an adapter of kind 'none', but .* holds 'LORA'"),
        ("lora", {"peft_config": LORA, "model": make_model(seed=7)}, r"`model` has other weights than"),
        (
            "whole",
            {"model": make_model(rope_theta=500.0)},
            r"`model` is another one: .*rope_theta.* is 500.0, but .*10000",
        ),
        ("whole", {"model": make_model("mistral")}, r"`model` is another one: `.*` of its config is"),
        ("whole", {"target_layers": 2, "max_steps": 8}, r"8 steps, of which 6 are over, have room for 1 drop"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_what_cannot_be_honoured_is_refused_before_the_first_step(name, fields, message, copied):
    folder = copied(name)
    if "protected_layers" in fields:
        fields = {"protected_layers": sorted(TrimHistory.load(folder / "checkpoint-6").dropped)}
    with pytest.raises(ValueError, match=message):
        resume(folder, **fields)


def test_so_is_a_criterion_of_the_users_own_by_its_name(copied):
    folder = copied()
    args = TrimConfig(output_dir=str(folder), **(TRAINING | TRIMMING | ASKED))
    trainer = TrimTrainer(
        make_model(), args, train_dataset=some(64, 0), calibration_dataset=some(12, 200), importance=other_criterion,
        processing_class=make_tokenizer(),
    )  # fmt: skip
    with pytest.raises(ValueError, match="`importance` is 'other_criterion', but .* of a run with 'late_sensitivity'"):
        trainer.train(resume_from_checkpoint=True)


def test_an_older_checkpoint_is_compared_by_what_it_says(copied, runs, tmp_path):
    folder = copied("all parameters")
    copied_whole = shutil.copytree(runs("whole"), tmp_path / "sparse")
    (folder / "checkpoint-6" / "trim_run.json").unlink()
    (copied_whole / "checkpoint-6" / "trim_run.json").unlink()
    with pytest.raises(ValueError, match="`sparse_update_ratio` is None, but .* of a run with 0.33"):
        resume(copied_whole, sparse_update_ratio=None)
    for fields, message in (
        ({"importance": "tail"}, "`importance` is 'tail', but .* of a run with 'late_sensitivity'"),
        ({}, "`sparse_update_ratio` is 0.25, but .* of a run with None"),
        ({"sparse_update_ratio": None, "target_layers": 5}, "`target_layers` is 5, but .*only 4 layers left"),
    ):
        with pytest.raises(ValueError, match=message):
            resume(folder, **fields)
    assert steps(resume(folder, sparse_update_ratio=None, target_layers=2)) == [(4, 5), (6, 4), (8, 3), (10, 2)]


# Runs with a target and runs without one.


@pytest.mark.parametrize("config_class", [SFTConfig, TrimConfig])
@pytest.mark.parametrize("switch", [True, None])
def test_without_a_target_a_trimmed_checkpoint_is_not_put_into_the_untrimmed_model(config_class, switch, copied):
    folder = copied()
    for path in folder.rglob("optimizer.pt"):  # as with `save_only_model`
        path.unlink()
    plain = {} if config_class is SFTConfig else {"target_layers": None, "trim_steps": None}
    trainer = make(folder, config_class=config_class, **plain)
    before = {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}
    message = r"has (3|4) of 6 layers, the model has 6, and neither `target_layers` nor .*`target_layers` \(3\)"
    with pytest.raises(ValueError, match=message):
        trainer.train(resume_from_checkpoint=switch or str(folder / "checkpoint-6"))
    assert all(torch.equal(tensor, before[name]) for name, tensor in trainer.model.state_dict().items())


def test_the_trimmed_model_itself_goes_on_without_a_target_as_with_sft_trainer(copied):
    folder, models = copied("all parameters"), []
    for trainer_class in (SFTTrainer, TrimTrainer):
        model = AutoModelForCausalLM.from_pretrained(folder / "checkpoint-6")
        trainer = make(folder, trainer_class, SFTConfig, model=model)
        trainer.train(resume_from_checkpoint=str(folder / "checkpoint-6"))
        models.append(trainer.model.state_dict())
    assert all(torch.equal(tensor, models[1][name]) for name, tensor in models[0].items())


def test_a_checkpoint_without_the_optimizer_goes_on_at_its_depth_and_says_what_begins_anew(copied, caplog):
    folder = copied()
    (folder / "checkpoint-6" / "optimizer.pt").unlink()
    assert steps(resume(folder)) == [(4, 5), (6, 4), (8, 3)]
    assert "the optimizer and the learning rate begin anew" in caplog.text


def test_a_checkpoint_of_a_run_without_a_target_is_refused_with_its_true_cause(tmp_path):
    make(tmp_path, SFTTrainer, SFTConfig, save_strategy="steps", save_steps=8).train()
    with pytest.raises(CheckpointError, match=r"checkpoint-8.*a run without a target wrote it.*`model="):
        make(tmp_path).train(resume_from_checkpoint=str(tmp_path / "checkpoint-8"))
    with pytest.raises(CheckpointError, match="holds no whole checkpoint.*name another `output_dir`"):
        make(tmp_path).train(resume_from_checkpoint=True)  # to overwrite would remove what was trained


# Ways to resume.


@pytest.mark.parametrize("way", ["letters", "in args", "in args, a path"])
def test_resuming_can_be_asked_for_as_scripts_do(way, copied):
    folder = copied()
    shutil.rmtree(folder / "checkpoint-16")
    asked = {"in args": "true", "in args, a path": str(folder / "checkpoint-14")}.get(way)
    trainer = make(folder, resume_from_checkpoint=asked)
    trainer.train(resume_from_checkpoint="True") if way == "letters" else trainer.train()
    assert steps(trainer) == [(4, 5), (6, 4), (8, 3)]
    assert_same_weights(trainer, folder)


def test_a_run_that_is_resumed_at_its_very_end_has_the_same_result(tmp_path):
    fields = {"max_steps": 20, "save_steps": 10}  # ends in the middle of an epoch of 16 steps
    whole = make(tmp_path, **fields)
    whole.train()
    again = make(tmp_path, **fields)
    again.train(resume_from_checkpoint=True)
    assert again.state.global_step == 20 and steps(again) == steps(whole)
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(again.model.state_dict()[name], tensor)


def test_a_folder_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="'nowhere' is no folder"):
        make(tmp_path).train(resume_from_checkpoint="nowhere")


class Once(TrainerCallback):
    """Raises an error at the end of a step, the first time."""

    def __init__(self, step, error):
        self.step, self.error = step, error

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step and self.error is not None:
            error, self.error = self.error, None
            raise error


@pytest.mark.parametrize(
    "fields",
    [pytest.param({}, marks=pytest.mark.slow), {"sparse_update_ratio": None}],
    ids=["sparse update", "all parameters"],
)
def test_an_interrupted_trainer_resumes_in_place(fields, runs, tmp_path):
    trainer = make(tmp_path, callbacks=[Once(5, KeyboardInterrupt())], **fields)
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert trainer.history.stopped is not None
    trainer.train(resume_from_checkpoint=True)
    assert steps(trainer) == [(4, 5), (6, 4), (8, 3)] and trainer.history.stopped is None
    assert_same_weights(trainer, runs("all parameters" if fields else "whole"))


def test_but_not_at_a_depth_that_it_has_left(tmp_path):
    trainer = make(tmp_path, callbacks=[Once(7, KeyboardInterrupt())])
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    with pytest.raises(
        ValueError, match=r"The model has dropped \[\d\], which the checkpoint has.*Make a new trainer"
    ):
        trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert len(find_layers(trainer.model)) == trainer.history.depth == 4


def out_of_memory():
    return RuntimeError("CUDA out of memory.")


def test_a_smaller_batch_is_found_after_a_drop(tmp_path):
    """The Trainer begins its loop again; the drops that are left are planned from the depth that is there."""
    trainer = make(tmp_path, callbacks=[Once(7, out_of_memory())], auto_find_batch_size=True, save_strategy="no")
    trainer.train()
    assert trainer._train_batch_size < 4
    assert steps(trainer) == [(4, 5), (6, 4), (4, 3)]
    assert trainer.history.depth == len(find_layers(trainer.model)) == 3


def test_memory_that_runs_out_right_after_a_drop_leaves_a_history_that_is_true(tmp_path, monkeypatch):
    trainer = make(tmp_path, auto_find_batch_size=True, save_strategy="no")
    measure, calls = trainer.trimming.measure_metric, []

    def fails_once():
        calls.append(1)
        if len(calls) == 1:
            raise out_of_memory()
        return measure()

    monkeypatch.setattr(trainer.trimming, "measure_metric", fails_once)
    trainer.train()
    assert trainer.history.depth == len(find_layers(trainer.model)) == 3
    assert [depth for _, depth in steps(trainer)] == [5, 4, 3] and trainer.history.drops[0].metric_after is None


def test_a_resumed_run_that_runs_out_of_memory_after_a_drop_is_refused_a_restart(copied):
    folder = copied()
    trainer = make(folder, callbacks=[Once(9, out_of_memory())], auto_find_batch_size=True)
    with pytest.raises(RuntimeError, match="has 4 layers, but the model has 3 by now.*`per_device_train_batch_size`"):
        trainer.train(resume_from_checkpoint=str(folder / "checkpoint-6"))


def test_epochs_that_are_not_whole_count_as_what_they_are(tmp_path):
    fields = {"trim_strategy": "epoch", "trim_steps": None, "trim_delay": 0, "target_layers": 4, "save_strategy": "no"}
    for length in ({"max_steps": 24}, {"max_steps": -1, "num_train_epochs": 1.5}):
        with pytest.raises(ValueError, match="`target_layers` is 4, but 1.5 epochs have room for 1 drop"):
            make(tmp_path, **fields, **length).train()
    with pytest.raises(ValueError, match="0 epochs have room for 0 drop"):
        make(tmp_path, **fields, max_steps=-1, num_train_epochs=0).train()


@pytest.mark.slow
def test_the_best_model_of_a_resumed_run_has_the_target_that_was_asked_for(copied):
    trainer = resume(copied("best"), target_layers=2, **BEST)
    assert [a_round.depth_after for a_round in trainer.history.drops] == []
    assert (trainer.history.depth, trainer.history.target_layers) == (6, 2)
    assert trainer.history.stopped == "`load_best_model_at_end` returned to checkpoint-2, which has 6 layers"


def test_a_record_is_read_past_what_it_does_not_know(copied):
    folder = copied()
    path = folder / "checkpoint-6" / "trim_run.json"
    record = json.loads(path.read_text())
    assert record["settings"]["target_layers"] == 3 and record["num_steps"] == 16
    path.write_text(json.dumps(record | {"of_tomorrow": 1}))
    assert dataclasses.asdict(resume(folder)._resumed)["num_steps"] == 16
