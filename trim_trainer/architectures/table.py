"""What one model type needs beyond the conventions: rows, not branches."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    PretrainedConfig,
)

from . import constraints, edits, joint_fields
from .configs import text_config
from .constraints import Constraint
from .errors import UnsupportedArchitectureError
from .kept import Kept


@dataclass(frozen=True)
class Architecture:
    """What a model type needs beyond the conventions in `fields`, `joint_fields` and `constraints`. Most need nothing.

    Attributes:
        stacks: Attributes of the decoder that hold the layers, where not one list of modules is as long as the depth.
        joint: Rules for fields that only mean something together.
        constraints: Why some layers have to stay.
        edits: Changes to weights that make a constant right.
        constants: Attributes of a layer that depend on its number, and that `edits` make good or that change nothing.
        num_carried: How many arguments behind the hidden state a layer hands on to the next.
        writes_weights: Whether a pass changes the weights in place, so that no second model can use them too.
        refused: Why no layer can be dropped.
        refused_if: (config field, why no layer can be dropped where it is set).
    """

    stacks: tuple[str, ...] = ()
    joint: tuple[Callable[[dict[str, Any], Kept], dict[str, Any]], ...] = ()
    constraints: tuple[Constraint, ...] = ()
    edits: tuple[Callable[[nn.Module, nn.Module, Kept], None], ...] = ()
    constants: tuple[str, ...] = ()
    num_carried: int = 0
    writes_weights: bool = False
    refused: str | None = None
    refused_if: tuple[tuple[str, str], ...] = ()


_GEMMA4 = Architecture(
    constraints=(constraints.last_is_full_attention,),
    edits=(edits.select_layer_inputs,),
    constants=("store_full_length_kv",),
)
_GPT2 = Architecture(
    edits=(edits.fold_query_scale,),
    constants=("scaling",),
    refused_if=(("add_cross_attention", "it is half of an encoder-decoder"),),
)

ARCHITECTURES = {
    "beam": Architecture(
        edits=(edits.fold_residual_scale,), constants=("attn_residual_add_idx", "mlp_residual_add_idx")
    ),
    # Draws the random blocks of sparse attention, while training only.
    "big_bird": Architecture(constants=("seed",)),
    # A copy of the legacy setting, which nothing reads.
    "exaone4": Architecture(constants=("sliding_window_pattern",)),
    "exaone_moe": Architecture(constants=("sliding_window_pattern",)),
    "diffllama": Architecture(edits=(edits.fold_lambda,), constants=("lambda_init",)),
    "diffusion_gemma_text": Architecture(refused="its encoder and its decoder share their layers"),
    "ernie4_5_moe": Architecture(joint=(joint_fields.expert_range,)),
    # Whether the next layer shares this one's indexer: it follows from the list of indexers.
    "glm5_next_text": Architecture(constants=("next_skip_topk",)),
    "gemma3n_text": Architecture(edits=(edits.select_layer_inputs,), constants=("store_full_length_kv",)),
    "gemma4_text": _GEMMA4,
    "gemma4_unified_text": _GEMMA4,
    "gpt2": _GPT2,
    "gpt_neox_japanese": Architecture(edits=(edits.add_last_bias,), constants=("use_bias",)),
    "hrm_text": Architecture(stacks=("L_module.layers", "H_module.layers"), joint=(joint_fields.recurrent_depth,)),
    "idefics": Architecture(refused="cross-attention comes at a fixed interval of layers (`cross_layer_interval`)"),
    "inkling2_text": Architecture(constraints=(constraints.keeps_residual_blocks,)),
    "jamba": Architecture(
        joint=(
            joint_fields.periodic("attn_layer_period", "attn_layer_offset"),
            joint_fields.periodic("expert_layer_period", "expert_layer_offset"),
        )
    ),
    "minicpm3": Architecture(joint=(joint_fields.residual_scale,)),
    # The slopes that MiniMax computes from the depth are stored in the checkpoint, as buffers.
    "minimax": Architecture(constraints=(constraints.first_is_full_attention,), constants=("num_hidden_layers",)),
    "mistral_large4_text": Architecture(constants=("store_full_length_kv",)),
    "modernbert-decoder": Architecture(
        constraints=(constraints.first_stays("it has no norm before attention, and no field can say so of another"),)
    ),
    "olmo_hybrid": Architecture(constraints=(constraints.keeps_linear_attention,)),
    "shieldgemma2": Architecture(refused="Transformers does not load the untrimmed model as it saved it"),
    "qwen4_exp_text": Architecture(constraints=(constraints.keeps_leading_embeddings,)),
    "rwkv": Architecture(
        constraints=(constraints.first_stays("it holds the norm of the embeddings"),),
        edits=(edits.undo_rescale,),
        writes_weights=True,
    ),
    "xlm": Architecture(stacks=("attentions", "layer_norm1", "ffns", "layer_norm2")),
    "zamba": Architecture(constraints=(constraints.keeps_two_hybrids,)),
    "zamba2": Architecture(
        constraints=(constraints.keeps_memory_blocks,),
        edits=(edits.select_adapters,),
        constants=("layer_dic", "layer_block_map", "num_fwd_mem_blocks"),
    ),
    "zaya": Architecture(edits=(edits.drop_first_router_scale,), constants=("use_eda",), num_carried=1),
}


def find_architecture(config: PretrainedConfig) -> Architecture:
    """Return the row of a config's model type, or an empty one: the conventions are tried and checked.

    Raises:
        UnsupportedArchitectureError: no layer of such a model can be dropped.
    """
    decoder = text_config(config)
    row = ARCHITECTURES.get(decoder.model_type, Architecture())
    reason = row.refused or ARCHITECTURES.get(config.model_type, row).refused
    if getattr(config, "is_encoder_decoder", False):
        reason = "it is an encoder-decoder, and layers are dropped from decoder-only models"
    elif not _is_loadable(config):
        reason = (
            "`AutoModelForCausalLM` and `AutoModelForImageTextToText` do not know this type, so what is saved would not "
            "load; if it is a part of a larger model, load that with `AutoModelForImageTextToText`"
        )
    for name, why in row.refused_if:
        if getattr(decoder, name, False):
            reason = f"`{name}` is {getattr(decoder, name)!r}: {why}"
    if reason is not None:
        raise UnsupportedArchitectureError(f"No layer of a {config.model_type!r} model can be dropped: {reason}.")
    return row


def _is_loadable(config: PretrainedConfig) -> bool:
    mappings = (MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING)
    return bool(getattr(config, "auto_map", None)) or any(type(config) in mapping for mapping in mappings)
