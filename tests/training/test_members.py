"""Depths on the way are healed: each is what a run with that target would have given, and the run is what it was without them."""

import os
import signal

import pytest
import torch
import yaml
from forked import CONTEXT
from killed_run import run
from peft import LoraConfig
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, EarlyStoppingCallback, TrainerCallback
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK
from trl import SFTConfig, SFTTrainer

from trim_trainer.records.history import TrimHistory
from trim_trainer.training.schedule import plan_schedule

FAMILY = {"target_layers": 3, "save_depths": [5, 4], "max_steps": 12, "trim_steps": 2, "sparse_update_ratio": None}
KINDS = {
    "full": {},
    "sparse": {"sparse_update_ratio": 0.5},
    "compensated": {"compensation_size": 8, "calibration_metric": "loss"},
    "epochs": {"trim_strategy": "epoch", "trim_steps": None, "max_steps": -1, "num_train_epochs": 5},
    "best": {"load_best_model_at_end": True, "eval_strategy": "steps", "eval_steps": 4, "save_steps": 4,
             "save_strategy": "steps", "save_total_limit": 1},
    "floor": {"max_metric_drop": 100.0, "calibration_metric": "loss"},
    "lora": {"peft_config": LoraConfig(r=4, target_modules=["q_proj", "down_proj"])},
}  # fmt: skip


def weights_in(folder):
    return load_file(folder / "model.safetensors")


def assert_equal(found, wanted):
    assert found.keys() == wanted.keys()
    different = [name for name in wanted if not torch.equal(found[name], wanted[name])]
    assert not different


def left(folder):
    return sorted(path.name for path in folder.glob("**/checkpoint-*"))


QUICK = ("compensated",)


@pytest.mark.parametrize(
    "kind", [kind if kind in QUICK else pytest.param(kind, marks=pytest.mark.slow) for kind in KINDS]
)
def test_each_depth_is_what_a_run_with_that_target_would_have_given(make_trainer, tmp_path, kind):
    settings = FAMILY | KINDS[kind]
    trainer = make_trainer(output_dir="family", **settings)
    trainer.train()
    trainer.save_model()
    for depth in (5, 4, 3):
        alone = make_trainer(output_dir=f"alone-{depth}", **(settings | {"target_layers": depth, "save_depths": None}))
        alone.train()
        alone.save_model()
        folder = tmp_path / "family" / ("" if depth == 3 else f"depth-{depth}")
        assert_equal(weights_in(folder), weights_in(tmp_path / f"alone-{depth}"))
        history, wanted = TrimHistory.load(folder), TrimHistory.load(tmp_path / f"alone-{depth}")
        assert history.dropped == wanted.dropped
        assert history.target_layers == depth or history.stopped is not None
        assert history.trimmed.quality == wanted.trimmed.quality
        assert AutoModelForCausalLM.from_pretrained(folder).config.num_hidden_layers == depth
    if kind != "best":
        assert left(tmp_path / "family") == []
    assert {measured.depth for measured in trainer.history.measurements} == {5, 4, 3}
    assert trainer.history.measured(5).quality == TrimHistory.load(tmp_path / "family" / "depth-5").trimmed.quality


@pytest.mark.slow
def test_a_killed_run_goes_on_with_the_members_that_are_left(tmp_path):
    settings = FAMILY | {"max_steps": 16, "save_depths": [5, 4], "target_layers": 3, "save_strategy": "no"}
    for name in ("whole", "killed"):
        process = CONTEXT.Process(target=run_family, args=(str(tmp_path / name), settings, name == "killed"))
        process.start()
        process.join(300)
        assert process.exitcode == (0 if name == "whole" else -signal.SIGKILL)
    killed = tmp_path / "killed"
    assert sorted(path.relative_to(killed).as_posix() for path in killed.glob("**/checkpoint-*")) == [
        "checkpoint-16",
        "depth-4/checkpoint-8",
    ]
    assert (killed / "depth-5" / "model.safetensors").is_file()
    process = CONTEXT.Process(target=run_family, args=(str(killed), settings, False))
    process.start()
    process.join(300)
    assert process.exitcode == 0
    for depth in ("final", "depth-5", "depth-4"):
        assert_equal(weights_in(killed / depth), weights_in(tmp_path / "whole" / depth))
    assert left(killed) == []


def run_family(output_dir, settings, is_killed):
    """Train a family, going on where there is something to go on with; `is_killed`: at step 10 of its depth of 4."""
    from trim_trainer.training.hooks import TrimCallback

    on_step_end = TrimCallback.on_step_end

    def step(self, args, state, control, **kwargs):
        on_step_end(self, args, state, control, **kwargs)
        if args.output_dir.endswith("depth-4") and state.global_step == 10:
            os.kill(os.getpid(), signal.SIGKILL)

    if is_killed:
        TrimCallback.on_step_end = step
    run(output_dir, settings)


