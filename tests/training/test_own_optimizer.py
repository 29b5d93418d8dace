"""An optimizer that the script brings: what it holds, and in which of its groups, stays as its maker wanted it."""

import pytest
import torch
from tiny import make_model

from trim_trainer import TrimTrainer
from trim_trainer.architectures.modules import find_layers
from trim_trainer.surgery.optimizer import ParameterGroups, sync_optimizer
from trim_trainer.training.sparse_update import freeze_all_but


def rate_by_layer(model, lowest=1e-3):
    """A group of each layer, with a rate of its own, and one of the rest."""
    layers = find_layers(model)
    groups = [{"params": list(layer.parameters()), "lr": lowest * (i + 1)} for i, layer in enumerate(layers)]
    inside = {parameter for group in groups for parameter in group["params"]}
    return torch.optim.AdamW([*groups, {"params": [p for p in model.parameters() if p not in inside], "lr": 1e-4}])


def rates(optimizer):
    """The learning rate of each parameter."""
    return {parameter: group["initial_lr"] for group in optimizer.param_groups for parameter in group["params"]}


@pytest.mark.parametrize("update", [None, 0.3], ids=["all", "sparse"])
def test_what_it_leaves_out_never_trains(make_trainer, update):
    model = make_model()
    left_out = [p for name, p in model.named_parameters() if p.ndim != 2 or "embed" in name or "lm_head" in name]
    values = [p.detach().clone() for p in left_out]
    held = [p for p in model.parameters() if p not in set(left_out)]
    optimizer = torch.optim.Muon(held, lr=1e-2)  # takes matrices only
    trainer = make_trainer(model=model, target_layers=3, sparse_update_ratio=update, optimizers=(optimizer, None))
    before = [p.detach().clone() for p in held]
    trainer.train()
    assert trainer.model.config.num_hidden_layers == 3
    assert all(torch.equal(p, value) for p, value in zip(left_out, values, strict=True))
    assert any(not torch.equal(p, value) for p, value in zip(held, before, strict=True))
    there = set(trainer.model.parameters())
    assert set(rates(trainer.optimizer)) <= {p for p in held if p in there}
    assert len(rates(trainer.optimizer)) == 7 * (3 if update is None else 2)  # matrices of the layers that train


def test_each_layer_keeps_its_rate(make_trainer):
    model = make_model()
    optimizer = rate_by_layer(model)
    rate_of = {p: group["lr"] for group in optimizer.param_groups for p in group["params"]}
    trainer = make_trainer(model=model, target_layers=3, sparse_update_ratio=None, optimizers=(optimizer, None))
    trainer.train()
    there = set(trainer.model.parameters())
    assert rates(trainer.optimizer) == {p: rate for p, rate in rate_of.items() if p in there}


def test_a_layer_that_comes_back_has_its_rate_again(make_trainer):
    model = make_model()
    optimizer = rate_by_layer(model, lowest=1.0)  # so high that the model gets worse
    rate_of = {p: group["lr"] for group in optimizer.param_groups for p in group["params"]}
    settings = {"target_layers": 3, "sparse_update_ratio": None, "max_metric_drop": 0.0, "calibration_metric": "loss"}
    trainer = make_trainer(model=model, optimizers=(optimizer, None), **settings)
    trainer.train()
    assert "was restored" in trainer.history.stopped
    assert rates(trainer.optimizer) == {p: rate_of[p] for p in trainer.model.parameters()}


def test_a_layer_that_was_frozen_trains_in_its_group_again():
    model = make_model()
    optimizer = rate_by_layer(model)
    group_of = {p: number for number, group in enumerate(optimizer.param_groups) for p in group["params"]}
    groups = ParameterGroups(lambda: [])
    groups.leave_out(optimizer, model)
    for trained in ([1], [0, 4]):
        freeze_all_but(model, trained)
        sync_optimizer(optimizer, model, groups)
    held = {p: number for number, group in enumerate(optimizer.param_groups) for p in group["params"]}
    layers = find_layers(model)
    assert held == {p: group_of[p] for number in (0, 4) for p in layers[number].parameters()}


def test_what_a_create_optimizer_leaves_out_never_trains(make_trainer):
    class Own(TrimTrainer):
        def create_optimizer(self, model=None):
            if self.optimizer is None:
                trained = [weight for name, weight in self.model.named_parameters() if "mlp" in name]
                self.optimizer = torch.optim.AdamW(trained, lr=1e-2)
            return self.optimizer

    trainer = make_trainer(Own, target_layers=4, max_steps=6, trim_steps=2, sparse_update_ratio=None)
    before = trainer.model.model.embed_tokens.weight.detach().clone()
    trainer.train()
    assert trainer.history.depth == 4
    assert torch.equal(trainer.model.model.embed_tokens.weight, before)
