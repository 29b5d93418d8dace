"""Layers in front of dropped ones take over what they added, by least squares."""

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn
from transformers import PreTrainedModel

from ..architectures.modules import find_layers
from ..data.examples import ScoredExample
from ..scoring.batches import make_batches
from ..scoring.hooks import hidden_of, plain_forward
from ..scoring.processes import from_main, share, sum_over_processes
from ..scoring.scored_positions import no_logits
from .projection import Enough, Projection, find_projection

logger = logging.getLogger(__name__)

# Penalty on the change of a weight, as a share of the mean square of the projection's inputs.
RIDGE = 1e-2


@dataclass(frozen=True)
class Gap:
    """Consecutive layers that go, behind one that stays."""

    front: int  # number of the one that stays, after the drop
    last: int  # number of the last one that goes, before the drop


@contextmanager
def compensated(
    model: PreTrainedModel,
    dropped: Iterable[int],
    examples: list[ScoredExample],
    batch_tokens: int | None = None,
    precision: Callable[[], AbstractContextManager] = nullcontext,
) -> Iterator[None]:
    """Drop layers within; then each layer that has lost those behind it learns, by least squares, to do what they did.

    What a decoder layer adds last to the hidden state is linear in the inputs of a projection, mostly `down_proj`. Its
    weights are solved for anew, so that the output of the layer comes as close as it can to what the last of the dropped
    layers behind it returned: ridge regression over the tokens of the examples, each weighted by the inverse square of the
    norm of its state. ReplaceMe solves for a square matrix behind the projection; the projection has more inputs. Gaps are
    closed from the first to the last. No parameter is added, and no gradient is taken. Dropped layers with none in front of
    them are not compensated for.

    Several processes share the passes, and all get what the main one has solved. There is one pass before the drop and one
    more for each gap but the first, for which states stay on the CPU meanwhile: tokens · hidden size numbers.

    Args:
        model: A causal LM before the drop, with plain weights, whole in this process.
        dropped: Numbers of the layers that go.
        examples: On whose tokens states are compared; none: layers are dropped and nothing else.
        batch_tokens: Tokens that one pass carries at most.
        precision: Makes the context in which the model runs, such as autocast.

    Raises:
        UnsupportedArchitectureError: there is no such projection, see `check_compensation`.
    """
    layers = find_layers(model)
    gaps = _gaps(len(layers), set(dropped)) if examples else []
    if not gaps:
        yield
        return
    run = partial(_record, examples=examples, batch_tokens=batch_tokens, precision=precision)
    # Nothing in front of the first gap changes, so one pass shows both what its projection sees and what it has to return.
    first = _Regression(find_projection(model, gaps[0].front, examples[0]))
    outputs = [layers[gaps[0].front], *(layers[gap.last] for gap in gaps)]
    targets = []
    for states, target, *others, inputs in run(model, outputs=outputs, inputs=[first.projection.module]):
        first.add(inputs, states, target)
        targets.append([other.to("cpu", model.dtype) for other in others])
    yield
    first.solve(model, gaps[0].front)
    for number, gap in enumerate(gaps[1:]):
        fit = _Regression(find_projection(model, gap.front, examples[0]))
        passes = run(model, outputs=[find_layers(model)[gap.front]], inputs=[fit.projection.module])
        for (states, inputs), target in zip(passes, targets, strict=True):
            fit.add(inputs, states, target[number])
        fit.solve(model, gap.front)


def _gaps(depth: int, dropped: set[int]) -> list[Gap]:
    kept = [layer for layer in range(depth) if layer not in dropped]
    behind = zip(kept, [*kept[1:], depth], strict=True)
    return [Gap(front, after - 1) for front, (layer, after) in enumerate(behind) if after > layer + 1]


class _Regression:
    """Least squares for a projection: what it has to return in addition, from its inputs, summed up over passes."""

    def __init__(self, projection: Projection):
        self.projection = projection
        module = projection.module
        hidden_size, num_inputs = module.weight.shape if isinstance(module, nn.Linear) else module.weight.T.shape
        num_inputs += module.bias is not None
        shapes = ((num_inputs, num_inputs), (num_inputs, hidden_size), (1,))
        self._sums = [torch.zeros(shape, dtype=torch.float64) for shape in shapes]  # a process may have no pass

    def add(self, inputs: torch.Tensor, states: torch.Tensor, target: torch.Tensor) -> None:
        """Take in the inputs (tokens, inputs) of a pass, the states (tokens, hidden) and what they should have been."""
        inputs, states, target = inputs.float(), states.float(), target.to(states.device).float()
        if self.projection.module.bias is not None:
            inputs = torch.cat([inputs, inputs.new_ones(len(inputs), 1)], dim=1)
        weights = target.square().sum(1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny).reciprocal()
        missing = target - states
        found = (
            inputs.T @ (weights * inputs),
            inputs.T @ (weights * missing),
            (weights * missing.square()).sum()[None],
        )
        self._sums = [total + value.cpu().double() for total, value in zip(self._sums, found, strict=True)]

    def solve(self, model: PreTrainedModel, front: int) -> None:
        """Change the projection of layer `front`."""
        squares, products, error = sum_over_processes(*self._sums, model=model)
        ridge = RIDGE * squares.diagonal().mean() * torch.eye(len(squares), dtype=torch.float64)
        by = from_main(torch.cholesky_solve(products, torch.linalg.cholesky(squares + ridge)))  # (inputs, hidden)
        self.projection.change(by)
        left = error - 2 * (by * products).sum() + (by * (squares @ by)).sum()
        logger.info(
            "Layer %d stands in for those that were behind it; %.0f %% of the error is left.",
            front,
            100 * left / error,
        )


@torch.no_grad()
def _record(
    model: PreTrainedModel,
    examples: list[ScoredExample],
    batch_tokens: int | None,
    precision: Callable[[], AbstractContextManager],
    outputs: Sequence[nn.Module],
    inputs: Sequence[nn.Module] = (),
) -> Iterator[list[torch.Tensor]]:
    """Yield, per pass of this process, (tokens, size) for each module: the outputs of some, then the inputs of others."""
    found: dict[int, torch.Tensor] = {}
    was_training = model.training

    def keep(place, value):
        found[place] = value
        if len(found) == len(outputs) + len(inputs):
            raise Enough

    def leave(module, args, output, place):
        keep(place, hidden_of(output))

    def enter(module, args, place):
        keep(place, args[0])

    model.eval()
    with ExitStack() as hooks:
        hooks.callback(model.train, was_training)
        for place, module in enumerate(outputs):
            hooks.callback(module.register_forward_hook(partial(leave, place=place)).remove)
        for place, module in enumerate(inputs, len(outputs)):
            hooks.callback(module.register_forward_pre_hook(partial(enter, place=place)).remove)
        for batch in share(make_batches(model, examples, False, batch_tokens), model):
            found.clear()
            with suppress(Enough), precision(), plain_forward(model):
                model(**batch.inputs, use_cache=False, **no_logits(model))
            rows = [found[place].view(*batch.shape, -1) for place in range(len(found))]  # some see (rows · seq, size)
            yield [values[batch.counted_rows, batch.counted_positions] for values in rows]