def test_a_member_that_fails_leaves_the_run_as_it_was(make_trainer, tmp_path):
    plain = make_trainer(output_dir="plain", **(FAMILY | {"save_depths": None}))
    plain.train()
    trainer = make_trainer(**FAMILY)
    trainer.add_callback(Failing())
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert trainer.history.depth == 3 and trainer.history.stopped is None
    assert trainer.args.save_depths == [5, 4] and trainer.args.output_dir == str(tmp_path / "run")
    assert_equal(trainer.model.state_dict(), plain.model.state_dict())
    trainer.save_model()  # the script that catches the interrupt
    again = make_trainer(**FAMILY)
    again.train(resume_from_checkpoint=True)
    assert_equal(again.model.state_dict(), plain.model.state_dict())
    assert TrimHistory.load(tmp_path / "run" / "depth-4").trimmed.depth == 4


class Failing(TrainerCallback):
    """Interrupts the member of depth 4."""

    def on_step_end(self, args, state, control, **kwargs):
        if args.output_dir.endswith("depth-4") and state.global_step == 8:
            raise KeyboardInterrupt


def test_reporters_see_one_run_and_other_callbacks_all_of_them(make_trainer, monkeypatch):
    monkeypatch.setitem(INTEGRATION_TO_CALLBACK, "reporter", Reporter)
    trainer, reporter, noting = make_trainer(**FAMILY), Reporter(), Noting()
    trainer.add_callback(reporter)
    trainer.add_callback(noting)
    trainer.train()
    assert reporter.steps == list(range(1, 13))
    assert noting.steps == [*range(1, 13), *range(5, 13), *range(7, 13)]  # depth 5 ends at step 4, depth 4 at step 6
    assert trainer.state.global_step == 12
    assert [entry["step"] for entry in trainer.state.log_history if "loss" in entry] == list(range(1, 13))


class Noting(TrainerCallback):
    """Notes the steps that are trained."""

    def __init__(self):
        self.steps = []

    def on_step_end(self, args, state, control, **kwargs):
        self.steps.append(state.global_step)


class Reporter(Noting):
    """Stands for TensorBoard and the others."""


def test_the_cost_is_said_before_the_run(make_trainer, caplog):
    trainer = make_trainer(**FAMILY)
    trainer.add_callback(Stopping())
    trainer.train()
    # 6 layers for 2 steps, 5 for 2, 4 for 2, 3 for 6: 48. Depth 5 from step 4 on, depth 4 from step 6 on: 8 * 5 + 6 * 4.
    assert "1.3 times the run's own training on top" in caplog.text
    assert plan_schedule(6, 3, total=12, trim_steps=2, save_depths=[5, 4]).members_cost([5, 4], 12) == pytest.approx(
        (8 * 5 + 6 * 4) / 48
    )


class Stopping(TrainerCallback):
    """Ends training after the first step."""

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = True


def test_depths_stay_as_they_are_where_that_is_asked_for(make_trainer, tmp_path, caplog):
    trainer = make_trainer(**(FAMILY | {"trim_steps": None}), heal_depths=False)
    trainer.train()
    assert "on top" not in caplog.text
    assert left(tmp_path / "run") == []
    history = TrimHistory.load(tmp_path / "run" / "depth-5")
    assert history.target_layers == 3 and history.depth == history.trimmed.depth == 5
    assert [a_round.step for a_round in trainer.history.rounds] == [2, 4, 6]  # in the first half


def test_the_recipe_of_a_member_repeats_it(make_trainer, tmp_path):
    make_trainer(output_dir="family", **(FAMILY | {"trim_steps": None, "layers_per_trim": 2})).train()
    recipe = yaml.safe_load((tmp_path / "family" / "depth-4" / "recipe.yaml").read_text())
    assert (recipe["target_layers"], recipe["save_depths"], recipe["trim_steps"]) == (4, [5], 1)
    fields = {name: recipe[name] for name in ("target_layers", "save_depths", "trim_steps")}
    again = make_trainer(output_dir="again", **(FAMILY | {"layers_per_trim": 2} | fields))
    again.train()
    again.save_model()
    for one, other in (("depth-4", "."), ("depth-5", "depth-5")):
        assert_equal(weights_in(tmp_path / "again" / other), weights_in(tmp_path / "family" / one))


def test_behind_its_members_the_run_has_its_own_recipe(make_trainer, tmp_path):
    trainer = make_trainer(**FAMILY)
    trainer.train()
    trainer.save_model()
    recipe = TrimHistory.load(tmp_path / "run").card.recipe
    assert (recipe["target_layers"], recipe["save_depths"]) == (3, [5, 4])
    assert not trainer.is_member and trainer.recipe is None


