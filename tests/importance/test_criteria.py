import pytest
import torch
from tiny import make_examples, make_model
from torch.testing import assert_close

from trim_trainer import CRITERIA, Calibration, drop_layers, score_layers
from trim_trainer.data.tokens import tokenize_examples
from trim_trainer.importance import calibration
from trim_trainer.importance.calibration import Settings
from trim_trainer.importance.choice import choose_layers
from trim_trainer.importance.racing import find_contenders
from trim_trainer.importance.scores import LayerScores, calibrate
from trim_trainer.scoring.trial import choose_layout
from trim_trainer.surgery.optimizer import ParameterGroups, sync_optimizer
from trim_trainer.training.sparse_update import choose_trained_layers, freeze_all_but


@pytest.mark.parametrize("criterion", CRITERIA)
def test_every_criterion_scores_every_layer_and_is_repeatable(criterion, tiny_model, tokenizer):
    model, examples = tiny_model(), make_examples(6)
    scores = score_layers(model, tokenizer, examples, criterion)
    assert len(scores) == 6
    assert scores == score_layers(model, tokenizer, examples, criterion)


def test_sensitivity_by_loss_is_the_loss_that_the_drop_costs(tokenizer):
    examples = make_examples(6)

    def loss(model):
        rows = [tokenizer(e["prompt"] + e["completion"] + "</s>", return_tensors="pt")["input_ids"] for e in examples]
        with torch.no_grad():
            parts = [model(row).logits[0, -3:-1].log_softmax(-1).gather(1, row[0, -2:, None]) for row in rows]
        return -torch.cat(parts).mean()

    scores = score_layers(make_model(), tokenizer, examples, "sensitivity", metric="loss")
    full = loss(make_model())
    for layer in (0, 3, 5):
        assert_close(torch.tensor(scores[layer]), loss(drop_layers(make_model(), [layer])) - full, atol=1e-4, rtol=0)


@pytest.mark.parametrize("metric", ["loss", "accuracy"])
@pytest.mark.parametrize("confidence", [None, 0.95])
@pytest.mark.parametrize("criterion", ["sensitivity", "late_sensitivity"])
def test_a_layer_without_which_the_model_returns_no_numbers_stays(
    criterion, confidence, metric, tokenizer, monkeypatch
):
    scan = calibration.scan_layers

    def overflowing(model, examples, layout, batch_tokens, candidates, **options):
        found = scan(model, examples, layout, batch_tokens, candidates, **options)
        if 5 in candidates:
            found.log_probs[1 + candidates.index(5)] = torch.nan
        return found

    monkeypatch.setattr(calibration, "scan_layers", overflowing)
    model, examples = make_model(), tokenize_examples(make_examples(16), tokenizer)
    settings = Settings(metric, choose_layout(model, examples), racing_confidence=confidence)
    scored = calibrate(model, examples, criterion, settings, range(6))
    assert scored.scores[5] == max(scored.scores)
    assert choose_layers(scored, criterion, 1, lambda chosen: set(range(6)) - set(chosen)) != (5,)


def test_wrong_choices_do_not_change_the_loss(tiny_model, tokenizer):
    examples = make_examples(6)
    plain = [{"prompt": example["prompt"], "completion": example["completion"]} for example in examples]
    scores = score_layers(tiny_model(), tokenizer, examples, metric="loss")
    assert scores == pytest.approx(score_layers(tiny_model(), tokenizer, plain), abs=1e-5)


def test_an_important_layer_scores_higher(tiny_model, tokenizer):
    model = tiny_model()
    model.model.layers[2].mlp.down_proj.weight.data.zero_()
    model.model.layers[2].self_attn.o_proj.weight.data.zero_()  # now the layer does nothing
    scores = score_layers(model, tokenizer, make_examples(6), "sensitivity", metric="loss")
    assert scores[2] == pytest.approx(0, abs=1e-6)


