import copy
from functools import partial

import pytest
import torch
import zoo
from datasets import IterableDataset
from peft import LoraConfig
from tiny import make_model, make_tokenizer
from transformers import AutoModelForCausalLM

from trim_trainer import TrimConfig, TrimHistory, TrimTrainer, drop_layers, droppable_layers
from trim_trainer.architectures.errors import UnsupportedArchitectureError
from trim_trainer.architectures.modules import find_layers
from trim_trainer.data.examples import ScoredExample
from trim_trainer.recovery.compensation import compensated
from trim_trainer.scoring.layout import ONE_BY_ONE
from trim_trainer.scoring.passes import begins_midway
from trim_trainer.scoring.projection import check_compensation, find_projection
from trim_trainer.scoring.regression import RIDGE
from trim_trainer.scoring.scan import scan_layers, score_choices
from trim_trainer.scoring.solutions import solve_takeovers
from trim_trainer.scoring.trial import choose_layout


def draw(number=60, vocab_size=90):
    """Examples of random tokens, from 5 to 24 of them each."""
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(5, 25, (number,), generator=generator).tolist()
    rows = [tuple(torch.randint(10, vocab_size, (length,), generator=generator).tolist()) for length in lengths]
    return [ScoredExample(row[:2], (row[2:],), (row[2:],)) for row in rows]


@torch.no_grad()
def look(model, examples, module=None):
    """States in front of the layers, the last one's output and a module's input: each (tokens, size), one row at a time."""
    seen, states, inputs = [], [], []
    layers = find_layers(model)
    handles = [layer.register_forward_hook(lambda layer, args, output: seen.append(output)) for layer in layers]
    if module is not None:
        handles.append(module.register_forward_pre_hook(lambda module, args: inputs.append(args[0].flatten(0, -2))))
    for example in examples:
        seen.clear()
        model(input_ids=torch.tensor([example.prompt_ids + example.choice_ids[0]]))
        states.append([(output[0] if isinstance(output, tuple) else output)[0] for output in seen])
    for handle in handles:
        handle.remove()
    return [torch.cat(parts) for parts in zip(*states, strict=True)], torch.cat(inputs) if inputs else None


@pytest.mark.parametrize("model_type", ["llama", "gpt2"])
def test_the_projection_solves_the_ridge_regression(model_type):
    """Against an independent solution: least squares on stacked rows, on states of the model's own forward pass."""
    model, examples = make_model(model_type), draw()
    before, _ = look(model, examples)
    small = drop_layers(copy.deepcopy(model), [3, 4])
    module = find_projection(small, 2, examples[0]).module
    after, inputs = look(small, examples, module)
    with compensated(model, [3, 4], examples):
        drop_layers(model, [3, 4])

    target, states = before[4].double(), after[2].double()
    inputs = inputs.double()
    if module.bias is not None:
        inputs = torch.cat([inputs, torch.ones(len(inputs), 1)], dim=1)
    weights = 1 / target.norm(dim=1, keepdim=True)
    ridge = RIDGE * (weights * inputs).square().sum(0).mean()
    rows = torch.cat([weights * inputs, ridge.sqrt() * torch.eye(inputs.shape[1])])
    goal = torch.cat([weights * (target - states), torch.zeros(inputs.shape[1], target.shape[1])])
    change = torch.linalg.lstsq(rows, goal).solution

    found = find_projection(model, 2, examples[0]).module
    weight_change = (found.weight - module.weight).double()
    if module.bias is None:
        torch.testing.assert_close(weight_change, change.T, rtol=1e-3, atol=2e-4)
    else:
        torch.testing.assert_close(weight_change, change[:-1], rtol=1e-3, atol=2e-4)
        torch.testing.assert_close((found.bias - module.bias).double(), change[-1], rtol=1e-3, atol=2e-4)
    changed = {
        name for name, tensor in model.state_dict().items() if not torch.equal(tensor, small.state_dict()[name])
    }
    assert all(id(dict(model.named_parameters())[name]) in map(id, found.parameters()) for name in changed)


PROJECTIONS = {
    "llama": "mlp.down_proj",
    "qwen3": "mlp.down_proj",
    "gpt2": "mlp.c_proj",
    "opt": "fc2",
    "phi": "mlp.fc2",
    "gpt_neox": "mlp.dense_4h_to_h",
    "bloom": "mlp.dense_4h_to_h",
    "cohere": "mlp.down_proj",
    "granite": "mlp.down_proj",
    "deepseek_v3": "mlp.shared_experts.down_proj",
}


