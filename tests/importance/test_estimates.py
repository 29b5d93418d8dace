import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import zoo
from peft import LoraConfig, get_peft_model
from tiny import make_examples, make_model
from torch.testing import assert_close

from trim_trainer import drop_layers, score_layers
from trim_trainer.architectures.errors import UnsupportedArchitectureError
from trim_trainer.architectures.modules import find_layers


@torch.no_grad()
def hidden_states(model, tokenizer, examples):
    """(layers + 1, tokens, hidden) of each prompt + right completion; the last is taken in front of the final norm."""
    states = []
    for example in examples:
        ids = tokenizer(example["prompt"] + example["completion"] + "</s>", return_tensors="pt")["input_ids"]
        last = []
        handle = find_layers(model)[-1].register_forward_hook(
            lambda layer, args, output, last=last: last.append(output)
        )
        before = model(ids, output_hidden_states=True, use_cache=False).hidden_states[:-1]
        handle.remove()
        states.append(torch.cat([*before, last[0]]))
    return states


def cosine(one, other):
    return torch.nn.functional.cosine_similarity(one, other, dim=-1)


def test_block_influence_is_one_minus_the_cosine_over_all_tokens(tokenizer):
    model, examples = make_model(), make_examples(5)
    states = torch.cat(hidden_states(model, tokenizer, examples), dim=1)
    expected = (1 - cosine(states[:-1], states[1:])).mean(1)
    assert_close(
        torch.tensor(score_layers(model, tokenizer, examples, "block_influence")), expected, atol=1e-5, rtol=1e-4
    )


@pytest.mark.parametrize("block_size", [1, 3])
def test_angular_distance_is_that_of_the_best_block_with_the_layer(block_size, tokenizer):
    from trim_trainer.data.tokens import tokenize_examples
    from trim_trainer.importance.estimates import angular_distance

    model, examples = make_model(), make_examples(5)
    ends = torch.stack(
        [states[:, -1] for states in hidden_states(model, tokenizer, examples)]
    )  # (examples, 7, hidden)
    blocks = [
        (cosine(ends[:, start], ends[:, start + block_size]).arccos() / math.pi).mean().item()
        for start in range(7 - block_size)
    ]
    scores = angular_distance(model, tokenize_examples(examples, tokenizer), 256, block_size)
    for layer in range(6):
        containing = [d for start, d in enumerate(blocks) if start <= layer < start + block_size]
        assert scores[layer].item() == pytest.approx(min(containing), abs=1e-5)
    best = blocks.index(min(blocks))
    assert sorted(scores.argsort(stable=True)[:block_size].tolist()) == list(range(best, best + block_size))


def test_taylor_is_weight_times_gradient_and_leaves_no_trace(tokenizer):
    model, examples = make_model().train(), make_examples(3)
    model.lm_head.weight.requires_grad_(False)
    find_layers(model)[0].mlp.up_proj.weight.grad = torch.ones_like(find_layers(model)[0].mlp.up_proj.weight)
    expected = torch.zeros(6)
    reference = make_model()
    for example in examples:
        ids = tokenizer(example["prompt"] + example["completion"] + "</s>", return_tensors="pt")["input_ids"]
        reference.zero_grad()
        logits = reference(ids, use_cache=False).logits[0, -3:-1]
        torch.nn.functional.cross_entropy(logits, ids[0, -2:]).backward()
        for number, layer in enumerate(find_layers(reference)):
            expected[number] += sum((p.detach() * p.grad).abs().sum() for p in layer.parameters()) / len(examples)
    assert_close(torch.tensor(score_layers(model, tokenizer, examples, "taylor")), expected, rtol=1e-4, atol=1e-5)
    assert model.training and not model.lm_head.weight.requires_grad
    assert find_layers(model)[0].mlp.up_proj.weight.grad.eq(1).all()
    assert sum(parameter.grad is not None for parameter in model.parameters()) == 1


def test_a_weight_that_layers_share_counts_for_each_of_them(tokenizer):
    model = zoo.make("zamba")
    scores = score_layers(model, tokenizer, make_examples(2), "taylor")
    assert len(scores) == model.config.num_hidden_layers and all(score > 0 for score in scores)


