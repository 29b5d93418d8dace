"""Which layers go: the least important of those that can."""

from collections.abc import Callable, Iterable

from .criteria import CriterionLike, find_criterion
from .scores import LayerScores


def choose_layers(
    scored: LayerScores,
    criterion: CriterionLike,
    num_layers: int,
    droppable: Callable[[tuple[int, ...]], Iterable[int]],
) -> tuple[int, ...]:
    """Choose the least important layers.

    Args:
        scored: The scores of all layers.
        criterion: What they come from.
        num_layers: How many to choose.
        droppable: Returns the layers that can go in addition to those chosen so far.

    Returns:
        Their numbers, in the order in which they go; fewer than asked for where the others have to stay.
    """
    norms = scored.activation_norms if find_criterion(criterion).breaks_ties else None
    counts = scored.num_examples or (0,) * len(scored.scores)
    contenders = scored.contenders or ()
    chosen: tuple[int, ...] = ()
    while len(chosen) < num_layers and (candidates := list(droppable(chosen))):
        if tied := [layer for layer in candidates if layer in contenders]:
            chosen += (max(tied),)
            continue
        # Of candidates that raced, those that were scored on every example; of these the lowest score.
        best = min(
            candidates, key=lambda layer: (-counts[layer], scored.scores[layer], -norms[layer] if norms else 0.0)
        )
        chosen += (best,)
    return chosen
