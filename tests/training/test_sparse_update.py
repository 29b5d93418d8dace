"""What a script has frozen stays frozen in a sparse update, and what the update freezes trains again behind the run."""

import pytest
import torch
from tiny import make_model

from trim_trainer.architectures.modules import find_layers


def flags(model):
    return {name: parameter.requires_grad for name, parameter in model.named_parameters()}


def test_what_the_script_froze_never_trains(make_trainer):
    model = make_model()
    frozen = [layer.self_attn.q_proj.weight for layer in find_layers(model)] + [model.model.norm.weight]
    for parameter in frozen:
        parameter.requires_grad_(False)
    values = [parameter.detach().clone() for parameter in frozen]
    trainer = make_trainer(model=model, target_layers=3, sparse_update_ratio=0.5)
    trainer.train()
    assert all(torch.equal(p, value) for p, value in zip(frozen, values, strict=True))
    assert {name for name, trains in flags(model).items() if not trains} == {
        "model.norm.weight", *(f"model.layers.{number}.self_attn.q_proj.weight" for number in range(3))
    }  # fmt: skip


def test_what_is_frozen_behind_the_making_of_the_trainer_never_trains(make_trainer):
    trainer = make_trainer(target_layers=3, sparse_update_ratio=0.5)
    frozen = [layer.mlp.gate_proj.weight for layer in find_layers(trainer.model)]
    for parameter in frozen:
        parameter.requires_grad_(False)
    values = [parameter.detach().clone() for parameter in frozen]
    trainer.train()
    assert all(torch.equal(p, value) for p, value in zip(frozen, values, strict=True))


@pytest.mark.parametrize("breaks", [False, True], ids=["to the end", "broken off"])
def test_behind_the_run_everything_trains_again(make_trainer, breaks):
    model = make_model()
    trainer = make_trainer(model=model, target_layers=3, sparse_update_ratio=0.5)
    if breaks:
        step = trainer.training_step

        def fail_late(*args, **kwargs):
            assert trainer.state.global_step < 6, "out of memory"
            assert not all(flags(model).values())
            return step(*args, **kwargs)

        trainer.training_step = fail_late
        with pytest.raises(AssertionError, match="out of memory"):
            trainer.train()
    else:
        trainer.train()
    assert all(flags(model).values())
    after = make_trainer(model=model, target_layers=2, sparse_update_ratio=None, output_dir="after")
    head = model.lm_head.weight.detach().clone()
    after.train()
    assert not torch.equal(model.lm_head.weight, head)
