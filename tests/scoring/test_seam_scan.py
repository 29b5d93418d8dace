"""Seams scored in one pass, against models whose layers are really joined."""

import copy

import pytest
import torch
import zoo
from drawn import draw_examples
from seams import drop
from tiny import CONFIGS, make_model
from torch.testing import assert_close

from trim_trainer import drop_layers
from trim_trainer.architectures.droppable import droppable_cuts
from trim_trainer.architectures.kept import Seam
from trim_trainer.recovery.compensation import compensated
from trim_trainer.scoring.layout import ONE_BY_ONE, Layout
from trim_trainer.scoring.scan import scan_layers, score_choices
from trim_trainer.scoring.solutions import solve_takeovers
from trim_trainer.scoring.trial import choose_layout


@pytest.mark.parametrize(
    "name", [*CONFIGS, "mixtral", "qwen3_moe", "olmo2", "granite", "gpt_oss", "jamba", "lfm2", "bloom"]
)
def test_a_seam_scores_as_if_its_layers_were_joined(name):
    model = make_model(name) if name in CONFIGS else zoo.make(name)
    examples, cuts = draw_examples(5), list(droppable_cuts(model, with_seams=True))
    scan = scan_layers(model, examples, choose_layout(model, examples, with_seams=True), candidates=cuts)
    for place, cut in enumerate(cuts, start=1):
        truth = score_choices(drop(model, [cut]), examples, ONE_BY_ONE)
        assert_close(scan.log_probs[place], truth, atol=1e-4, rtol=1e-5)


def test_some_candidates_are_scored_without_the_others():
    model, examples = make_model(), draw_examples(5)
    some = scan_layers(model, examples, Layout(True, True), candidates=[Seam(0), 2, Seam(2), Seam(3), 5]).log_probs
    every = scan_layers(
        model, examples, Layout(True, True), candidates=droppable_cuts(model, with_seams=True)
    ).log_probs
    assert_close(some, every[[0, 2, 5, 6, 8, 11]], atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize(
    ("model_type", "layout"),
    [
        ("llama", Layout(True, True)),
        ("gpt2", Layout(False, False)),
        ("smollm3", Layout(False, True)),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in [
                ("llama", Layout(False, True)), ("llama", Layout(False, False)), ("gpt2", Layout(True, True)),
                ("gpt2", Layout(False, True)), ("smollm3", Layout(True, True)), ("smollm3", Layout(False, False)),
            ]
        ),
    ],
    ids=str,
)  # fmt: skip
def test_a_seam_scores_as_if_its_layers_were_joined_and_compensated_for(model_type, layout):
    model, examples = make_model(model_type), draw_examples(12)
    cuts = list(droppable_cuts(model, with_seams=True))
    takeovers = solve_takeovers(model, cuts, examples)
    assert set(takeovers) == set(cuts) - {0}
    plain = scan_layers(model, examples, layout, candidates=cuts)
    solved = scan_layers(model, examples, layout, candidates=cuts, takeovers=takeovers)
    for place, cut in enumerate(cuts, start=1):
        trimmed = drop(model, [cut])
        truth = score_choices(trimmed, examples, ONE_BY_ONE)
        assert_close(plain.log_probs[place], truth, atol=1e-4, rtol=1e-5)
        trimmed = copy.deepcopy(model)
        with compensated(trimmed, [cut], examples):
            seams = [(cut.front, cut.back)] if isinstance(cut, Seam) else []
            drop_layers(trimmed, [] if seams else [cut], seams)
        truth = score_choices(trimmed, examples, ONE_BY_ONE)
        assert_close(solved.log_probs[place], truth, atol=2e-3, rtol=1e-4)


def test_gaps_at_seams_are_closed_one_after_the_other():
    model, examples = make_model("llama"), draw_examples(12)
    cuts = [Seam(0), 2, Seam(3), Seam(4)]
    tokens = torch.tensor([examples[0].prompt_ids])
    with torch.no_grad():
        whole = model(tokens, output_hidden_states=True).hidden_states[-1]
        plain = drop(model, cuts)(tokens, output_hidden_states=True).hidden_states[-1]
        trimmed = copy.deepcopy(model)
        with compensated(trimmed, cuts, examples):
            drop_layers(trimmed, [2], [(0, 1), (3, 4), (4, 5)])
        closed = trimmed(tokens, output_hidden_states=True).hidden_states[-1]
    assert (closed - whole).norm() < 0.9 * (plain - whole).norm()
