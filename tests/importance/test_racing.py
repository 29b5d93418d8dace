import random

import pytest
import torch
from drawn import draw_examples
from tiny import make_examples, make_model

from trim_trainer.data.metrics import measure
from trim_trainer.data.tokens import tokenize_examples
from trim_trainer.importance.calibration import Settings
from trim_trainer.importance.choice import choose_layers
from trim_trainer.importance.racing import example_harms, race, stage_ends, survivors, t_quantile
from trim_trainer.importance.scores import calibrate
from trim_trainer.scoring.scan import LayerScan
from trim_trainer.scoring.trial import choose_layout


def fake_scan(harms, examples, counted):
    """A scan whose log-probabilities cost `harms[layer][example]` nats, and that counts what it was asked."""
    numbers = {id(example): number for number, example in enumerate(examples)}

    def scan(part, candidates):
        counted.append((len(part), tuple(candidates)))
        columns = [numbers[id(example)] for example in part for _ in example.choice_ids]
        base = torch.zeros(1, len(columns))
        return LayerScan(torch.cat([base, -harms[candidates][:, columns]]), torch.ones(len(harms)))

    return scan


def test_stages_double():
    assert stage_ends(50) == [8, 13, 25, 50]
    assert stage_ends(400) == [50, 100, 200, 400]
    assert stage_ends(8) == [8]
    assert stage_ends(5) == [5]


def test_the_clearly_worse_stop_early_and_the_best_is_found():
    examples, counted = draw_examples(48), []
    generator = torch.Generator().manual_seed(0)
    harms = torch.randn(6, 48, generator=generator) * 0.3 + torch.tensor([5.0, 0.1, 4.0, 0.0, 3.0, 2.0])[:, None]
    found = race(fake_scan(harms, examples, counted), examples, "loss", range(6), 1, 0.95)
    assert [number for number, _ in counted] == [8, 4, 12, 24]
    assert counted[0][1] == (0, 1, 2, 3, 4, 5)
    assert set(counted[1][1]) <= {1, 3}  # the others were nats worse on each of eight examples
    assert found.num_examples.tolist()[0] == 8 and found.num_examples[3] == 48
    assert found.log_probs.shape == (48 * 4,)


def test_at_least_as_many_stay_as_are_to_be_chosen():
    harms = torch.stack([torch.full((10,), float(layer)) + torch.randn(10) * 1e-3 for layer in range(6)])
    assert survivors(harms, list(range(6)), "loss", 3, 0.95)[:3] == [0, 1, 2]
    assert survivors(harms, [2, 4, 5], "loss", 1, 0.95) == [2]


def test_without_doubt_a_race_is_the_full_scan(tokenizer):
    """At a confidence that nothing reaches no candidate stops, and all scores are those of the scan."""
    model, examples = make_model(), tokenize_examples(make_examples(20), tokenizer)
    layout = choose_layout(model, examples)
    for metric in ("loss", "accuracy"):
        full = calibrate(model, examples, "sensitivity", Settings(metric, layout))
        raced = calibrate(model, examples, "sensitivity", Settings(metric, layout, racing_confidence=1 - 1e-12))
        assert raced.num_examples == (20,) * 6
        assert raced.scores == pytest.approx(full.scores, abs=1e-5)
        assert raced.metric == pytest.approx(full.metric, abs=1e-5)
        assert raced.activation_norms == pytest.approx(full.activation_norms, rel=1e-4)


def test_protected_layers_do_not_race(tokenizer):
    model, examples = make_model(), tokenize_examples(make_examples(20), tokenizer)
    settings = Settings("loss", choose_layout(model, examples), racing_confidence=0.9)
    scored = calibrate(model, examples, "sensitivity", settings, candidates=[1, 2, 4])
    assert [scored.num_examples[layer] for layer in (0, 3, 5)] == [0, 0, 0]
    assert scored.scores[0] == max(scored.scores)
    (chosen,) = choose_layers(scored, "sensitivity", 1, lambda chosen: {1, 2, 4} - set(chosen))
    assert scored.num_examples[chosen] == 20


def test_harms_sum_to_the_metric():
    examples = draw_examples(11)
    generator = torch.Generator().manual_seed(1)
    log_probs = -torch.rand(4, 44, generator=generator) * 10
    for metric, sign in (("accuracy", -1), ("loss", 1)):
        values = measure(log_probs, examples, metric)
        harms = example_harms(log_probs, examples, metric)
        weights = 11 if metric == "accuracy" else sum(len(e.choice_ids[e.answer]) for e in examples)
        torch.testing.assert_close(harms.sum(1) / weights, sign * (values[1:] - values[0]))


def test_the_quantile_is_that_of_the_t_distribution():
    # Tables of Student's t: one-sided 95 % and 99 % at 7, 12 and 49 degrees of freedom.
    for confidence, degrees, expected in [(0.95, 7, 1.895), (0.95, 12, 1.782), (0.99, 12, 2.681), (0.95, 49, 1.677)]:
        assert t_quantile(confidence, degrees) == pytest.approx(expected, abs=0.02)


def test_a_race_is_repeatable():
    examples = draw_examples(40)
    harms = torch.randn(6, 40, generator=torch.Generator().manual_seed(2))
    runs = [race(fake_scan(harms, examples, []), examples, "loss", range(6), 1, 0.9, seed=s) for s in (3, 3)]
    assert torch.equal(runs[0].num_examples, runs[1].num_examples)
    assert random.random() != random.random()  # the race drew from a generator of its own