def error(model, target, examples):
    states = look(model, examples)[0][-1]
    return ((states - target).square().sum(1) / target.square().sum(1)).sum().item()


@pytest.mark.parametrize("model_type", PROJECTIONS)
def test_what_is_left_comes_closer_to_the_deeper_model(model_type):
    model, examples = zoo.make(model_type).eval(), draw()
    target = look(model, examples)[0][-1]
    dropped = [2, 4, 5]
    small = drop_layers(copy.deepcopy(model), dropped)
    with compensated(model, dropped, examples):
        drop_layers(model, dropped)
    layer = find_layers(model)[2]
    assert find_projection(model, 2, examples[0]).module is layer.get_submodule(PROJECTIONS[model_type])
    assert error(model, target, examples) < 0.8 * error(small, target, examples)


def test_a_multiplier_behind_the_projection_is_seen():
    model, examples = make_model(), draw(4)
    layer = find_layers(model)[1]
    handle = layer.mlp.register_forward_hook(lambda module, args, output: 0.25 * output)
    assert find_projection(model, 1, examples[0]).scale == pytest.approx(0.25, rel=1e-3)
    handle.remove()
    assert find_projection(model, 1, examples[0]).scale == pytest.approx(1, rel=1e-3)


@pytest.mark.parametrize("model_type", ["gemma2", "olmo2", "mixtral", "qwen2_moe", "phimoe", "blt"])
def test_a_norm_or_experts_behind_the_last_projection_are_refused(model_type):
    with pytest.raises(UnsupportedArchitectureError, match="Layer . of .* `compensation_size` to 0"):
        check_compensation(zoo.make(model_type).eval(), draw(1)[0])


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in zoo.CAUSAL if name not in zoo.UNBUILT])
def test_every_architecture_comes_closer_or_is_refused(name):
    model, examples = zoo.make(name).eval(), draw()
    try:
        candidates = [layer for layer in (4, 3, 2, 1) if layer in droppable_layers(model)]
        check_compensation(model, examples[0])
    except UnsupportedArchitectureError as refusal:
        pytest.skip(str(refusal))
    dropped: list[int] = []
    for layer in candidates:
        if len(dropped) < 2 and layer in droppable_layers(model, tuple(dropped)):
            dropped.append(layer)
    target = look(model, examples)[0][-1]
    small = drop_layers(copy.deepcopy(model), dropped)
    with compensated(model, dropped, examples):
        drop_layers(model, dropped)
    assert error(model, target, examples) < error(small, target, examples)

    model, (layer, *_) = zoo.make(name).eval(), candidates
    takeovers = solve_takeovers(model, [layer], examples)
    found = scan_layers(model, examples[:4], choose_layout(model, examples[:4]), None, [layer], takeovers=takeovers)
    with compensated(model, [layer], examples):
        drop_layers(model, [layer])
    torch.testing.assert_close(
        found.log_probs[1], score_choices(model, examples[:4], ONE_BY_ONE), rtol=1e-4, atol=5e-3
    )


def test_a_layer_that_does_nothing_leaves_nothing_to_take_over():
    model, examples = make_model(), draw()
    with torch.no_grad():
        for layer in (3, 4):
            find_layers(model)[layer].self_attn.o_proj.weight.zero_()
            find_layers(model)[layer].mlp.down_proj.weight.zero_()
    expected = {
        name: tensor.clone() for name, tensor in drop_layers(copy.deepcopy(model), [3, 4]).state_dict().items()
    }
    with compensated(model, [3, 4], examples):
        drop_layers(model, [3, 4])
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(tensor, expected[name], rtol=0, atol=1e-5)


def test_first_layers_have_none_in_front_of_them():
    model, examples = make_model(), draw(4)
    expected = drop_layers(copy.deepcopy(model), [0, 1]).state_dict()
    with compensated(model, [0, 1], examples):
        drop_layers(model, [0, 1])
    assert all(torch.equal(tensor, expected[name]) for name, tensor in model.state_dict().items())


def test_later_gaps_see_what_the_first_has_become():
    """Under autocast, which keeps its copies of weights as long as it lasts."""
    model, examples = make_model(), draw()

    target = look(model, examples)[0][-1]
    parts = copy.deepcopy(model)
    with compensated(model, [1, 3], examples, precision=partial(torch.autocast, "cpu", torch.bfloat16)):
        drop_layers(model, [1, 3])
    with compensated(parts, [1], examples):
        drop_layers(parts, [1])
    torch.testing.assert_close(  # the first gap is closed alike, but for rounding
        find_layers(model)[0].mlp.down_proj.weight, find_layers(parts)[0].mlp.down_proj.weight, rtol=0, atol=0.02
    )
    small = drop_layers(make_model(), [1, 3])
    assert error(model, target, examples) < 0.8 * error(small, target, examples)