def test_ties_go_to_the_largest_activation_norm():
    scored = LayerScores((0.2, 0.0, 0.0, 0.1, 0.0), (1.0, 2.0, 9.0, 4.0, 5.0), metric=0.5)

    def droppable(chosen):
        return set(range(5)) - set(chosen)

    assert choose_layers(scored, "sensitivity", 1, droppable) == (2,)
    assert choose_layers(scored, "sensitivity", 4, droppable) == (2, 4, 1, 3)
    assert choose_layers(scored, "sensitivity", 2, lambda chosen: droppable(chosen) - {2}) == (4, 1)
    # Once layer 2 is gone the others have to stay.
    assert choose_layers(scored, "sensitivity", 3, lambda chosen: () if chosen else range(5)) == (2,)


def test_tail_takes_the_last_layers(tiny_model, tokenizer):
    scores = score_layers(tiny_model(), tokenizer, make_examples(2), "tail")
    assert choose_layers(
        LayerScores(tuple(scores), None, 0.0), "tail", 2, lambda chosen: set(range(6)) - set(chosen)
    ) == (5, 4)


def test_an_unknown_criterion_lists_the_known(tiny_model, tokenizer):
    with pytest.raises(ValueError, match="`importance` is 'x', expected one of: activation_norm"):
        score_layers(tiny_model(), tokenizer, [], "x")


def test_layers_that_train_are_those_most_likely_to_be_kept():
    scores = (0.5, 0.0, 0.2, 0.1, 0.0, 0.5)
    assert choose_trained_layers(scores, 0.34, num_layers=6) == (0, 2, 5)
    assert choose_trained_layers(scores, 0.34, num_layers=6, still_trained=[1]) == (0, 1, 5)
    assert choose_trained_layers((0.1, 0.2), 1.0, num_layers=6) == (0, 1)


