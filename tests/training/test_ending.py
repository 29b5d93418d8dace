"""A run that ends above its target says so: in the history, in the log, on the card."""

import json

import pytest
from tiny import make_model
from transformers import AutoModelForCausalLM, EarlyStoppingCallback, TrainerCallback

from trim_trainer import TrimHistory

ASKED = {"target_layers": 3, "trim_steps": 2, "trim_delay": 4}  # drops after 4, 6 and 8 of 16 steps
SAVING = {"save_strategy": "steps", "save_steps": 2}
EVALUATING = {"eval_strategy": "steps", "eval_steps": 2, "load_best_model_at_end": True}


class At(TrainerCallback):
    """Does something at the end of a step."""

    def __init__(self, step, act):
        self.step, self.act = step, act

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            self.act(control)


def end_training(control):
    control.should_training_stop = True


def interrupt(control):
    raise KeyboardInterrupt


def fail(control):
    raise OSError("the disk is full")


def best_by(metric, greater):
    return EVALUATING | SAVING | {"metric_for_best_model": metric, "greater_is_better": greater}


FEWEST, MOST = best_by("num_tokens", False), best_by("num_tokens", True)  # the best checkpoint is the first, the last
ENDINGS = {
    "a callback": ({}, lambda: At(5, end_training), 5, "training was ended at step 5 of 16, by a callback"),
    "early stopping": (
        FEWEST | {"load_best_model_at_end": False},
        lambda: EarlyStoppingCallback(2),
        4,
        "EarlyStoppingCallback ended training at step 6 of 16",
    ),
    "early stopping, the best model loaded": (
        FEWEST,
        lambda: EarlyStoppingCallback(2),
        6,
        "EarlyStoppingCallback ended training at step 6 of 16; `load_best_model_at_end` returned to checkpoint-2, which "
        "has 6 layers",
    ),
    "the best model loaded": (
        FEWEST,
        TrainerCallback,
        6,
        "`load_best_model_at_end` returned to checkpoint-2, which has 6 layers",
    ),
    "half an epoch": (
        {"max_steps": -1, "num_train_epochs": 0.5, "trim_delay": 0},  # 8 steps
        lambda: At(4, end_training),
        4,
        "training was ended at step 4 of 8",
    ),
}


@pytest.mark.parametrize("name", ENDINGS)
def test_a_run_that_ends_above_its_target_says_why(name, make_trainer, tmp_path, caplog):
    fields, callback, depth, reason = ENDINGS[name]
    trainer = make_trainer(**(ASKED | fields), callbacks=[callback()])
    trainer.train()
    assert trainer.history.depth == trainer.model.config.num_hidden_layers == depth
    assert trainer.history.stopped.startswith(reason)
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert (
        sum(f"{depth} layers" in each and "target" in each or "best checkpoint has" in each for each in warnings) >= 1
    )
    trainer.save_model()
    assert_said(tmp_path / "run", reason)


def assert_said(folder, reason):
    assert TrimHistory.load(folder).stopped.startswith(reason)
    assert f"Dropping stopped above the target of 3 layers: {reason}" in (folder / "README.md").read_text()


@pytest.mark.parametrize(("act", "error"), [(interrupt, KeyboardInterrupt), (fail, OSError)])
def test_so_does_one_that_an_exception_breaks_off(act, error, make_trainer, tmp_path, caplog):
    trainer = make_trainer(**ASKED, callbacks=[At(6, act)])
    with pytest.raises(error):
        trainer.train()
    assert trainer.history.depth == 5
    reason = f"training was broken off at step 6 of 16 by {error.__name__}"
    assert trainer.history.stopped == reason
    assert f"The model has 5 layers, above the target of 3: {reason}." in caplog.messages
    trainer.save_model()
    assert_said(tmp_path / "run", reason)


def test_a_model_that_is_saved_untrained_says_so(make_trainer, tmp_path, caplog):
    trainer = make_trainer(**ASKED)
    trainer.save_model()
    assert_said(tmp_path / "run", "the model was saved before it was trained")
    assert (
        "The model has 6 layers, above the target of 3: the model was saved before it was trained." in caplog.messages
    )


