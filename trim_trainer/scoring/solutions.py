"""Every layer left out in turn, and the one in front of it taking over: all least squares of a model as it is, in few passes."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext

import torch
from transformers import PreTrainedModel

from ..architectures.modules import find_layers
from ..data.examples import ScoredExample
from .passes import record
from .projection import find_projections
from .regression import Regression
from .takeover import Takeover

# Bytes of sums that exist at the same time, over the layers that are solved for in one pass.
MAX_SUMS = 2**31


def solve_takeovers(
    model: PreTrainedModel,
    candidates: Iterable[int],
    examples: list[ScoredExample],
    batch_tokens: int | None = None,
    precision: Callable[[], AbstractContextManager] = nullcontext,
) -> dict[int, Takeover]:
    """Solve, for each candidate, for what the layer in front of it would take over if it alone were dropped.

    The same regression as in `compensated`, from the states of the model as it is: one pass over the examples, or several
    where the sums of all layers do not fit in `MAX_SUMS`. The solutions stay on the device, one matrix of the shape of a
    layer's last projection per candidate.

    Args:
        model: A causal LM, with plain weights, whole in this process.
        candidates: Numbers of layers; the first has none in front of it, and gets no entry.
        examples: On whose tokens states are compared.
        batch_tokens: Tokens that one pass carries at most.
        precision: Makes the context in which the model runs, such as autocast.

    Returns:
        Candidate -> what the layer in front of it takes over.

    Raises:
        UnsupportedArchitectureError: a layer has no projection that could, see `check_compensation`.
    """
    layers, found = find_layers(model), {}
    for group in _groups(model, sorted(set(candidates) - {0}), examples):
        numbers = sorted({number for candidate in group for number in (candidate - 1, candidate)})
        outputs, inputs = [layers[number] for number in numbers], [fit.projection.module for fit in group.values()]
        for values in record(model, examples, batch_tokens, precision, outputs, inputs):
            states = dict(zip(numbers, values[: len(numbers)], strict=True))
            for (candidate, fit), given in zip(group.items(), values[len(numbers) :], strict=True):
                fit.add(given, states[candidate - 1], states[candidate])
        found |= {candidate: _solved(fit, model) for candidate, fit in group.items()}
    return found


def _groups(
    model: PreTrainedModel, candidates: list[int], examples: list[ScoredExample]
) -> Iterator[dict[int, Regression]]:
    """Yield candidates with their sums, as many at a time as `MAX_SUMS` allows."""
    if not candidates:
        return
    shortest = min(examples, key=lambda example: example.num_tokens)
    found = find_projections(model, [candidate - 1 for candidate in candidates], shortest)
    group, size = {}, 0
    for candidate in candidates:
        fit = Regression(found[candidate - 1])
        if group and size + fit.size > MAX_SUMS:
            yield group
            group, size = {}, 0
        group[candidate] = fit
        size += fit.size
    if group:
        yield group


def _solved(fit: Regression, model: PreTrainedModel) -> Takeover:
    module, (by, _) = fit.projection.module, fit.solve(model, torch.float32)
    by = by.to(module.weight.device, module.weight.dtype)
    if module.bias is None:
        return Takeover(module, by)
    return Takeover(module, by[:-1], by[-1])
