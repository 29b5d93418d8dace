"""Which layers stay, whatever their scores: those that are named, or the first third."""

from collections.abc import Collection, Iterable

from transformers import PretrainedConfig, PreTrainedModel

from ..architectures.droppable import droppable_layers
from ..importance.criteria import CriterionLike, find_criterion

# Of all layers, and of those that a run will keep, how many stay where the config names none: docs/pages/results.md.
OF_ALL, OF_KEPT = 1 / 3, 5 / 6


def choose_protected_layers(
    protected_layers: Iterable[int] | None,
    criterion: CriterionLike,
    model: PreTrainedModel | PretrainedConfig,
    depth: int,
    target: int,
) -> tuple[int, ...]:
    """Layers that are never dropped: those that the config names; None: the first third, where the criterion asks for it.

    Of a deep cut it is less than a third, so that some of the others stay too, and fewer where the architecture lets no
    others go.

    Args:
        protected_layers: As in `TrimConfig`.
        criterion: By which layers are chosen.
        model: The untrimmed model, or its config.
        depth: Its number of layers.
        target: How many the run will keep.
    """
    if protected_layers is not None:
        return tuple(sorted(protected_layers))
    if not find_criterion(criterion).spares_first:
        return ()
    number = int(min(OF_ALL * depth, OF_KEPT * target) + 1e-9)
    while number and lowest_depth(model, depth, target, range(number)) > target:
        number -= 1
    return tuple(range(number))


def lowest_depth(
    model: PreTrainedModel | PretrainedConfig, depth: int, target: int, protected: Collection[int]
) -> int:
    """The depth that can be reached on the way to `target`: `target` itself, or above it where too many have to stay."""
    dropped: tuple[int, ...] = ()
    while depth - len(dropped) > target:
        candidates = [layer for layer in droppable_layers(model, dropped) if layer not in protected]
        if not candidates:
            break
        dropped += (candidates[-1],)
    return depth - len(dropped)