@pytest.mark.parametrize("kind", ["not in memory", "quantized"])
def test_weights_without_gradients_are_refused_and_left_as_they_are(kind, tokenizer):
    model = make_model()
    weight = find_layers(model)[3].mlp.up_proj.weight.detach()
    weight = weight.to("meta") if kind == "not in memory" else weight.to(torch.int8)
    find_layers(model)[3].mlp.up_proj.weight = torch.nn.Parameter(weight, requires_grad=False)
    with pytest.raises(ValueError, match=f"`importance` is 'taylor'.*'mlp.up_proj.weight' of layer 3 is {kind}"):
        score_layers(model, tokenizer, make_examples(2), "taylor")
    assert find_layers(model)[0].mlp.up_proj.weight.requires_grad


def test_another_metric_is_refused(tiny_model, tokenizer):
    with pytest.raises(ValueError, match="`metric` is 'Accuracy', expected one of accuracy, loss"):
        score_layers(tiny_model(), tokenizer, make_examples(2), metric="Accuracy")


def test_compensation_is_refused_where_no_solution_can_be_written(tokenizer):
    model = get_peft_model(make_model(), LoraConfig(task_type="CAUSAL_LM", r=2))
    with pytest.raises(UnsupportedArchitectureError, match="are under an adapter.*`compensation`"):
        score_layers(model, tokenizer, make_examples(2), compensation=make_examples(2, 50))


def test_a_compiled_model_is_named(tokenizer):
    with pytest.raises(ValueError, match="`model._orig_mod`"):
        score_layers(torch.compile(make_model()), tokenizer, make_examples(2))
    with pytest.raises(ValueError, match="`model._orig_mod`"):
        drop_layers(torch.compile(make_model()), [1])


def test_a_function_of_the_user_is_a_criterion(tiny_model, tokenizer):
    def weight_norm(calibration):
        """Small layers go first."""
        return torch.stack([sum(p.norm() for p in layer.parameters()) for layer in find_layers(calibration.model)])

    model = tiny_model()
    expected = [sum(p.norm() for p in layer.parameters()).item() for layer in find_layers(model)]
    assert score_layers(model, tokenizer, make_examples(3), weight_norm) == pytest.approx(expected)
    assert score_layers(model, tokenizer, make_examples(3), lambda calibration: [*range(6)]) == [*range(6)]
    with pytest.raises(ValueError, match="'<lambda>' returned .* expected 6 finite numbers, one per layer"):
        score_layers(model, tokenizer, make_examples(3), lambda calibration: torch.zeros(5))


def test_hidden_states_of_another_shape_are_refused(tokenizer):
    with pytest.raises(UnsupportedArchitectureError, match="do not pass .batch, seq, hidden. to each other"):
        score_layers(zoo.make("gemma3n_text"), tokenizer, make_examples(3), "block_influence")


SCRIPT = """
import json, sys, torch
sys.path.insert(0, {tests!r})
from tiny import make_examples, make_model, make_tokenizer
from trim_trainer import score_layers
if {processes} > 1:
    torch.distributed.init_process_group("gloo")
scores = {{
    name: score_layers(make_model(), make_tokenizer(), make_examples(9), name, batch_tokens=200)
    for name in ("sensitivity", "activation_norm", "block_influence", "angular", "taylor")
}}
rank = torch.distributed.get_rank() if {processes} > 1 else 0
with open({folder!r} + f"/scores-{processes}-{{rank}}.json", "w") as file:
    json.dump(scores, file)
if {processes} > 1:
    torch.distributed.destroy_process_group()
"""


@pytest.mark.slow
def test_two_processes_score_as_one(tmp_path):
    """Each takes a share of the batches; both get the same scores, which are those of one process."""
    for processes in (1, 2):
        script = tmp_path / f"scores{processes}.py"
        tests = str(Path(__file__).parents[1] / "helpers")
        script.write_text(SCRIPT.format(tests=tests, processes=processes, folder=str(tmp_path)))
        torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
        run = subprocess.run(
            [sys.executable, *(torchrun if processes > 1 else []), script], capture_output=True, text=True
        )
        assert run.returncode == 0, run.stderr[-2000:]
    alone, first, second = (
        json.loads((tmp_path / f"scores-{name}.json").read_text()) for name in ("1-0", "2-0", "2-1")
    )
    assert first == second
    for name, scores in alone.items():
        assert first[name] == pytest.approx(scores, rel=1e-4, abs=1e-5)
