"""How each config field that says something per layer changes when layers go."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


class CannotSay(Exception):
    """No value of a config describes the layers that are left; the message is the reason."""


@dataclass(frozen=True)
class Kept:
    """Which of `depth` layers stay: their numbers, in order."""

    layers: tuple[int, ...]
    depth: int

    @property
    def dropped(self) -> list[int]:
        """Numbers of the other layers."""
        return [layer for layer in range(self.depth) if layer not in self.layers]

    def renumber(self, numbers, first: int = 0) -> list[int]:
        """New numbers of those of the `numbers` that stay; both count from `first`."""
        new_number = {old + first: new + first for new, old in enumerate(self.layers)}
        return [new_number[number] for number in numbers if number in new_number]

    def select(self, values) -> list:
        """The entries of the layers that stay, each with its own value."""
        return [values[layer] for layer in self.layers]


# One field at a time: rule(value, kept) -> new value.


def select(values, kept: Kept):
    """A list with an entry per layer: entries of dropped layers go. A single value is that of all layers."""
    if not isinstance(values, list | tuple):
        return values
    if len(values) != kept.depth:
        raise CannotSay(f"it has {len(values)} entries for {kept.depth} layers")
    return kept.select(values)


def renumber(numbers, kept: Kept):
    """A list of layer numbers, from 0. An empty one stays a list: None may mean a default."""
    return kept.renumber(numbers) if isinstance(numbers, list | tuple) else numbers


def renumber_from_one(numbers, kept: Kept):
    """A list of layer numbers, from 1."""
    return kept.renumber(numbers, first=1) if isinstance(numbers, list | tuple) else numbers


def count_leading(count, kept: Kept):
    """A number of leading layers: those of them that stay lead again."""
    return sum(layer < count for layer in kept.layers) if isinstance(count, int) else count


def count_trailing(count, kept: Kept):
    """A number of trailing layers."""
    return sum(layer >= kept.depth - count for layer in kept.layers) if isinstance(count, int) else count


def select_cycled(values, kept: Kept):
    """A pattern that repeats over the depth, spelt out."""
    return select([values[layer % len(values)] for layer in range(kept.depth)], kept) if values else values


def select_repeated(groups, kept: Kept):
    """GPT-Neo's `[[kinds, repetitions], ...]`, spelt out."""
    kinds = [kind for kinds, repetitions in groups for _ in range(repetitions) for kind in kinds]
    return [[[kind], 1] for kind in select(kinds, kept)]


def select_keys(overrides, kept: Kept):
    """A dict from layer number to that layer's settings."""
    if not isinstance(overrides, dict):
        return overrides
    new_number = {old: new for new, old in enumerate(kept.layers)}
    return {str(new_number[int(old)]): value for old, value in overrides.items() if int(old) in new_number}


def renumber_nested(settings, kept: Kept):
    """Kimi's `linear_attn_config`: lists of layer numbers, from 1, beside sizes."""
    if not isinstance(settings, dict):
        return settings
    lists = {
        name: kept.renumber(settings[name], first=1) for name in ("full_attn_layers", "kda_layers") if name in settings
    }
    return settings | lists


def renumber_pairs(pairs, kept: Kept):
    """A list of [vision layer, text layer]."""
    return [[vision, kept.renumber([text])[0]] for vision, text in pairs] if isinstance(pairs, list | tuple) else pairs


def select_sources(sources, kept: Kept):
    """A list that names, per layer, the layer whose keys and values it reads."""
    if not isinstance(sources, list | tuple):
        return sources
    new_number = {old: new for new, old in enumerate(kept.layers)}
    missing = sorted({sources[layer] for layer in kept.layers} - new_number.keys())
    if missing:
        raise CannotSay(f"layers that stay read the keys and values of {name_layers(missing)}")
    return [new_number[sources[layer]] for layer in kept.layers]


# What the fields of all model types mean. An unknown list with an entry per layer is refused, see `rewrite`.
FIELDS: dict[str, Callable[[Any, Kept], Any]] = {
    **dict.fromkeys(
        (
            "layer_types",
            "mlp_layer_types",
            "layers_block_type",
            "no_rope_layers",
            "layer_rope_theta",
            "indexer_types",
            "num_attention_heads_per_layer",
            "activation_sparsity_pattern",
            "swiglu_limits",
            "swiglu_limits_shared",
            "moe_topk",
            "intermediate_size",
            "attn_layers",
            "attention_layers",
            "compress_ratios",
        ),
        select,
    ),
    **dict.fromkeys(
        (
            "attn_layer_indices",
            "cross_attention_layers",
            "full_attn_idxs",
            "hybrid_layer_ids",
            "local_layer_ids",
            "moe_layers",
            "rope_scaling_layers",
        ),
        renumber,
    ),
    "ple_layer_ids": renumber_from_one,
    "linear_attn_config": renumber_nested,
    "kv_source_layers": select_sources,
    "block_types": select_cycled,
    "attention_types": select_repeated,
    "per_layer_config": select_keys,
    **dict.fromkeys(
        ("first_k_dense_replace", "num_dense_layers", "max_window_layers", "num_hash_layers"), count_leading
    ),
    "num_kv_shared_layers": count_trailing,
    # Layers that predict further tokens are neither loaded nor saved by Transformers.
    **dict.fromkeys(("num_nextn_predict_layers", "num_mtp_layers"), lambda count, kept: 0 if count else count),
}

