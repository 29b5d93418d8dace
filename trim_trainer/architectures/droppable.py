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
from .kept import CannotSay, Kept, name_layers
from .module_names import renumber_names
from .rewriting import rewrite
from .table import Architecture, find_architecture


def trimmed_fields(config: PretrainedConfig, layers: tuple[int, ...]) -> dict[str, Any]:
    """Return `config.to_dict()` of the same model with only `layers`.

    Lists are selected from, never cut, so that each layer keeps its own type.

    Raises:
        UnsupportedArchitectureError: no layer of this model can be dropped.
        LayerConstraintError: no config describes these layers.
    """
    kept = Kept(tuple(layers), num_layers(config))
    try:
        return _trim(config.to_dict(), text_path(config), find_architecture(config), kept)
    except CannotSay as reason:
        raise LayerConstraintError(
            f"Cannot drop {name_layers(kept.dropped)} of this {config.model_type!r} model: {reason}."
        ) from None


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
    config = getattr(model, "config", model)
    row, depth, gone = find_architecture(config), num_layers(config), set(dropped)
    whole, path = config.to_dict(), text_path(config)

    def can_go(layer: int) -> bool:
        left = tuple(number for number in range(depth) if number not in gone | {layer})
        try:
            return bool(left) and bool(_trim(whole, path, row, Kept(left, depth)))
        except CannotSay:
            return False

    return tuple(layer for layer in range(depth) if layer not in gone and can_go(layer))
