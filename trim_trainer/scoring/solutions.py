"""Every layer left out in turn, and the one in front of it taking over: all least squares of a model as it is, in few passes."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import nn
from transformers import PreTrainedModel

from ..architectures.kept import Cut, Seam, sublayers
from ..architectures.modules import find_layers
from ..data.examples import ScoredExample
from .hooks import joined_layers
from .passes import record
from .projection import check_plain, find_projections
from .regression import Regression
from .takeover import Takeover

# Bytes of sums that exist at the same time, over the layers that are solved for in one pass.
MAX_SUMS = 2**31


def solve_takeovers(
    model: PreTrainedModel,
    candidates: Iterable[Cut],
    examples: list[ScoredExample],
    batch_tokens: int | None = None,
    precision: Callable[[], AbstractContextManager] = nullcontext,
) -> dict[Cut, Takeover]:
    """Solve, for each candidate, for what the layer in front of it would take over if it alone were dropped.

    The same regression as in `compensated`, from the states of the model as it is: one pass over the examples, or several
    where the sums of all layers do not fit in `MAX_SUMS`. The solutions stay on the device, one matrix of the shape of a
    layer's last projection per candidate. At a seam the layer that is left of two takes over: it is to return what the
    second returned.

    Args:
        model: A causal LM, with plain weights, whole in this process.
        candidates: Layers and seams; the first layer has none in front of it, and gets no entry.
        examples: On whose tokens states are compared.
        batch_tokens: Tokens that one pass carries at most.
        precision: Makes the context in which the model runs, such as autocast.

    Returns:
        Candidate -> what is taken over.

    Raises:
        UnsupportedArchitectureError: a layer has no projection that could, see `check_compensation`; or weights are quantized,
            under an adapter or not in memory.
    """
    check_plain(model)
    layers, found = find_layers(model), {}
    cuts = sorted(set(candidates) - {0}, key=sublayers)
    joined = joined_layers(model, cuts)
    for group in _groups(model, cuts, joined, examples):
        twins = {cut: joined[cut] for cut in group if cut in joined}
        # candidate -> what returns the state that is to become the target, and what returns that
        pairs = {
            cut: (twins[cut], layers[cut.back]) if cut in twins else (layers[cut - 1], layers[cut]) for cut in group
        }
        outputs = list(dict.fromkeys(module for pair in pairs.values() for module in pair))
        inputs = [fit.projection.module for fit in group.values()]
        beside = {seam.front: [twin] for seam, twin in twins.items()}
        for values in record(model, examples, batch_tokens, precision, outputs, inputs, beside=beside):
            states = dict(zip(outputs, values[: len(outputs)], strict=True))
            for (cut, fit), given in zip(group.items(), values[len(outputs) :], strict=True):
                fit.add(given, *(states[module] for module in pairs[cut]))
        found |= {cut: _solved(fit, model, twins.get(cut)) for cut, fit in group.items()}
    return found


def _groups(
    model: PreTrainedModel, cuts: list[Cut], joined: Mapping[Seam, nn.Module], examples: list[ScoredExample]
) -> Iterator[dict[Cut, Regression]]:
    """Yield candidates with their sums, as many at a time as `MAX_SUMS` allows."""
    if not cuts:
        return
    shortest = min(examples, key=lambda example: example.num_tokens)
    fronts = [cut - 1 for cut in cuts if cut not in joined]
    found = find_projections(model, fronts, shortest, joined)
    group, size = {}, 0
    for cut in cuts:
        fit = Regression(found[cut if cut in joined else cut - 1])
        if group and size + fit.size > MAX_SUMS:
            yield group
            group, size = {}, 0
        group[cut] = fit
        size += fit.size
    if group:
        yield group


def _solved(fit: Regression, model: PreTrainedModel, joined: nn.Module | None) -> Takeover:
    module, (by, _) = fit.projection.module, fit.solve(model, torch.float32)
    by = by.to(module.weight.device, module.weight.dtype)
    if module.bias is None:
        return Takeover(module, by, joined=joined)
    return Takeover(module, by[:-1], by[-1], joined)
