"""The rate rises as layers go."""

import logging

import pytest
import torch
from peft import LoraConfig
from tiny import make_model
from transformers import TrainerCallback
from trl import SFTConfig, SFTTrainer

from trim_trainer.architectures.modules import find_layers

SETTINGS = {"target_layers": 3, "trim_steps": 3, "layers_per_trim": 1, "importance": "tail", "max_steps": 12}


class Rates(TrainerCallback):
    """The rate with which each step was taken, and the depth that took it."""

    def __init__(self):
        self.seen = []

    def on_pre_optimizer_step(self, args, state, control, model=None, optimizer=None, **kwargs):
        self.seen.append((optimizer.param_groups[0]["lr"], len(find_layers(model))))


def rates_of(trainer, **resumed):
    rates = Rates()
    trainer.add_callback(rates)
    trainer.train(**resumed)
    return rates.seen


def usual_rates(make_trainer, schedule):
    fields = {"max_steps": 12, "lr_scheduler_type": schedule, "warmup_steps": 2}
    return [rate for rate, _ in rates_of(make_trainer(SFTTrainer, SFTConfig, output_dir="usual", **fields))]


@pytest.mark.parametrize(
    "schedule",
    ["cosine", *(pytest.param(name, marks=pytest.mark.slow) for name in ("linear", "constant_with_warmup"))],
)
def test_the_rate_is_that_of_full_depth_times_the_layers_that_were_over_those_that_are_left(make_trainer, schedule):
    usual = usual_rates(make_trainer, schedule)
    seen = rates_of(make_trainer(**SETTINGS, lr_scheduler_type=schedule, warmup_steps=2))
    assert [depth for _, depth in seen] == [6] * 3 + [5] * 3 + [4] * 3 + [3] * 3
    before = [6, *(depth for _, depth in seen)]  # the rate of a step is set at the end of the one before it
    assert [rate for rate, _ in seen] == pytest.approx(
        [rate * 6 / depth for rate, depth in zip(usual, before, strict=False)]
    )


def test_it_stays_that_of_full_depth_if_asked_to(make_trainer):
    seen = rates_of(make_trainer(**SETTINGS, lr_scheduler_type="linear", warmup_steps=2, scale_learning_rate=False))
    assert [rate for rate, _ in seen] == usual_rates(make_trainer, "linear")


@pytest.mark.parametrize(
    ("model_type", "fields", "factor"),
    [
        ("llama", {"peft_config": LoraConfig(target_modules="all-linear")}, 2),
        ("llama", {"compensation_size": 0}, 2),
        ("gemma3_text", {}, 1),  # a norm stands behind what a layer adds
        ("gpt2", {}, 2),
        ("gemma3_text", {"scale_learning_rate": True}, 2),
    ],
)
def test_left_open_it_rises_where_what_a_layer_adds_reaches_the_state_as_it_is(
    model_type, fields, factor, make_trainer, caplog
):
    fields = {"lr_scheduler_type": "constant", "learning_rate": 1e-4} | fields
    with caplog.at_level(logging.INFO, "trim_trainer"):
        seen = rates_of(make_trainer(model=make_model(model_type), **SETTINGS, **fields))
    assert (seen[0], seen[-1]) == ((1e-4, 6), (pytest.approx(factor * 1e-4), 3))
    assert ("The learning rate stays as it is" in caplog.text) == (factor == 1)


def test_a_resumed_run_has_the_rates_of_one_that_was_not_stopped(make_trainer, tmp_path):
    fields = SETTINGS | {"save_strategy": "steps", "save_steps": 5}
    straight = rates_of(make_trainer(**fields))
    resumed = rates_of(make_trainer(**fields), resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-5"))
    assert resumed == straight[5:]


def test_a_schedule_of_the_script_stays_its_own(make_trainer):
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.25)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    seen = rates_of(make_trainer(model=model, optimizers=(optimizer, scheduler), **SETTINGS))
    assert [rate for rate, _ in seen] == [0.25] * 12


def test_a_schedule_that_follows_the_loss_stays_as_it_is(make_trainer, caplog):
    fields = {"lr_scheduler_type": "reduce_lr_on_plateau", "eval_strategy": "steps", "eval_steps": 4}
    seen = rates_of(make_trainer(**SETTINGS, **fields))
    assert "`scale_learning_rate` does nothing with ReduceLROnPlateau" in caplog.text
    assert {depth for _, depth in seen} == {6, 5, 4, 3}
