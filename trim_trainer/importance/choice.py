"""What goes: the least important of the layers, or of layers and seams, that can."""

from collections.abc import Callable, Iterable

from ..architectures.kept import Cut, sublayers
from .criteria import CriterionLike, find_criterion
from .scores import LayerScores


def choose_layers(
    scored: LayerScores,
    criterion: CriterionLike,
    num_layers: int,
    droppable: Callable[[tuple[Cut, ...]], Iterable[Cut]],
) -> tuple[Cut, ...]:
    """Choose the least important layers, or layers and seams.

    Args:
        scored: The scores of all layers.
        criterion: What they come from.
        num_layers: How many to choose.
        droppable: Returns what can go in addition to what was chosen so far: nothing that shares a half with that.

    Returns:
        They, in the order in which they go; fewer than asked for where the others have to stay.
    """
    norms = scored.activation_norms if find_criterion(criterion).breaks_ties else None
    counts = scored.num_examples or (0,) * len(scored.scores)
    contenders = scored.contenders or ()
    place = {cut: number for number, cut in enumerate(scored.cuts)}

    def rank(cut: Cut) -> tuple[float, ...]:
        # Of candidates that raced, those that were scored on every example; of these the lowest score.
        norm = -norms[sublayers(cut)[1] // 2] if norms else 0.0  # of the layer behind which it is gone
        return -counts[place[cut]], scored.scores[place[cut]], norm

    chosen: tuple[Cut, ...] = ()
    while len(chosen) < num_layers and (candidates := list(droppable(chosen))):
        tied = [cut for cut in candidates if cut in contenders]
        chosen += (max(tied, key=sublayers) if tied else min(candidates, key=rank),)
    return chosen
