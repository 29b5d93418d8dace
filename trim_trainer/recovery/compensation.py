"""Layers in front of dropped ones take over what they added, by least squares."""

import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial

from transformers import PreTrainedModel

from ..architectures.modules import find_layers
from ..data.examples import ScoredExample
from ..scoring.processes import from_main
from ..scoring.projection import find_projection
from ..scoring.regression import Regression, record
from ..scoring.solutions import solve_takeovers
from ..scoring.takeover import Takeover

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Compensation:
    """How a run makes good what it drops: on which examples, in which precision.

    Attributes:
        examples: On whose tokens states are compared.
        batch_tokens: Tokens that one pass carries at most; None: what is fast on the device.
        precision: Makes the context in which the model runs, such as autocast.
    """

    examples: list[ScoredExample]
    batch_tokens: int | None = None
    precision: Callable[[], AbstractContextManager] = nullcontext

    def dropping(self, model: PreTrainedModel, dropped: Iterable[int]) -> AbstractContextManager[None]:
        """Drop layers within, see `compensated`."""
        return compensated(model, dropped, self.examples, self.batch_tokens, self.precision)

    def takeovers(self, model: PreTrainedModel, candidates: Iterable[int]) -> dict[int, Takeover]:
        """What would be taken over from each candidate alone, see `solve_takeovers`."""
        return solve_takeovers(model, candidates, self.examples, self.batch_tokens, self.precision)


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
    run = partial(record, examples=examples, batch_tokens=batch_tokens, precision=precision)
    # Nothing in front of the first gap changes, so one pass shows both what its projection sees and what it has to return.
    first = Regression(find_projection(model, gaps[0].front, examples[0]))
    outputs = [layers[gaps[0].front], *(layers[gap.last] for gap in gaps)]
    targets = []
    for states, target, *others, inputs in run(model, outputs=outputs, inputs=[first.projection.module]):
        first.add(inputs, states, target)
        targets.append([other.to("cpu", model.dtype) for other in others])
    yield
    _take_over(first, model, gaps[0].front)
    for number, gap in enumerate(gaps[1:]):
        fit = Regression(find_projection(model, gap.front, examples[0]))
        passes = run(model, outputs=[find_layers(model)[gap.front]], inputs=[fit.projection.module])
        for (states, inputs), target in zip(passes, targets, strict=True):
            fit.add(inputs, states, target[number])
        _take_over(fit, model, gap.front)


def _take_over(fit: Regression, model: PreTrainedModel, front: int) -> None:
    by, left = fit.solve(model)
    fit.projection.change(from_main(by))
    logger.info("Layer %d stands in for those that were behind it; %.0f %% of the error is left.", front, 100 * left)


def _gaps(depth: int, dropped: set[int]) -> list[Gap]:
    kept = [layer for layer in range(depth) if layer not in dropped]
    behind = zip(kept, [*kept[1:], depth], strict=True)
    return [Gap(front, after - 1) for front, (layer, after) in enumerate(behind) if after > layer + 1]
