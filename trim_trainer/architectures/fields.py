"""How each config field that says something per layer changes when layers go."""

from collections.abc import Callable
from typing import Any

from .kept import CannotSay, Kept, name_layers

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

# Which half of a layer a field is about: what it says of joined layers comes from there.
_ATTENTION, _MLP = "attention", "mlp"
HALF_OF: dict[str, str] = {
    **dict.fromkeys(
        (
            "layer_types",
            "layers_block_type",
            "no_rope_layers",
            "layer_rope_theta",
            "indexer_types",
            "num_attention_heads_per_layer",
            "attn_layers",
            "attention_layers",
            "attn_layer_indices",
            "full_attn_idxs",
            "compress_ratios",
            "local_layer_ids",
            "rope_scaling_layers",
            "linear_attn_config",
            "block_types",
            "attention_types",
            "max_window_layers",
            "num_kv_shared_layers",
            "kv_source_layers",
            "attn_layer_period",
            "attn_layer_offset",
        ),
        _ATTENTION,
    ),
    **dict.fromkeys(
        (
            "mlp_layer_types",
            "activation_sparsity_pattern",
            "swiglu_limits",
            "swiglu_limits_shared",
            "moe_topk",
            "intermediate_size",
            "moe_layers",
            "first_k_dense_replace",
            "num_dense_layers",
            "num_hash_layers",
            "decoder_sparse_step",
            "mlp_only_layers",
            "expert_layer_period",
            "expert_layer_offset",
            "moe_layer_start_index",
            "moe_layer_end_index",
            "moe_layer_interval",
        ),
        _MLP,
    ),
}


def of_half(name: str, kept: Kept) -> Kept:
    """What stays, as the half that a field is about has it.

    Raises:
        CannotSay: halves of two layers are joined, and it is not known which of them the field is about.
    """
    if not kept.is_joined:
        return kept
    if name not in HALF_OF:
        raise CannotSay(f"`{name}` says something of each layer, and it is not known of which half")
    return kept.of_mlps if HALF_OF[name] == _MLP else kept.of_attention


# The same for the config of a composite model, around that of its text decoder.
WHOLE_FIELDS = {"deepstack_layer_map": renumber_pairs, "spatial_target_layers": renumber}