def adamw_with_state(model):
    """AdamW with the Trainer's two groups, after one step."""
    decayed = [n for n, p in model.named_parameters() if p.requires_grad and p.ndim > 1]
    trained = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    groups = [
        {"params": [p for n, p in trained if n in decayed], "weight_decay": 0.1},
        {"params": [p for n, p in trained if n not in decayed], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=1e-3)
    model(torch.arange(3, 13)[None]).logits.square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()
    return optimizer


def test_the_optimizer_forgets_what_is_gone_and_keeps_the_rest_bit_for_bit(tiny_model):
    model = tiny_model()
    freeze_all_but(model, [1, 3, 5])
    optimizer = adamw_with_state(model)
    kept_layer, gone_layer = model.model.layers[3], model.model.layers[1]
    before = {p: {k: v.clone() for k, v in optimizer.state[p].items()} for p in kept_layer.parameters()}

    drop_layers(model, [1])  # the layers are now 0 2 3 4 5
    freeze_all_but(model, [0, 2])
    sync_optimizer(optimizer, model, ParameterGroups(lambda: [n for n, p in model.named_parameters() if p.ndim > 1]))

    held = [p for group in optimizer.param_groups for p in group["params"]]
    assert set(held) == {p for p in model.parameters() if p.requires_grad} and len(held) == len(set(held))
    assert set(optimizer.state) == set(kept_layer.parameters())
    assert not set(optimizer.state) & set(gone_layer.parameters())
    for parameter, state in before.items():
        for name, value in state.items():
            assert torch.equal(optimizer.state[parameter][name], value)
    for group, ndims in zip(optimizer.param_groups, ({2}, {1}), strict=True):
        assert {p.ndim for p in group["params"]} == ndims
        order = [p for p in model.parameters() if p in set(group["params"])]
        assert group["params"] == order  # the order in which a resumed run will build it


def test_only_the_chosen_layers_train(tiny_model):
    model = tiny_model()
    freeze_all_but(model, [2, 4])
    trained = {name.split(".")[2] for name, p in model.named_parameters() if p.requires_grad}
    assert trained == {"2", "4"}


@pytest.mark.parametrize("confidence", [None, 0.95])
def test_what_a_criterion_measured_is_kept_as_evidence(confidence, tiny_model, tokenizer):
    """A function of the user's that scans needs no further pass for the metric, and its norms are kept."""
    model, examples = tiny_model(), tokenize_examples(make_examples(24), tokenizer)
    settings = Settings("loss", choose_layout(model, examples), racing_confidence=confidence)

    def own(calibration: Calibration):
        assert calibration.evidence is None
        found = calibration.race.harms if confidence else calibration.scan.log_probs[1:].sum(1)
        assert calibration.evidence is not None
        return found

    scored = calibrate(model, examples, own, settings)
    by_name = calibrate(model, examples, "sensitivity", settings)
    assert scored.metric == pytest.approx(by_name.metric) and scored.activation_norms is not None
    assert (scored.num_examples is None) == (confidence is None)
    assert calibrate(model, examples, "tail", settings).activation_norms is None


@pytest.mark.parametrize("metric", ["loss", "accuracy"])
def test_only_layers_that_can_go_are_left_out(metric, tiny_model, tokenizer):
    model, examples = tiny_model(), tokenize_examples(make_examples(24), tokenizer)
    settings = Settings(metric, choose_layout(model, examples))
    of_all = calibrate(model, examples, "sensitivity", settings)
    some = calibrate(model, examples, "sensitivity", settings, candidates=[4, 2])
    assert [some.scores[layer] for layer in (2, 4)] == pytest.approx([of_all.scores[layer] for layer in (2, 4)])
    assert {some.scores[layer] for layer in (0, 1, 3, 5)} == {max(some.scores[2], some.scores[4])}
    assert some.num_examples == (0, 0, 24, 0, 24, 0) and of_all.num_examples is None
    assert some.metric == pytest.approx(of_all.metric) and some.activation_norms == pytest.approx(
        of_all.activation_norms
    )


def test_of_layers_that_are_not_clearly_worse_the_last_goes(tiny_model, tokenizer):
    model, examples = tiny_model(), tokenize_examples(make_examples(24), tokenizer)
    settings = Settings("loss", choose_layout(model, examples), layers_per_trim=2)
    by_score = calibrate(model, examples, "sensitivity", settings)
    late = calibrate(model, examples, "late_sensitivity", settings)
    assert late.scores == by_score.scores and by_score.contenders is None
    best = sorted(range(6), key=lambda layer: late.scores[layer])[:2]
    assert set(best) <= set(late.contenders) < set(range(6))
    chosen = choose_layers(late, "late_sensitivity", 6, lambda chosen: [i for i in range(6) if i not in chosen])
    number = len(late.contenders)
    assert chosen[:number] == tuple(sorted(late.contenders, reverse=True))
    assert [late.scores[i] for i in chosen[number:]] == sorted(late.scores[i] for i in chosen[number:])


def test_contenders_are_told_from_layers_that_are_clearly_worse():
    torch.manual_seed(0)
    noise = torch.randn(1, 24)
    harms = torch.cat([noise, noise + 0.1 * torch.randn(1, 24), noise + 1 + 0.1 * torch.randn(1, 24)])
    assert find_contenders(harms, [3, 5, 8], [3, 5, 8], "loss", 1) == (3, 5)
    assert find_contenders(harms, [3, 5, 8], [3, 5, 8], "loss", 3) == (3, 5, 8)
    assert find_contenders(harms[:, :1], [3, 5, 8], [3, 5, 8], "loss", 1) == (
        3,
        5,
        8,
    )  # one example tells nothing apart


@pytest.mark.parametrize("metric", ["loss", "accuracy"])
def test_a_race_has_the_same_contenders_at_its_end(metric, tiny_model, tokenizer):
    model, examples = tiny_model(), tokenize_examples(make_examples(24), tokenizer)
    layout = choose_layout(model, examples)
    whole = calibrate(model, examples, "late_sensitivity", Settings(metric, layout), range(1, 6))
    raced = calibrate(
        model, examples, "late_sensitivity", Settings(metric, layout, racing_confidence=0.9999), range(1, 6)
    )
    assert set(raced.contenders) <= set(whole.contenders)
    assert all(raced.num_examples[layer] == 24 for layer in raced.contenders)