def test_examples_come_from_any_training_set(sets, tmp_path):
    def examples(train):
        trainer = make_trainer((train, *sets[1:]), tmp_path, compensation_size=8)
        return trainer.compensation.examples

    drawn = examples(sets[0])
    assert len(drawn) == 8 and all(len(example.choice_ids) == 1 for example in drawn)
    assert drawn == examples(sets[0])
    assert len(examples(sets[0].select(range(5)))) == 5
    assert len(examples(IterableDataset.from_generator(lambda: iter(list(sets[0]))))) == 8


BASE = {
    "use_cpu": True, "bf16": False, "max_steps": 12, "per_device_train_batch_size": 4, "learning_rate": 5e-3,
    "report_to": "none", "save_strategy": "no", "disable_tqdm": True, "seed": 3, "target_layers": 3, "trim_steps": 2,
    "compensation_size": 40,
}  # fmt: skip


def make_trainer(sets, folder, model=None, **fields):
    train, evaluation, calibration = sets
    options = {"peft_config": fields.pop("peft_config")} if "peft_config" in fields else {}
    args = TrimConfig(output_dir=str(folder), **(BASE | fields))
    return TrimTrainer(
        model or make_model(), args, train_dataset=train, eval_dataset=evaluation, calibration_dataset=calibration,
        processing_class=make_tokenizer(), **options,
    )  # fmt: skip


@pytest.mark.slow
def test_a_run_compensates_at_each_drop_and_goes_on_where_it_was(sets, tmp_path):
    fields = {"importance": "tail", "sparse_update_ratio": None}
    straight = make_trainer(sets, tmp_path / "straight", save_strategy="steps", save_steps=3, **fields)
    straight.train()
    straight.save_model()
    plain = make_trainer(sets, tmp_path / "plain", compensation_size=0, **fields)
    plain.train()
    first = straight.history.drops[0], plain.history.drops[0]
    assert first[0].metric == first[1].metric and first[0].dropped == first[1].dropped
    weights, others = straight.model.state_dict(), plain.model.state_dict()
    assert not torch.equal(weights["lm_head.weight"], others["lm_head.weight"])

    resumed = make_trainer(sets, tmp_path / "straight", **fields)
    resumed.train(resume_from_checkpoint=str(tmp_path / "straight" / "checkpoint-3"))
    assert resumed.history.dropped == straight.history.dropped
    for name, tensor in resumed.model.state_dict().items():
        torch.testing.assert_close(tensor, weights[name], rtol=0, atol=1e-6)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "straight")
    assert loaded.config.num_hidden_layers == 3
    assert TrimHistory.load(tmp_path / "straight").compensation_size == 40
    assert "took over what the dropped ones had added" in (tmp_path / "straight" / "README.md").read_text()
    assert "took over" not in (plain.save_model() or (tmp_path / "plain" / "README.md").read_text())


def test_a_drop_that_is_rolled_back_takes_its_compensation_along(sets, tmp_path):
    trainer = make_trainer(sets, tmp_path, importance="tail", calibration_metric="loss", max_metric_drop=9.0)
    kept, restored = [], []
    keep, roll_back = trainer.trimming.floor.keep, trainer.trimming.roll_back
    trainer.trimming.floor.keep = lambda *args: (keep(*args), kept.append(copy.deepcopy(trainer.model.state_dict())))
    trainer.trimming.floor.is_crossed = lambda metric: len(kept) == 2
    trainer.trimming.roll_back = lambda metric: (
        roll_back(metric),
        restored.append(copy.deepcopy(trainer.model.state_dict())),
    )
    trainer.train()
    assert trainer.history.stopped and trainer.history.depth == 5
    (weights,) = restored
    assert weights.keys() == kept[-1].keys()
    assert all(torch.equal(tensor, kept[-1][name]) for name, tensor in weights.items())


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"peft_config": LoraConfig(target_modules="all-linear")}, "an adapter does not hold"),
        ({"optim": "schedule_free_adamw"}, "second set of weights"),
        ({"compensation_size": -1}, "at least 0 examples"),
    ],
)
def test_what_cannot_go_together_is_refused(fields, message, sets, tmp_path):
    with pytest.raises(ValueError, match=f"`compensation_size` is .*{message}"):
        make_trainer(sets, tmp_path, **fields)


