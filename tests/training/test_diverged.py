"""Training that diverges: said where it is noticed, with its cause; what came before is not lost, and what is saved is it."""

import logging
import math

import pytest
import torch
from datasets import Dataset
from tiny import make_examples, make_model
from transformers import AutoModelForCausalLM, TrainerCallback

from trim_trainer import CRITERIA, TrimHistory, verify_checkpoint
from trim_trainer.checkpoints.verification import VerificationError
from trim_trainer.scoring.finite import DivergedError

ASKED = {"target_layers": 4, "trim_steps": 3, "compensation_size": 8}  # drops after 3 and 6 of 16 steps
CAUSE = "NaN or infinite numbers.*'model.embed_tokens.weight' is not finite.*lower `learning_rate`"


class Diverge(TrainerCallback):
    """What an optimizer step with a gradient that is not finite leaves."""

    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, model=None, **kwargs):
        if state.global_step == self.step:
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.fill_(math.nan)


@pytest.mark.parametrize("metric", ["loss", "accuracy"])
@pytest.mark.parametrize(
    "settings",
    [
        *({"importance": name, "compensation_size": 0} for name in CRITERIA),
        {},
        {"racing_confidence": 0.95, "compensation_size": 0},
        {"trim_unit": "sublayer"},
    ],
    ids=str,
)
def test_the_next_drop_says_so(settings, metric, make_trainer):
    trainer = make_trainer(**ASKED | {"calibration_metric": metric} | settings, callbacks=[Diverge(4)])
    with pytest.raises(DivergedError, match=CAUSE):
        trainer.train()
    assert trainer.history.depth == 5 and "broken off at step 6 of 16 by DivergedError" in trainer.history.stopped


def test_a_criterion_of_ones_own_is_not_blamed(make_trainer):
    trainer = make_trainer(
        **ASKED | {"compensation_size": 0},
        importance=lambda calibration: torch.arange(calibration.num_layers),
        callbacks=[Diverge(4)],
    )
    with pytest.raises(DivergedError, match=CAUSE):
        trainer.train()


def test_behind_the_last_drop_it_is_saved_as_it_is(make_trainer, tmp_path, caplog):
    trainer = make_trainer(**ASKED, eval_dataset=Dataset.from_list(make_examples(4, 900)), callbacks=[Diverge(9)])
    trainer.train()
    with caplog.at_level(logging.WARNING):
        trainer.save_model(str(tmp_path / "saved"))
    assert "'model.embed_tokens.weight' of the model is NaN or infinite: training has diverged" in caplog.text
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    assert len(loaded.model.layers) == 4 and loaded.lm_head.weight.isnan().all()
    quality = TrimHistory.load(tmp_path / "saved").measured(4).quality["eval"]
    # Who returns no numbers answers nothing.
    assert math.isnan(quality.loss) and quality.accuracy == quality.macro_f1 == 0


def test_the_best_model_is_the_one_from_before(make_trainer):
    trainer = make_trainer(
        **ASKED,
        eval_dataset=Dataset.from_list(make_examples(4, 900)),
        callbacks=[Diverge(9)],
        save_strategy="steps",
        eval_strategy="steps",
        save_steps=4,
        eval_steps=4,
        load_best_model_at_end=True,
        metric_for_best_model="eval_accuracy",
    )
    trainer.train()
    assert trainer.state.best_global_step <= 8
    assert all(parameter.isfinite().all() for parameter in trainer.model.parameters())


@pytest.mark.parametrize("step", [4, 9], ids=["before a drop", "behind the last"])
def test_a_quality_floor_brings_back_what_came_before(step, make_trainer):
    trainer = make_trainer(**ASKED, max_metric_drop=0.5, calibration_metric="loss", callbacks=[Diverge(step)])
    trainer.train()
    assert "loss on the calibration set was nan" in trainer.history.stopped
    assert trainer.history.depth == (6 if step == 4 else 5)
    assert all(parameter.isfinite().all() for parameter in trainer.model.parameters())


def test_what_overflows_is_told_from_what_diverged(make_trainer):
    model = make_model().half()
    with torch.no_grad():
        model.model.norm.weight.fill_(6e4)
    trainer = make_trainer(model=model, **ASKED | {"compensation_size": 0}, learning_rate=0.0)
    with pytest.raises(
        DivergedError, match="its weights are finite, so that what they are multiplied with overflows in float16"
    ):
        trainer.train()


def test_16_bits_that_overflow_where_the_run_does_not_compute_in_them_are_no_reason_to_refuse_it(make_trainer):
    model = make_model().half()
    with torch.no_grad():
        model.model.layers[2].mlp.up_proj.weight.mul_(2e5)
        model.model.layers[2].mlp.down_proj.weight.div_(2e4)
    trainer = make_trainer(model=model, **ASKED | {"compensation_size": None}, bf16=True, learning_rate=0.0)
    assert trainer.compensation_size == 0
    trainer.train()
    assert trainer.history.depth == 4


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_checkpoint_of_it_verifies_and_another_one_does_not(value, tmp_path):
    model = make_model()
    with torch.no_grad():
        model.model.embed_tokens.weight[7, 3] = value
        model.model.layers[1].mlp.up_proj.weight[2] = value
    model.save_pretrained(tmp_path)
    verify_checkpoint(tmp_path, model)
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[3, 0] = value
    with pytest.raises(VerificationError, match=r"model\.layers\.1\.mlp\.up_proj\.weight"):
        verify_checkpoint(tmp_path, model)
