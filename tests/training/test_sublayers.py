"""A run whose unit is two neighbouring halves: what goes, what is written down, and how it is come back to."""

import json

import pytest
import torch
from peft import LoraConfig
from tiny import make_model
from transformers import AutoModelForCausalLM

from trim_trainer import TrimHistory
from trim_trainer.architectures.modules import find_layers

FIELDS = {"trim_unit": "sublayer", "importance": "sensitivity", "layers_per_trim": 1}


def seams_of(history):
    return [each for each in history.dropped if isinstance(each, tuple)]


def test_a_run_drops_halves_that_hurt_least_and_leaves_a_standard_checkpoint(make_trainer, tmp_path):
    trainer = make_trainer(**FIELDS, target_layers=3)
    trainer.train()
    trainer.save_model()
    history = TrimHistory.load(tmp_path / "out")
    assert history == trainer.history and history.depth == 3 and seams_of(history)
    for a_round in history.drops:
        (dropped,) = a_round.dropped
        scores = [*a_round.scores, *a_round.seam_scores]
        assert len(scores) == 2 * len(a_round.layers) - 1
        assert a_round.score_of(dropped) == min(scores)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert loaded.config.num_hidden_layers == 3
    ids = torch.arange(3, 29).view(2, 13)
    with torch.no_grad():
        assert torch.equal(loaded(ids).logits, trainer.model.eval()(ids).logits)
    card = (tmp_path / "out" / "README.md").read_text()
    for first, second in (*seams_of(history), *history.joined):
        assert f"{first} | {second}" in card
    assert "with the attention half of the first and the MLP half of the second" in card or not history.joined
