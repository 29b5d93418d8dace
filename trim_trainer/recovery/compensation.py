"""Layers in front of dropped ones take over what they added, by least squares."""

import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial

from transformers import PreTrainedModel

from ..architectures.kept import Cut, Kept
from ..architectures.modules import find_layers
from ..data.examples import ScoredExample
from ..scoring.passes import begins_midway, record
from ..scoring.processes import from_main
from ..scoring.projection import find_projection
from ..scoring.regression import Regression
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

    def dropping(self, model: PreTrainedModel, cuts: Iterable[Cut]) -> AbstractContextManager[None]:
        """Drop layers and seams within, see `compensated`."""
        return compensated(model, cuts, self.examples, self.batch_tokens, self.precision)

    def takeovers(self, model: PreTrainedModel, candidates: Iterable[Cut]) -> dict[Cut, Takeover]:
        """What would be taken over from each candidate alone, see `solve_takeovers`."""
        return solve_takeovers(model, candidates, self.examples, self.batch_tokens, self.precision)


@dataclass(frozen=True)
class Gap:
    """Consecutive layers that go, wholly or but for the MLP half of one, behind one that stays."""

    front: int  # number of the one that stays, after the drop
    last: int  # number of the last one that goes, before the drop


@contextmanager
def compensated(
    model: PreTrainedModel,
    cuts: Iterable[Cut],
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
    them are not compensated for. At a seam the layer that is left of two learns to return what the second did.

    Several processes share the passes, and all get what the main one has solved. There is one pass before the drop, and
    for all gaps but the first together another one behind the first gap; where a pass cannot begin there, a whole one for
    each. States stay on the CPU meanwhile: tokens · hidden size numbers for each gap.

    Args:
        model: A causal LM before the drop, with plain weights, whole in this process.
        cuts: Layers and seams that go.
        examples: On whose tokens states are compared; none: layers are dropped and nothing else.
        batch_tokens: Tokens that one pass carries at most.
        precision: Makes the context in which the model runs, such as autocast.

    Raises:
        UnsupportedArchitectureError: there is no such projection, see `check_compensation`.
    """
    layers = find_layers(model)
    kept = Kept.without(len(layers), cuts)
    gaps = _gaps(kept) if examples else []
    if not gaps:
        yield
        return
    run = partial(record, examples=examples, batch_tokens=batch_tokens, precision=precision)
    fit, inputs = None, []
    outputs = [layers[gap.last] for gap in gaps]
    if 0 in kept.layers and kept.layers[gaps[0].front] not in kept.joined:
        # Nothing in front of the first gap changes: one pass shows what its projection sees, and what it has to return.
        fit = Regression(find_projection(model, gaps[0].front, examples[0]))
        outputs = [layers[gaps[0].front], *outputs]
        inputs = [fit.projection.module, layers[gaps[0].front]]
    targets, fronts = [], []
    for values in run(model, outputs=outputs, inputs=inputs):
        if fit is not None:
            states, *values, given, front = values
            fit.add(given, states, values[0])
            if len(gaps) == 1:
                continue  # no pass comes behind this one
            fronts.append(front.to("cpu", model.dtype))
        targets.append([value.to("cpu", model.dtype) for value in values])
    yield
    begin = None
    for number, gap in enumerate(gaps):
        layer = find_layers(model)[gap.front]
        if number > 0 or fit is None:
            fit = Regression(find_projection(model, gap.front, examples[0]))
            passes = run(model, outputs=[layer], inputs=[fit.projection.module, layer], begin=begin)
            fronts = []
            for (states, given, front), target in zip(passes, targets, strict=True):
                fit.add(given, states, target[number])
                fronts.append(front.to("cpu", model.dtype))
        _take_over(fit, model, gap.front)
        # What the layer in front of a gap is given does not change any more: the next pass begins there.
        begin = (gap.front, fronts) if number + 1 < len(gaps) and begins_midway(model, examples, gap.front) else None


def _take_over(fit: Regression, model: PreTrainedModel, front: int) -> None:
    by, left = fit.solve(model)
    fit.projection.change(from_main(by))
    logger.info("Layer %d stands in for those that were behind it; %.0f %% of the error is left.", front, 100 * left)


def _gaps(kept: Kept) -> list[Gap]:
    behind = zip(kept.layers, [*kept.layers[1:], kept.depth], strict=True)
    return [Gap(front, after - 1) for front, (layer, after) in enumerate(behind) if after > layer + 1]
