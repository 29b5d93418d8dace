"""Config fields that only mean something together, and how they change when layers go."""

import math
from collections.abc import Callable
from typing import Any

from .fields import of_half
from .kept import CannotSay, Kept

# Several fields at a time: rule(fields, kept) -> new values.


def dense_layers(fields: dict[str, Any], kept: Kept) -> dict[str, Any]:
    """Qwen's `decoder_sparse_step` and `mlp_only_layers`: every layer that has no experts is listed."""
    step = fields.get("decoder_sparse_step")
    if step is None:
        return {}
    listed = fields.get("mlp_only_layers") or []
    dense = [layer for layer in range(kept.depth) if layer in listed or (layer + 1) % step]
    return {"decoder_sparse_step": 1, "mlp_only_layers": of_half("mlp_only_layers", kept).renumber(dense)}


def periodic(period: str, offset: str) -> Callable[[dict, Kept], dict]:
    """Layers of one kind at `offset` of every `period`: what is left must be periodic again (Jamba)."""

    def rule(fields: dict[str, Any], kept: Kept) -> dict[str, Any]:
        is_special = [layer % fields[period] == fields[offset] for layer in of_half(period, kept).layers]
        for new_period in range(1, len(is_special) + 2):
            for new_offset in range(new_period):
                if is_special == [layer % new_period == new_offset for layer in range(len(is_special))]:
                    return {period: new_period, offset: new_offset}
        raise CannotSay(f"`{period}` and `{offset}` can only describe a regular pattern; drop whole periods")

    return rule


def expert_range(fields: dict[str, Any], kept: Kept) -> dict[str, Any]:
    """ERNIE 4.5: layers with experts lie in a range, at an interval."""
    start, interval = fields["moe_layer_start_index"], fields["moe_layer_interval"]
    end = fields["moe_layer_end_index"]
    end = kept.depth - 1 if end == -1 else end

    def has_experts(layer: int, start: int, end: int, interval: int) -> bool:
        return (layer + 1) % interval == 0 and start <= layer <= end

    wanted = [has_experts(layer, start, end, interval) for layer in of_half("moe_layer_interval", kept).layers]
    numbers = [layer for layer, is_sparse in enumerate(wanted) if is_sparse] or [len(wanted)]
    for new_interval in range(1, len(wanted) + 1):
        new = (numbers[0], numbers[-1], new_interval)
        if wanted == [has_experts(layer, *new) for layer in range(len(wanted))]:
            return dict(zip(("moe_layer_start_index", "moe_layer_end_index", "moe_layer_interval"), new, strict=True))
    raise CannotSay("`moe_layer_interval` can only describe a regular pattern of layers with experts")


def residual_scale(fields: dict[str, Any], kept: Kept) -> dict[str, Any]:
    """MiniCPM3 scales each branch by scale_depth / sqrt(depth): the quotient stays."""
    return {"scale_depth": fields["scale_depth"] * math.sqrt(len(kept.layers) / kept.depth)}


def recurrent_depth(fields: dict[str, Any], kept: Kept) -> dict[str, Any]:
    """HRM runs two stacks in cycles; `num_hidden_layers` counts every visit of a layer."""
    return {"num_hidden_layers": len(kept.layers) * fields["H_cycles"] * (fields["L_cycles"] + 1)}
