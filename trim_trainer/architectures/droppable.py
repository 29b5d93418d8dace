"""The config of a model without some of its layers, and which layers can go."""

from collections.abc import Iterable
from typing import Any

from transformers import (
    PretrainedConfig,
    PreTrainedModel,
)

from .configs import num_layers, text_path
from .constraints import CONSTRAINTS, keeps_image_layers
from .errors import LayerConstraintError
from .fields import WHOLE_FIELDS
from .halves import find_halves
from .kept import CannotSay, Cut, Kept, Seam, candidate_cuts, sublayers
from .module_names import renumber_names
from .rewriting import rewrite
from .table import Architecture, find_architecture


def keep_without(config: PretrainedConfig, cuts: Iterable[Cut]) -> Kept:
    """What stays of the layers of a model when these layers and seams go.

    Raises:
        UnsupportedArchitectureError: the layers of this model have no halves that could be joined.
        ValueError: a half would go twice.
    """
    cuts = tuple(cuts)
    parts = find_halves(config).mlp if any(isinstance(cut, Seam) for cut in cuts) else ()
    return Kept.without(num_layers(config), cuts, parts)


def trimmed_fields(config: PretrainedConfig, kept: Kept) -> dict[str, Any]:
    """Return `config.to_dict()` of the same model with only what is `kept`.

    Lists are selected from, never cut, so that each layer keeps its own type.

    Raises:
        UnsupportedArchitectureError: no layer of this model can be dropped.
        LayerConstraintError: no config describes these layers.
    """
    try:
        return _trim(config.to_dict(), text_path(config), find_architecture(config), kept)
    except CannotSay as reason:
        raise LayerConstraintError(f"Cannot drop {kept} of this {config.model_type!r} model: {reason}.") from None


def _trim(whole: dict[str, Any], path: tuple[str, ...], row: Architecture, kept: Kept) -> dict[str, Any]:
    """The fields of a config, that of its decoder at `path`, with only the layers `kept`; or CannotSay."""
    if path:
        if reason := keeps_image_layers(whole, kept):
            raise CannotSay(reason)
        new = whole | {name: rule(whole[name], kept) for name, rule in WHOLE_FIELDS.items() if name in whole}
        new |= {path[0]: _trim(whole[path[0]], path[1:], row, kept)}
    else:
        for constraint in (*CONSTRAINTS, *row.constraints):
            if reason := constraint(whole, kept):
                raise CannotSay(reason)
        new = rewrite(whole, kept, row.joint)
    if "quantization_config" in new:
        new["quantization_config"] = renumber_names(new["quantization_config"], kept)
    return new


def droppable_layers(model: PreTrainedModel | PretrainedConfig, dropped: Iterable[int] = ()) -> tuple[int, ...]:
    """Return the numbers of the layers that can be dropped, each on its own, in addition to `dropped`.

    Layers that are not listed hold something that others need, and that no config can move: keys and values that later
    layers read, an indexer, the last attention of a hybrid.

    Args:
        model: A causal LM, or its config.
        dropped: Layers that are taken as gone, by their numbers in the model as it is.

    Raises:
        UnsupportedArchitectureError: no layer of this model can be dropped.
    """
    return tuple(cut for cut in droppable_cuts(model, dropped) if not isinstance(cut, Seam))


def droppable_seams(
    model: PreTrainedModel | PretrainedConfig, dropped: Iterable[int] = (), seams: Iterable[tuple[int, int]] = ()
) -> tuple[tuple[int, int], ...]:
    """Return the pairs of neighbouring layers of which one can be left, each alone, in addition to what is gone.

    The MLP half of the first and the attention half of the second go then, see `drop_layers`.

    Args:
        model: A causal LM, or its config.
        dropped: Layers that are taken as gone, by their numbers in the model as it is.
        seams: Pairs that are taken as joined.

    Raises:
        UnsupportedArchitectureError: no layer of this model can be dropped; or its layers have no halves to join.
    """
    gone = [*dropped, *(Seam(front) for front, _ in seams)]
    cuts = droppable_cuts(model, gone, with_seams=True)
    return tuple((cut.front, cut.back) for cut in cuts if isinstance(cut, Seam))


def droppable_cuts(
    model: PreTrainedModel | PretrainedConfig, dropped: Iterable[Cut] = (), with_seams: bool = False
) -> tuple[Cut, ...]:
    """Return the layers, and the seams between them, that can be dropped in addition to `dropped`, in the model's order.

    Args:
        model: A causal LM, or its config.
        dropped: Layers and seams that are taken as gone. What shares a half with one of them cannot go.
        with_seams: Whether seams may go.

    Raises:
        UnsupportedArchitectureError: no layer of this model can be dropped; or its layers have no halves.
    """
    config = getattr(model, "config", model)
    row, depth, gone = find_architecture(config), num_layers(config), tuple(dict.fromkeys(dropped))
    parts = find_halves(config).mlp if with_seams else ()
    whole, path = config.to_dict(), text_path(config)
    taken = {sublayer for cut in gone for sublayer in sublayers(cut)}

    def can_go(cut: Cut) -> bool:
        if taken & set(sublayers(cut)) or len(gone) + 1 >= depth:
            return False
        try:
            return bool(_trim(whole, path, row, Kept.without(depth, (*gone, cut), parts)))
        except CannotSay:
            return False

    return tuple(cut for cut in candidate_cuts(depth, with_seams) if can_go(cut))
