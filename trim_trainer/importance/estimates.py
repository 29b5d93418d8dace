"""Criteria that need no scan: how much a layer changes the hidden state, and how much its weights matter to the loss."""

import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import nn
from transformers import PreTrainedModel

from ..architectures.errors import UnsupportedArchitectureError
from ..architectures.modules import find_layers
from ..data.examples import ScoredExample
from ..data.metrics import scored_by
from ..scoring.batches import Batch, make_batches
from ..scoring.hooks import hidden_of, plain_forward
from ..scoring.processes import share, sum_over_processes
from ..scoring.scored_positions import no_logits


@torch.no_grad()
def block_influence(model: PreTrainedModel, examples: list[ScoredExample], batch_tokens: int | None) -> torch.Tensor:
    """Return (layers,): 1 - cosine between a layer's input and output, mean over tokens (ShortGPT, arXiv 2403.03853)."""
    totals, num_tokens = torch.zeros(len(find_layers(model)), dtype=torch.float64), 0.0
    for states, batch in _hidden_states(model, examples, batch_tokens):
        cosines = nn.functional.cosine_similarity(states[:-1], states[1:], dim=-1)  # (layers, rows, seq)
        turned = (1 - cosines)[:, batch.counted_rows, batch.counted_positions]  # (layers, counted)
        totals += (turned * batch.counts).sum(1).double().cpu()
        num_tokens += batch.counts.sum().item()
    totals, count = sum_over_processes(totals, torch.tensor([num_tokens], dtype=torch.float64), model=model)
    return (totals / count).float()


@torch.no_grad()
def angular_distance(
    model: PreTrainedModel, examples: list[ScoredExample], batch_tokens: int | None, block_size: int
) -> torch.Tensor:
    """Score layers by the angle that a block of them turns the last token's state (Gromov et al., arXiv 2403.17887).

    The distance of a block of `block_size` consecutive layers is arccos(cosine of its input and output) / π, in [0, 1].

    Returns:
        (layers,): the smallest distance of a block that contains the layer, so that the best block has the lowest scores.
    """
    num_layers = len(find_layers(model))
    block_size = min(block_size, num_layers)
    totals = torch.zeros(num_layers - block_size + 1, dtype=torch.float64)
    for states, batch in _hidden_states(model, examples, batch_tokens):
        last = batch.inputs["attention_mask"].sum(1) - 1  # (rows,)
        ends = states[:, torch.arange(len(last), device=states.device), last]  # (layers + 1, rows, hidden)
        cosines = nn.functional.cosine_similarity(ends[:-block_size], ends[block_size:], dim=-1)
        totals += (cosines.clamp(-1, 1).arccos() / math.pi).sum(1).double().cpu()
    (totals,) = sum_over_processes(totals, model=model)
    distances = totals / len(examples)
    blocks = [distances[max(0, layer - block_size + 1) : layer + 1] for layer in range(num_layers)]
    return torch.stack([block.min() for block in blocks]).float()


def taylor(model: PreTrainedModel, examples: list[ScoredExample]) -> torch.Tensor:
    """Return (layers,): Σ |weight · gradient of the loss|, mean over examples (Shortened LLaMA, arXiv 2402.02834).

    First-order estimate of what removing each weight costs. Gradients are taken one example and used at once, so that
    they are never all there at the same time.
    """
    check_gradients(model)
    layers = find_layers(model)
    totals = torch.zeros(len(layers), dtype=torch.float64)
    was_training = model.training
    model.eval()
    try:
        with _gradients_into(totals, layers, model):
            for example in share(scored_by("loss", examples), model):
                (batch,) = make_batches(model, [example], is_packed=False, batch_tokens=1)
                with torch.enable_grad(), plain_forward(model):
                    logits = model(**batch.inputs, use_cache=False).logits[batch.rows, batch.positions]
                    nn.functional.cross_entropy(logits.float()[batch.predictors], batch.targets).backward()
    finally:
        model.train(was_training)
    (totals,) = sum_over_processes(totals, model=model)
    return (totals / len(examples)).float()


def check_gradients(model: PreTrainedModel) -> None:
    """Raise a ValueError if a layer has weights of which there is no gradient: quantized ones, or some that are not in memory."""
    for number, layer in enumerate(find_layers(model)):
        for name, parameter in layer.named_parameters():
            if parameter.is_meta or not parameter.is_floating_point():
                what = (
                    "is not in memory"
                    if parameter.is_meta
                    else f"is quantized ({str(parameter.dtype).removeprefix('torch.')})"
                )
                raise ValueError(
                    f"`importance` is 'taylor', which needs the gradient of every weight, but {name!r} of layer {number} {what}. "
                    "Set it to 'sensitivity', or load the whole model in plain weights."
                )


@contextmanager
def _gradients_into(totals: torch.Tensor, layers: nn.ModuleList, model: nn.Module) -> Iterator[None]:
    """Add |weight · gradient| to the layer's total as soon as a gradient is there, and forget the gradient."""
    trained = {parameter: (parameter.requires_grad, parameter.grad) for parameter in model.parameters()}
    layers_of: dict[nn.Parameter, list[int]] = {}  # several where layers share a weight
    for number, layer in enumerate(layers):
        for parameter in layer.parameters():
            layers_of.setdefault(parameter, []).append(number)

    def collect(parameter):
        total = (parameter.detach() * parameter.grad).abs().sum().double().cpu()
        for number in layers_of[parameter]:
            totals[number] += total
        parameter.grad = None

    with ExitStack() as hooks:
        try:
            for parameter in model.parameters():
                parameter.requires_grad_(parameter in layers_of)
                parameter.grad = None
            for parameter in layers_of:
                hooks.callback(parameter.register_post_accumulate_grad_hook(collect).remove)
            yield
        finally:
            for parameter, (requires_grad, grad) in trained.items():
                parameter.requires_grad_(requires_grad)
                parameter.grad = grad


def _hidden_states(
    model: PreTrainedModel, examples: list[ScoredExample], batch_tokens: int | None
) -> Iterator[tuple[torch.Tensor, Batch]]:
    """Yield (layers + 1, rows, seq, hidden): the state in front of each layer and behind the last; prompt and answer."""
    layers, was_training = find_layers(model), model.training
    states: list[torch.Tensor] = []

    def enter(layer, args, kwargs):
        states.append(args[0] if args else kwargs["hidden_states"])

    def leave(layer, args, output):
        states.append(hidden_of(output))

    model.eval()
    with ExitStack() as hooks:
        hooks.callback(model.train, was_training)
        for layer in layers:
            hooks.callback(layer.register_forward_pre_hook(enter, with_kwargs=True).remove)
        hooks.callback(layers[-1].register_forward_hook(leave).remove)
        batches = make_batches(model, scored_by("loss", examples), False, batch_tokens, 1 + len(layers))
        for batch in share(batches, model):
            states.clear()
            with plain_forward(model):
                model(**batch.inputs, use_cache=False, **no_logits(model))
            if any(state.shape[:2] != batch.shape for state in states):
                raise UnsupportedArchitectureError(
                    f"The layers of {type(model).__name__} do not pass (batch, seq, hidden) to each other, so their "
                    "hidden states cannot be compared. Use `importance='sensitivity'`."
                )
            yield torch.stack([state.float() for state in states]), batch
