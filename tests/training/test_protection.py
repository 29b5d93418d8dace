"""The first third stays where nothing else is said, and never so much of it that a target is out of reach."""

import pytest
from transformers import LlamaConfig

from trim_trainer.training import protection
from trim_trainer.training.protection import choose_protected_layers


def own(calibration):
    """A criterion of the user's."""


@pytest.mark.parametrize(
    ("depth", "target", "number"),
    [(30, 20, 10), (30, 12, 10), (30, 8, 6), (32, 16, 10), (6, 3, 2), (6, 1, 0), (2, 1, 0)],
)
def test_the_first_third_stays_and_less_of_a_deep_cut(depth, target, number):
    config = LlamaConfig(num_hidden_layers=depth)
    assert choose_protected_layers(None, "late_sensitivity", config, depth, target) == tuple(range(number))


@pytest.mark.parametrize("criterion", ["sensitivity", "tail", "random", "block_influence", own])
def test_other_criteria_choose_among_all(criterion):
    assert choose_protected_layers(None, criterion, LlamaConfig(num_hidden_layers=30), 30, 15) == ()


def test_what_is_named_stays_and_nothing_else():
    config = LlamaConfig(num_hidden_layers=30)
    assert choose_protected_layers([7, 2], "late_sensitivity", config, 30, 15) == (2, 7)
    assert choose_protected_layers([], "late_sensitivity", config, 30, 15) == ()


def test_where_only_first_layers_can_go_they_may(monkeypatch):
    def first_four(model, chosen=()):
        return [layer for layer in range(4) if layer not in chosen]

    monkeypatch.setattr(protection, "droppable_layers", first_four)
    config = LlamaConfig(num_hidden_layers=12)
    assert choose_protected_layers(None, "late_sensitivity", config, 12, 9) == (0,)


def test_a_run_keeps_the_first_third(make_trainer):
    trainer = make_trainer(target_layers=2, protected_layers=None, compensation_size=0)
    assert trainer.trimming.settings.protected_layers == (0,)
    trainer = make_trainer(target_layers=3, protected_layers=None, output_dir="again")
    trainer.train()
    assert trainer.history.kept[:2] == (0, 1)
    assert all(entry.num_examples[:2] == (0, 0) for entry in trainer.history.drops)
