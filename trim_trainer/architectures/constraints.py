"""Which layers have to stay because no config can describe the model without them."""

from collections.abc import Callable
from typing import Any

from .kept import Kept, name_layers

# A constraint looks at the fields of the decoder's config as it is now and returns why `kept` cannot be, or None.
Constraint = Callable[[dict[str, Any], Kept], str | None]

# Kinds of layers without keys and values; all others attend.
_WITHOUT_ATTENTION = {"linear_attention", "conv", "mamba", "mamba2", "moe", "mlp", "recurrent"}


def keeps_attention(fields: dict[str, Any], kept: Kept) -> str | None:
    """A hybrid keeps an attention layer: the cache reads its length from one."""
    attends = _attending(fields, kept.depth)
    if all(attends) or not any(attends) or any(kept.select(attends)):
        return None
    return f"no attention layer would be left, and the KV cache takes its length from one; keep one of {_numbers(attends)}"


def keeps_indexers(fields: dict[str, Any], kept: Kept) -> str | None:
    """A layer with a `shared` indexer uses the tokens that the last `full` one before it selected."""
    kinds = fields.get("indexer_types") or []
    leader = None
    for layer, kind in enumerate(kinds):
        leader = layer if kind == "full" else leader
        if layer in kept.layers and kind == "shared" and leader not in kept.layers:
            return f"layer {layer} uses the tokens that the indexer of layer {leader} selects (`indexer_types`)"
    return None


def keeps_shared_kv(fields: dict[str, Any], kept: Kept) -> str | None:
    """The last layers read the keys and values of the last layer before them of their own type."""
    num_shared, types = fields.get("num_kv_shared_layers") or 0, fields.get("layer_types") or []
    first_shared = kept.depth - num_shared
    for layer in kept.layers:
        if layer >= first_shared:
            source = max(number for number in range(first_shared) if types[number] == types[layer])
            if source not in kept.layers:
                return f"layer {layer} reads the keys and values of layer {source} (`num_kv_shared_layers`)"
    return None


# Constraints that hold wherever their fields are.
CONSTRAINTS: tuple[Constraint, ...] = (keeps_attention, keeps_indexers, keeps_shared_kv)


def keeps_image_layers(whole: dict[str, Any], kept: Kept) -> str | None:
    """Layers of a vision-language model to whose output features of the image are added."""
    num_first = len((whole.get("vision_config") or {}).get("deepstack_visual_indexes") or [])
    listed = {layer for _, layer in whole.get("deepstack_layer_map") or []} | set(
        whole.get("spatial_target_layers") or []
    )
    wrong = [layer for layer in kept.touched if layer < num_first or layer in listed]
    return f"features of the image are added to {name_layers(wrong)}" if wrong else None


# Constraints of single model types.


def first_stays(reason: str) -> Constraint:
    """Layer 0 differs from the others in a way that no field says."""
    return lambda fields, kept: None if kept.layers[0] == 0 else f"layer 0 has to stay: {reason}"


def first_is_full_attention(fields: dict[str, Any], kept: Kept) -> str | None:
    """MiniMax's cache takes its length from layer 0."""
    if fields["layer_types"][kept.layers[0]] == "full_attention":
        return None
    return "the first layer has to be a `full_attention` layer: the KV cache takes its length from it"


def last_is_full_attention(fields: dict[str, Any], kept: Kept) -> str | None:
    """Gemma 4's config turns the last layer into full attention whatever it says."""
    if fields["layer_types"][kept.layers[-1]] == "full_attention":
        return None
    return "the last layer has to be a `full_attention` layer: the config makes it one on load"


def keeps_linear_attention(fields: dict[str, Any], kept: Kept) -> str | None:
    """OLMo-Hybrid's config refuses a model without linear attention."""
    if "linear_attention" in kept.select(fields["layer_types"]):
        return None
    return "one `linear_attention` layer has to stay: the config refuses a model without"


def keeps_two_hybrids(fields: dict[str, Any], kept: Kept) -> str | None:
    """Zamba ties the later `hybrid` layers to the first."""
    if kept.select(fields["layers_block_type"]).count("hybrid") >= 2:
        return None
    return "two `hybrid` layers have to stay: their weights are tied to each other"


def keeps_memory_blocks(fields: dict[str, Any], kept: Kept) -> str | None:
    """Zamba 2 deals its shared blocks out to the `hybrid` layers in turn."""
    hybrids = [layer for layer, kind in enumerate(fields["layers_block_type"]) if kind == "hybrid"]
    left, num_blocks = [layer for layer in hybrids if layer in kept.layers], fields["num_mem_blocks"]
    if len(left) < num_blocks:
        return f"{num_blocks} `hybrid` layers have to stay, one for each shared block (`num_mem_blocks`)"
    if any(hybrids.index(layer) % num_blocks != number % num_blocks for number, layer in enumerate(left)):
        return "a `hybrid` layer that stays would get another shared block (`num_mem_blocks`)"
    return None


def keeps_leading_embeddings(fields: dict[str, Any], kept: Kept) -> str | None:
    """Qwen4-Exp sizes the hash tables of per-layer embeddings by their rank among the layers that have one."""
    with_table = [number - 1 for number in fields.get("ple_layer_ids") or []]
    left = [layer for layer in with_table if layer in kept.layers]
    if left == with_table[: len(left)]:
        return None
    return f"of {name_layers(with_table)} with an embedding of their own (`ple_layer_ids`) only the last can go"


def keeps_residual_blocks(fields: dict[str, Any], kept: Kept) -> str | None:
    """Inkling 2 sums every `n_layers_per_attn_res_block` layers into a source of later layers."""
    size = fields["n_layers_per_attn_res_block"]
    last_block = (kept.depth - 1) // size * size  # its layers feed no later block; its first one starts it
    wrong = [layer for layer in kept.touched if layer <= last_block]
    if not wrong:
        return None
    return f"{name_layers(wrong)} belong to blocks of {size} that later layers read (`n_layers_per_attn_res_block`)"


def _attending(fields: dict[str, Any], depth: int) -> list[bool]:
    """Whether each layer attends; all of them where the config says nothing."""
    if fields.get("attn_layer_indices") is not None:
        return [layer in fields["attn_layer_indices"] for layer in range(depth)]
    kinds = fields.get("layers_block_type") or fields.get("layer_types")
    if isinstance(kinds, list):
        return [kind not in _WITHOUT_ATTENTION for kind in kinds]
    if "attn_layer_period" in fields:
        return [layer % fields["attn_layer_period"] == fields["attn_layer_offset"] for layer in range(depth)]
    return [True] * depth


def _numbers(flags: list[bool]) -> str:
    return ", ".join(str(number) for number, flag in enumerate(flags) if flag)
