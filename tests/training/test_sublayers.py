"""A run whose unit is two neighbouring halves: what goes, what is written down, and how it is come back to."""

import re

import pytest
import torch
import zoo
from peft import LoraConfig
from transformers import AutoModelForCausalLM

from trim_trainer import TrimHistory
from trim_trainer.architectures.errors import UnsupportedArchitectureError
from trim_trainer.architectures.modules import find_layers

IDS = torch.arange(3, 29).view(2, 13)
FIELDS = {"trim_unit": "sublayer", "importance": "sensitivity", "calibration_metric": "loss", "layers_per_trim": 1}


@pytest.fixture
def trainer_of(make_trainer):
    """Makes a trainer of a run whose unit is the sublayer; `first_seam`: of which the first seam goes each time."""

    def make(first_seam=False, **fields):
        trainer = make_trainer(**({"target_layers": 3, "sparse_update_ratio": None} | FIELDS | fields))
        if first_seam:
            trainer.trimming.criterion = score_first_seam_lowest
        return trainer

    return make


def score_first_seam_lowest(calibration):
    return torch.tensor([float(number != 1) for number in range(len(calibration.cuts))])


def seams_of(history):
    return [each for each in history.dropped if isinstance(each, tuple)]


@torch.no_grad()
def logits(model):
    return model.eval()(IDS).logits


def test_what_hurts_least_goes_be_it_a_layer_or_a_seam(trainer_of, tmp_path):
    trainer = trainer_of()
    trainer.train()
    trainer.save_model()
    history = TrimHistory.load(tmp_path / "run")
    assert history == trainer.history and history.depth == 3 and seams_of(history)
    for a_round in history.drops:
        (dropped,) = a_round.dropped
        scores = [*a_round.scores, *a_round.seam_scores]
        assert len(scores) == 2 * len(a_round.layers) - 1
        assert a_round.score_of(dropped) == min(scores)
        assert a_round.metric_after == pytest.approx(a_round.metric + min(scores), abs=1e-4)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "run")
    assert loaded.config.num_hidden_layers == 3
    assert torch.equal(logits(loaded), logits(trainer.model))
    assert (tmp_path / "run" / "trim_importance.png").is_file()


def test_the_card_says_which_halves_went_and_which_are_left(trainer_of, tmp_path):
    trainer = trainer_of(first_seam=True, target_layers=4)
    trainer.train()
    trainer.save_model()
    assert trainer.history.dropped == ((0, 1), (1, 2))
    card = re.sub(r"\s+", " ", (tmp_path / "run" / "README.md").read_text())
    assert "Layers kept: 0 | 2, 3, 4, 5. Each pair is one layer, with the attention half of the first" in card
    assert "| 0 &#124; 1 |" in card and "| 1 &#124; 2 |" in card  # in a table


def test_everything_that_protects_a_layer_protects_both_of_its_halves(trainer_of):
    trainer = trainer_of(protected_layers=[1, 3], target_layers=2)
    trainer.train()
    assert {(1, 1), (3, 3)} == set(trainer.history.halves)
    assert not {1, 3} & {layer for seam in seams_of(trainer.history) for layer in seam}


def test_several_that_go_at_once_share_no_half(trainer_of):
    trainer = trainer_of(layers_per_trim=4, target_layers=2)
    trainer.train()
    (a_round,) = trainer.history.drops
    assert len(a_round.dropped) == 4 and len(trainer.history.halves) == len(find_layers(trainer.model)) == 2