# The same for the config of a composite model, around that of its text decoder.
WHOLE_FIELDS = {"deepstack_layer_map": renumber_pairs, "spatial_target_layers": renumber}

# The names of the depth. The first that a config has is the depth; the others follow it where they agree.
DEPTHS = (
    "num_layers_per_stack",
    "decoder_layers",
    "num_decoder_layers",
    "num_hidden_layers",
    "n_layer",
    "n_layers",
    "num_layers",
    "layers",
    "num_blocks",
)
# An encoder-decoder config that is used for its decoder alone still sizes the KV cache by these.
ENCODER_DEPTHS = ("encoder_layers", "num_encoder_layers")
# Lists whose length is the depth, for configs that derive the number from them.
DEPTH_LISTS = ("layers_block_type", "attn_layers")

# Legacy fields that a list overrides, and that Transformers keeps writing: other runtimes may read them, so they go.
STALE = {
    "sliding_window_pattern": "layer_types",
    "_sliding_window_pattern": "layer_types",
    "global_attn_every_n_layers": "layer_types",
    "full_attention_interval": "layer_types",
    "layer_group_size": "layer_types",
    "no_rope_layer_interval": "no_rope_layers",
    "interleave_moe_layer_step": "moe_layers",
    "index_topk_pattern": "indexer_types",
    "index_topk_freq": "indexer_types",
    "index_skip_topk_offset": "indexer_types",
    "moe_layer_freq": "mlp_layer_types",
    "moe_layers_enum": "mlp_layer_types",
    "attn_layer_period": "layers_block_type",
    "attn_layer_offset": "layers_block_type",
    "hybrid_override_pattern": "layers_block_type",
}

# Lists that may have as many entries as there are layers by chance.
NOT_PER_LAYER = (
    "architectures",
    "mrope_section",
    "ssm_multipliers",
    "mlp_multipliers",
    "encoder_hash_byte_group_size",
    "moe_intermediate_size",
)


def depth_of(fields: dict[str, Any]) -> int | None:
    """The number of decoder layers that a config names; None: it names none."""
    for name in DEPTHS:
        if isinstance(fields.get(name), int):
            return fields[name]
    return next((len(fields[name]) for name in DEPTH_LISTS if fields.get(name)), None)


def rewrite(
    fields: dict[str, Any], kept: Kept, joint: tuple[Callable[[dict, Kept], dict], ...] = ()
) -> dict[str, Any]:
    """Return the fields of the same model with only the layers `kept`.

    Args:
        fields: Of the config of the text decoder, as in `config.json`.
        kept: The layers that stay.
        joint: Rules of the model type for fields that only mean something together: each returns new values.

    Raises:
        CannotSay: no value of a field describes these layers.
    """
    new = {name: _apply(name, value, kept) for name, value in fields.items()}
    for name in DEPTHS:
        if fields.get(name) == kept.depth:
            new[name] = len(kept.layers)
    if any(name in fields for name in ("decoder_layers", "num_decoder_layers")):
        new |= {name: len(kept.layers) for name in ENCODER_DEPTHS if name in fields}
    for rule in (dense_layers, *joint):
        new |= rule(fields, kept)
    stale = stale_fields(new)
    return {name: value for name, value in new.items() if name not in stale}


def stale_fields(fields: dict[str, Any]) -> set[str]:
    """Names of the legacy fields that a list of these fields overrides."""
    return {name for name, overridden_by in STALE.items() if fields.get(overridden_by) is not None}


def _apply(name: str, value: Any, kept: Kept) -> Any:
    if name in FIELDS:
        try:
            return FIELDS[name](value, kept)
        except CannotSay as error:
            raise CannotSay(f"`{name}`: {error}") from None
    if (
        isinstance(value, list)
        and len(value) == kept.depth
        and name not in NOT_PER_LAYER
        and not name.startswith("mtp_")
    ):
        raise CannotSay(f"`{name}` has an entry per layer and is not known; please report this model type")
    return value


# Several fields at a time: rule(fields, kept) -> new values.


def dense_layers(fields: dict[str, Any], kept: Kept) -> dict[str, Any]:
    """Qwen's `decoder_sparse_step` and `mlp_only_layers`: every layer that has no experts is listed."""
    step = fields.get("decoder_sparse_step")
    if step is None:
        return {}
    listed = fields.get("mlp_only_layers") or []
    dense = [layer for layer in range(kept.depth) if layer in listed or (layer + 1) % step]
    return {"decoder_sparse_step": 1, "mlp_only_layers": kept.renumber(dense)}


def periodic(period: str, offset: str) -> Callable[[dict, Kept], dict]:
    """Layers of one kind at `offset` of every `period`: what is left must be periodic again (Jamba)."""

    def rule(fields: dict[str, Any], kept: Kept) -> dict[str, Any]:
        is_special = [layer % fields[period] == fields[offset] for layer in kept.layers]
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

    wanted = [has_experts(layer, start, end, interval) for layer in kept.layers]
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


def name_layers(numbers) -> str:
    """`layer 3` or `layers 3, 5`."""
    numbers = list(numbers)
    return f"layer{'s' if len(numbers) > 1 else ''} {', '.join(map(str, numbers))}"