def test_a_best_checkpoint_of_a_members_depth_has_its_own_measurements(make_trainer, tmp_path):
    settings = KINDS["best"] | {"save_depths": [4], "metric_for_best_model": "score"}
    trainer = make_trainer(callbacks=[BestAt(4)], greater_is_better=True, **FAMILY | settings)
    trainer.train()
    trainer.save_model()
    run, member = TrimHistory.load(tmp_path / "run"), TrimHistory.load(tmp_path / "run" / "depth-4")
    assert run.depth == member.depth == 4
    assert run.trimmed.evaluation.loss == pytest.approx(trainer.evaluate()["eval_loss"], abs=1e-4)
    assert run.trimmed.evaluation.loss > member.trimmed.evaluation.loss  # which trained on


class BestAt(TrainerCallback):
    """A score that is best at one step of the run, and rises in its members."""

    def __init__(self, step):
        self.step = step

    def on_evaluate(self, args, state, control, metrics, **kwargs):
        is_member = "depth-" in args.output_dir
        metrics["eval_score"] = 100.0 + state.global_step if is_member else 10.0 * (state.global_step == self.step)


class Patience(EarlyStoppingCallback):
    """One that is made of other arguments than its kind."""

    def __init__(self, name):
        super().__init__(50)
        self.name = name


def test_callbacks_of_a_script_are_not_made_anew(make_trainer, tmp_path):
    settings = FAMILY | KINDS["best"] | {"save_depths": [5]}
    trainer = make_trainer(callbacks=[Patience("mine"), EarlyStoppingCallback(60)], **settings)
    trainer.train()
    assert (tmp_path / "run" / "depth-5" / "model.safetensors").is_file()
    patient = [each for each in trainer.callback_handler.callbacks if isinstance(each, EarlyStoppingCallback)]
    assert [each.early_stopping_patience for each in patient] == [50, 60]


def test_the_depth_that_a_run_begins_with_can_be_a_member(make_trainer, tmp_path):
    trainer = make_trainer(**FAMILY | {"save_depths": [6, 5], "target_layers": 4, "max_steps": 8})
    trainer.train()
    assert {measured.depth for measured in trainer.history.measurements} == {6, 5, 4}
    alone = make_trainer(SFTTrainer, SFTConfig, output_dir="alone", max_steps=8)  # what full depth is without a target
    alone.train()
    found = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "depth-6")
    assert found.config.num_hidden_layers == 6
    assert_equal(found.state_dict(), alone.model.state_dict())


def test_a_best_checkpoint_that_is_deeper_loses_no_member(make_trainer, tmp_path, caplog):
    best = {"load_best_model_at_end": True, "metric_for_best_model": "num_tokens", "greater_is_better": False}
    best |= {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1, "max_steps": 6}
    trainer = make_trainer(**FAMILY | best | {"save_depths": [5], "target_layers": 4})
    trainer.train()
    trainer.save_model()
    assert trainer.history.depth == 6  # the first checkpoint, which has seen the fewest tokens
    member = TrimHistory.load(tmp_path / "run" / "depth-5")
    assert (member.depth, member.stopped) == (5, None)
    assert "Depth 5: the best checkpoint has 6 layers and is passed over" in caplog.text
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "depth-5").config.num_hidden_layers == 5


class Played(TrainerCallback):
    """A validation loss that rises when layers go and falls by 0.1 with each evaluation behind that."""

    def __init__(self):
        self.steps = {}

    def on_evaluate(self, args, state, control, metrics, model, **kwargs):
        step, depth = state.global_step, model.config.num_hidden_layers
        metrics["eval_loss"] = {6: 1 - 0.1 * step, 4: 1.4 - 0.1 * step, 3: 3.5 - 0.1 * step}[depth]
        self.steps[os.path.basename(args.output_dir)] = step


def test_a_member_has_the_patience_that_was_left_when_its_depth_was(make_trainer):
    played = Played()
    settings = {
        "target_layers": 3,
        "save_depths": [4],
        "max_steps": 12,
        "trim_steps": 1,
        "trim_delay": 4,
        "layers_per_trim": 2,
    }
    settings |= {"importance": "tail", "sparse_update_ratio": None, "metric_for_best_model": "loss"}
    settings |= {"eval_strategy": "steps", "eval_steps": 1}
    trainer = make_trainer(callbacks=[played, EarlyStoppingCallback(6)], **settings)
    trainer.train()
    assert (
        played.steps["run"] < 12 == played.steps["depth-4"]
    )  # the run was stopped, the member gets better to its end