@pytest.mark.parametrize(
    "fields",
    [
        pytest.param({"sparse_update_ratio": 0.5}, id="sparse"),
        pytest.param({}, id="all", marks=pytest.mark.slow),
        pytest.param({"compensation_size": 8}, id="compensated", marks=pytest.mark.slow),
        pytest.param({"peft_config": LoraConfig(r=4)}, id="lora", marks=pytest.mark.slow),
    ],
)
def test_a_resumed_run_ends_like_one_that_was_not_stopped(fields, trainer_of, tmp_path):
    fields = {"save_strategy": "steps", "save_steps": 2, "trim_steps": 2, "max_steps": 8, "first_seam": True} | fields
    whole = trainer_of(**fields, output_dir="whole")
    whole.train()
    assert whole.history.dropped == ((0, 1), (1, 2), (2, 3))
    trainer_of(**fields).train()
    for step in (2, 4):
        resumed = trainer_of(**fields)
        resumed.train(resume_from_checkpoint=str(tmp_path / "run" / f"checkpoint-{step}"))
        assert resumed.history.dropped == whole.history.dropped
        assert resumed.history.halves == whole.history.halves
        for name, tensor in whole.model.state_dict().items():
            assert torch.equal(resumed.model.state_dict()[name], tensor), (step, name)


def test_the_best_model_may_have_halves_that_have_gone_since(trainer_of):
    trainer = trainer_of(
        first_seam=True, load_best_model_at_end=True, eval_strategy="steps", eval_steps=2, save_strategy="steps", save_steps=2, trim_steps=4,
        metric_for_best_model="eval_loss", greater_is_better=True,  # the worst, which is an early one
    )  # fmt: skip
    trainer.train()
    assert trainer.history.depth > 3 and len(find_layers(trainer.model)) == trainer.history.depth
    best = AutoModelForCausalLM.from_pretrained(trainer.state.best_model_checkpoint)
    assert torch.equal(logits(best), logits(trainer.model))


def test_the_quality_floor_brings_halves_back(trainer_of):
    trainer = trainer_of(first_seam=True, max_metric_drop=0.0, trim_steps=2, learning_rate=0.5)
    trainer.train()
    assert trainer.history.stopped and trainer.history.depth > 3
    assert len(find_layers(trainer.model)) == trainer.history.depth


def test_depths_on_the_way_are_healed_and_load(trainer_of, tmp_path):
    trainer = trainer_of(first_seam=True, save_depths=[5, 4])
    trainer.train()
    for depth in (5, 4):
        folder = tmp_path / "run" / f"depth-{depth}"
        loaded, history = AutoModelForCausalLM.from_pretrained(folder), TrimHistory.load(folder)
        assert loaded.config.num_hidden_layers == history.depth == depth
        assert history.dropped == trainer.history.dropped[: 6 - depth]


def test_what_cannot_be_is_refused_before_training(trainer_of):
    with pytest.raises(
        ValueError, match="`trim_unit` is 'sublayer', but `importance` is 'tail', which scores whole layers"
    ):
        trainer_of(importance="tail")
    with pytest.raises(ValueError, match="`trim_unit` is 'half', expected one of layer, sublayer"):
        trainer_of(trim_unit="half")
    with pytest.raises(UnsupportedArchitectureError, match="'gpt_neox'.*side by side.*Drop whole layers"):
        trainer_of(model=zoo.make("gpt_neox"))


def test_a_criterion_of_the_users_own_scores_layers_and_seams(trainer_of):
    trainer = trainer_of(first_seam=True)
    trainer.train()
    assert trainer.history.dropped == ((0, 1), (1, 2), (2, 3)) and trainer.history.joined == ((0, 3),)
    trainer = trainer_of()
    trainer.trimming.criterion = lambda calibration: torch.zeros(calibration.num_layers)
    with pytest.raises(ValueError, match="expected 11 finite numbers, one per layer and one per seam between two"):
        trainer.train()


def test_seams_go_in_a_race(trainer_of):
    trainer = trainer_of(racing_confidence=0.6, calibration_size=24)
    trainer.train()
    counts = [
        count for a_round in trainer.history.drops for count in (*a_round.num_examples, *a_round.seam_num_examples)
    ]
    assert len(set(counts)) > 1


def test_another_unit_is_not_gone_on_with(trainer_of, tmp_path):
    trainer_of(save_strategy="steps", save_steps=2).train()
    with pytest.raises(ValueError, match="`trim_unit` is 'layer', but the checkpoint.*is of a run with 'sublayer'"):
        trainer_of(trim_unit="layer").train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-2"))
