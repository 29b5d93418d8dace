"""Left alone, a run compensates where the weights of layers that stay can be solved for, and says why where they cannot."""

import logging

import pytest
from peft import LoraConfig
from tiny import make_model

from trim_trainer.training.compensating import COMPENSATION_SIZE


@pytest.fixture
def chosen(make_trainer, caplog):
    """Returns a function that makes a trainer, and returns its number of examples and what it says about it."""

    def choose(**fields):
        with caplog.at_level(logging.INFO, "trim_trainer"):
            trainer = make_trainer(**({"target_layers": 4, "compensation_size": None} | fields))
        assert trainer.history.compensation_size == trainer.compensation_size
        return trainer.compensation_size, caplog.text

    return choose


def test_layers_take_over_where_they_can(make_trainer):
    trainer = make_trainer(target_layers=4, compensation_size=None)
    assert trainer.compensation_size == COMPENSATION_SIZE
    trainer.train()
    assert trainer.history.depth == 4 and trainer.history.compensation_size == COMPENSATION_SIZE
    assert len(trainer.compensation.examples) == 64  # the training set has no more


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"peft_config": LoraConfig(target_modules=["q_proj"])}, "with a PEFT adapter"),
        ({"optim": "schedule_free_adamw"}, "with `optim`"),
        (
            {"model": "gemma3_text"},
            "because Layer 0 of Gemma3ForCausalLM has no linear map",
        ),  # a norm stands behind it
    ],
)
def test_where_they_cannot_the_run_goes_on_without(fields, why, chosen):
    if "model" in fields:
        fields = fields | {"model": make_model(fields["model"])}
    size, said = chosen(**fields)
    assert size == 0
    assert f"No layer takes over what dropped ones added, {why}" in said


def test_what_is_asked_for_is_done_or_refused(chosen):
    assert chosen(compensation_size=8)[0] == 8
    assert chosen(compensation_size=0) == (0, "")
    with pytest.raises(ValueError, match="`compensation_size` is 8, with a PEFT adapter.*Set it to 0"):
        chosen(compensation_size=8, peft_config=LoraConfig(target_modules=["q_proj"]))
