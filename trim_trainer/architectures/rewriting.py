"""The fields of a decoder's config with only the layers that stay."""

from collections.abc import Callable
from typing import Any

from .fields import FIELDS, HALF_OF, of_half
from .joint_fields import dense_layers
from .kept import CannotSay, Kept

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

# Names of the text decoder's config inside that of a composite model.
TEXT_CONFIGS = ("text_config", "thinker_config", "llm_config", "language_config", "decoder", "global_config")

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


def depth_in(config: dict[str, Any]) -> int | None:
    """The same of a whole `config.json`, whose text decoder may be a part of it."""
    part = next((config[name] for name in TEXT_CONFIGS if isinstance(config.get(name), dict)), None)
    return depth_of(config) if part is None else depth_in(part)


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
        return _change(name, value, kept)
    if (
        isinstance(value, list)
        and len(value) == kept.depth
        and name not in NOT_PER_LAYER
        and not name.startswith("mtp_")
    ):
        raise CannotSay(f"`{name}` has an entry per layer and is not known; please report this model type")
    return value


def _change(name: str, value: Any, kept: Kept) -> Any:
    """A field as its rule changes it; where halves of two layers are joined, as the half has it that it is about."""
    rule = FIELDS[name]
    try:
        if kept.is_joined and name not in HALF_OF:
            new = rule(value, kept.of_attention)
            if new == rule(value, kept.of_mlps):
                return new
        return rule(value, of_half(name, kept))
    except CannotSay as error:
        raise CannotSay(f"`{name}`: {error}") from None