def test_a_model_that_is_saved_on_the_way_says_so_and_the_run_goes_on(make_trainer, tmp_path):
    trainer = make_trainer(**ASKED, save_depths=[5], heal_depths=False)
    trainer.add_callback(At(7, lambda control: trainer.save_model(str(tmp_path / "middle"))))
    trainer.train()
    trainer.save_model()
    assert_said(tmp_path / "middle", "the model was saved at step 7 of 16, before the end of training")
    assert TrimHistory.load(tmp_path / "middle").depth == 4
    assert trainer.history.depth == 3 and trainer.history.stopped is None
    assert "above the target" not in (tmp_path / "run" / "README.md").read_text()
    kept = tmp_path / "run" / "depth-5"
    assert TrimHistory.load(kept).stopped is None
    assert "One of the depths on the way to the target of 3 layers." in (kept / "README.md").read_text()


def test_the_best_model_at_the_target_ends_at_the_target(make_trainer):
    trainer = make_trainer(**(ASKED | MOST))
    trainer.train()
    assert trainer.state.best_global_step == 16
    assert trainer.history.depth == 3 and trainer.history.stopped is None


@pytest.mark.slow
def test_a_run_that_ended_early_and_is_resumed_to_its_target_has_nothing_to_say(make_trainer, tmp_path):
    first = make_trainer(**ASKED, **SAVING, callbacks=[At(6, end_training)])
    first.train()
    first.save_model()
    assert TrimHistory.load(tmp_path / "run").stopped is not None
    resumed = make_trainer(**ASKED, **SAVING)
    resumed.train(resume_from_checkpoint=True)
    resumed.save_model()
    assert (resumed.history.depth, resumed.history.stopped) == (3, None)
    assert TrimHistory.load(tmp_path / "run").stopped is None
    assert "above the target" not in (tmp_path / "run" / "README.md").read_text()


def test_a_run_that_ended_early_goes_on_where_it_is_trained_again(make_trainer):
    trainer = make_trainer(**ASKED, callbacks=[At(5, end_training)])
    trainer.train()
    assert trainer.history.stopped is not None
    trainer.callback_handler.callbacks = [each for each in trainer.callback_handler.callbacks if type(each) is not At]
    trainer.train()
    assert (trainer.history.depth, trainer.history.stopped) == (3, None)


def test_a_run_that_is_replaced_stays_until_the_new_one_is_accepted(make_trainer, tmp_path):
    make = {"sparse_update_ratio": None, "save_strategy": "steps", "save_steps": 2, "max_steps": 4, "trim_steps": 1}
    trainer = make_trainer(target_layers=4, **make)
    trainer.train()
    trainer.save_model()
    there = sorted(path.name for path in (tmp_path / "run").iterdir())
    assert {"checkpoint-2", "checkpoint-4", "trim_history.json"} <= set(there)
    with pytest.raises(ValueError, match="4 steps have room"):
        make_trainer(target_layers=1, layers_per_trim=1, overwrite_output_dir=True, **make).train()
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == there
    make_trainer(target_layers=5, overwrite_output_dir=True, **make | {"save_steps": 3}).train()
    assert not (tmp_path / "run" / "checkpoint-2").exists() and (tmp_path / "run" / "checkpoint-3").exists()


def test_epochs_of_a_stream_are_refused_as_nobody_knows_where_they_end(make_trainer, sets):
    with pytest.raises(ValueError, match="`trim_strategy` is 'epoch', and `train_dataset` is a stream"):
        make_trainer(
            train_dataset=sets[0].to_iterable_dataset(), target_layers=4, trim_strategy="epoch", trim_steps=None
        )


def test_a_branch_that_a_run_would_not_push_to_is_refused_before_it_trains(make_trainer):
    with pytest.raises(ValueError, match="`hub_revision` is 'dev', but a run with a target publishes"):
        make_trainer(target_layers=4, push_to_hub=True, hub_model_id="me/model", hub_revision="dev", hub_token="hf_x")


def test_a_generation_config_that_no_save_would_write_is_refused_before_training(make_trainer, tmp_path):
    make_model().save_pretrained(tmp_path / "base")
    path = tmp_path / "base" / "generation_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"temperature": 0.6}))  # without `do_sample`
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    make_trainer(model=model, target_layers=4).save_model()  # nothing is changed of it, and it is saved as it is
    model.generation_config.eos_token_id = 5  # the tokenizer has another
    with pytest.raises(ValueError, match="generation config of the model is invalid: .*do_sample"):
        make_trainer(model=model, target_layers=4)
    model.generation_config.do_sample = True
    make_trainer(model=model, target_layers=4)
    model = make_model()
    model.generation_config.temperature = 0.7
    with pytest.raises(ValueError, match="generation config .*do_sample.* It was changed, and Transformers saves"):
        make_trainer(model=model, target_layers=4)