def test_an_architecture_that_cannot_is_refused_before_training(sets, tmp_path):
    with pytest.raises(UnsupportedArchitectureError, match="Mixtral"):
        make_trainer(sets, tmp_path, model=zoo.make("mixtral"))


@pytest.mark.parametrize("layout", ["staggered", "one by one"])
@pytest.mark.parametrize("model_type", PROJECTIONS)
def test_a_candidate_scores_as_if_it_were_dropped_and_compensated_for(model_type, layout):
    """Against the deed: each layer really dropped, the one in front of it really changed, everything scored anew."""
    model, examples, questions = zoo.make(model_type).eval(), draw(60), draw(72)[60:]
    candidates = sorted(droppable_layers(model))
    layout = choose_layout(model, questions) if layout == "staggered" else ONE_BY_ONE
    found = scan_layers(
        model, questions, layout, takeovers=solve_takeovers(model, candidates, examples), candidates=candidates
    )
    plain = scan_layers(model, questions, layout, candidates=candidates)
    assert torch.equal(found.log_probs[0], plain.log_probs[0])
    for row, layer in enumerate(candidates, 1):
        trimmed = copy.deepcopy(model)
        with compensated(trimmed, [layer], examples):
            drop_layers(trimmed, [layer])
        truth = score_choices(trimmed, questions, layout)
        torch.testing.assert_close(found.log_probs[row], truth, rtol=1e-4, atol=2e-3)
        if layer > 0:
            assert (plain.log_probs[row] - truth).abs().max() > 0.05, layer


def test_solutions_are_the_same_in_several_passes(monkeypatch):
    model, examples = make_model(), draw(20)
    whole = solve_takeovers(model, range(6), examples)
    monkeypatch.setattr("trim_trainer.scoring.solutions.MAX_SUMS", 1)
    parts = solve_takeovers(model, range(6), examples)
    assert list(whole) == list(parts) == [1, 2, 3, 4, 5]
    for layer in whole:
        assert torch.equal(whole[layer].weight, parts[layer].weight)


def test_a_run_scores_after_compensation(sets, tmp_path):
    """What a round says of the layer that went is what the deed gives: the metric right after the drop."""
    trainer = make_trainer(sets, tmp_path, importance="sensitivity", calibration_metric="loss", layers_per_trim=1)
    trainer.train()
    assert len(trainer.history.drops) > 1
    for a_round in trainer.history.drops:
        (dropped,) = a_round.dropped
        assert a_round.metric_after == pytest.approx(a_round.metric + a_round.score_of(dropped), abs=2e-4)


@pytest.mark.parametrize("dropped", [[0, 4], [0, 1, 3, 5]])
def test_the_gap_behind_a_dropped_first_layer_is_closed(dropped):
    """The layers in front of it see other states than before, and its number in the smaller model is another one."""
    model, examples = make_model(), draw()
    target = look(model, examples)[0][-1]
    small = drop_layers(copy.deepcopy(model), dropped)
    with compensated(model, dropped, examples):
        drop_layers(model, dropped)
    assert error(model, target, examples) < 0.8 * error(small, target, examples)


def test_passes_behind_the_first_gap_leave_out_the_layers_in_front_of_it(monkeypatch):
    """They run the layers between two gaps, and give what whole passes give."""
    model, examples, ran = make_model(num_layers=12), draw(), []
    whole, dropped = copy.deepcopy(model), [4, 7, 8, 11]
    with compensated(model, dropped, examples):
        drop_layers(model, dropped)
        for number, layer in enumerate(find_layers(model)):
            layer.mlp.register_forward_hook(
                lambda module, args, output, number=number: ran.append((number, len(args[0])))
            )
    rows = {(number, count) for number, count in ran if count > 1}  # the examples; what is tried is one row
    assert {number for number, _ in rows} == {3, 4, 5, 6, 7}
    monkeypatch.setattr("trim_trainer.recovery.compensation.begins_midway", lambda *args: False)
    with compensated(whole, dropped, examples):
        drop_layers(whole, dropped)
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(tensor, whole.state_dict()[name], rtol=1e-4, atol=1e-5)


def test_a_pass_does_not_begin_behind_layers_that_hand_on_more_than_a_state():
    examples = draw(4)
    assert begins_midway(zoo.make("llama").eval(), examples, 3)
    model = zoo.make("llama").eval()
    first, later = find_layers(model)[1], find_layers(model)[4]
    kept = []
    first.register_forward_hook(lambda layer, args, output: kept.append(output))
    later.register_forward_hook(lambda layer, args, output: output + kept.pop())
    assert not begins_midway(model, examples, 3)
    assert not vars(find_layers(model)[0]).get("forward")
