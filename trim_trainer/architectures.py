"""Where each decoder keeps its layers, and what one model type needs beyond the conventions: rows, not branches."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    PretrainedConfig,
    PreTrainedModel,
)

from . import constraints, edits, fields
from .constraints import CONSTRAINTS, Constraint, keeps_image_layers
from .fields import WHOLE_FIELDS, CannotSay, Kept, depth_of, name_layers, rewrite
from .module_names import renumber_names


class UnsupportedArchitectureError(ValueError):
    """No layer of this model can be dropped; the message names the model type and the reason."""


class LayerConstraintError(ValueError):
    """These layers cannot be dropped; the message names the model type, the layers and the constraint."""


@dataclass(frozen=True)
class Architecture:
    """What a model type needs beyond the conventions in `fields` and `constraints`. Most need nothing.

    Attributes:
        stacks: Attributes of the decoder that hold the layers, where not one list of modules is as long as the depth.
        joint: Rules for fields that only mean something together.
        constraints: Why some layers have to stay.
        edits: Changes to weights that make a constant right.
        constants: Attributes of a layer that depend on its number, and that `edits` make good or that change nothing.
        num_carried: How many arguments behind the hidden state a layer hands on to the next.
        refused: Why no layer can be dropped.
        refused_if: (config field, why no layer can be dropped where it is set).
    """

    stacks: tuple[str, ...] = ()
    joint: tuple[Callable[[dict[str, Any], Kept], dict[str, Any]], ...] = ()
    constraints: tuple[Constraint, ...] = ()
    edits: tuple[Callable[[nn.Module, nn.Module, Kept], None], ...] = ()
    constants: tuple[str, ...] = ()
    num_carried: int = 0
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
    "ernie4_5_moe": Architecture(joint=(fields.expert_range,)),
    # Whether the next layer shares this one's indexer: it follows from the list of indexers.
    "glm5_next_text": Architecture(constants=("next_skip_topk",)),
    "gemma3n_text": Architecture(edits=(edits.select_layer_inputs,), constants=("store_full_length_kv",)),
    "gemma4_text": _GEMMA4,
    "gemma4_unified_text": _GEMMA4,
    "gpt2": _GPT2,
    "gpt_neox_japanese": Architecture(edits=(edits.add_last_bias,), constants=("use_bias",)),
    "hrm_text": Architecture(stacks=("L_module.layers", "H_module.layers"), joint=(fields.recurrent_depth,)),
    "idefics": Architecture(refused="cross-attention comes at a fixed interval of layers (`cross_layer_interval`)"),
    "inkling2_text": Architecture(constraints=(constraints.keeps_residual_blocks,)),
    "jamba": Architecture(
        joint=(
            fields.periodic("attn_layer_period", "attn_layer_offset"),
            fields.periodic("expert_layer_period", "expert_layer_offset"),
        )
    ),
    "minicpm3": Architecture(joint=(fields.residual_scale,)),
    # The slopes that MiniMax computes from the depth are stored in the checkpoint, as buffers.
    "minimax": Architecture(constraints=(constraints.first_is_full_attention,), constants=("num_hidden_layers",)),
    "mistral_large4_text": Architecture(constants=("store_full_length_kv",)),
    "modernbert-decoder": Architecture(
        constraints=(constraints.first_stays("it has no norm before attention, and no field can say so of another"),)
    ),
    "shieldgemma2": Architecture(refused="Transformers does not load the untrimmed model as it saved it"),
    "qwen4_exp_text": Architecture(constraints=(constraints.keeps_leading_embeddings,)),
    "rwkv": Architecture(
        constraints=(constraints.first_stays("it holds the norm of the embeddings"),), edits=(edits.undo_rescale,)
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

# Names of the text decoder's config inside that of a composite model.
TEXT_CONFIGS = ("text_config", "thinker_config", "llm_config", "language_config", "decoder", "global_config")


def text_path(config: PretrainedConfig) -> tuple[str, ...]:
    """Names that lead from a config to that of its text decoder; empty: it is that config."""
    for name in TEXT_CONFIGS:
        part = config.__dict__.get(name)
        if isinstance(part, PretrainedConfig):
            return (name, *text_path(part))
    return ()


def text_config(config: PretrainedConfig) -> PretrainedConfig:
    """Return the config of the text decoder: the config itself, or the part of it."""
    for name in text_path(config):
        config = getattr(config, name)
    return config


def num_layers(config: PretrainedConfig) -> int:
    """Return the number of decoder layers.

    Raises:
        UnsupportedArchitectureError: no field says it.
    """
    depth = depth_of(text_config(config).to_dict())
    if depth is None:
        raise UnsupportedArchitectureError(f"The config of {config.model_type!r} does not say how many layers it has.")
    return depth


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


def find_decoder(model: PreTrainedModel) -> nn.Module:
    """Return the module that runs embeddings, layers and final norm, without the head."""
    return model.get_decoder()


def find_stacks(model: PreTrainedModel) -> dict[str, nn.ModuleList]:
    """Return the lists of modules of which each layer has one, by name: mostly one list, the decoder layers.

    Raises:
        UnsupportedArchitectureError: no list, or more than one, is as long as the depth.
    """
    row, depth = find_architecture(model.config), num_layers(model.config)
    lists = {name: module for name, module in model.named_modules() if isinstance(module, nn.ModuleList)}
    if row.stacks:
        lists = {name: module for name, module in lists.items() if name.endswith(row.stacks)}
    else:
        lists = {name: module for name, module in lists.items() if len(module) == depth}
        lists = {name: module for name, module in lists.items() if not _is_inside(name, lists)}
        in_decoder = {id(module) for module in find_decoder(model).modules()}
        inner = {name: module for name, module in lists.items() if id(module) in in_decoder}
        lists = inner or lists  # a vision tower may have as many layers
    if len(lists) != max(1, len(row.stacks)):
        raise UnsupportedArchitectureError(
            f"{type(model).__name__} ({model.config.model_type!r}) has {len(lists)} lists of {depth} modules "
            f"({', '.join(lists) or 'none'}), so it is not clear which are its layers."
        )
    return lists


def _is_inside(name: str, others: Iterable[str]) -> bool:
    return any(name.startswith(f"{other}.") for other in others)


def find_layers(model: PreTrainedModel) -> nn.ModuleList:
    """Return the list of decoder layers of a causal LM.

    Raises:
        UnsupportedArchitectureError: see `find_stacks`; or the model has no language-modelling head, or layers that are
            spread over several lists, so no layer can be scored.
    """
    stacks = find_stacks(model)
    if model.get_output_embeddings() is None:
        raise UnsupportedArchitectureError(
            f"{type(model).__name__} has no language-modelling head, so no layer can be scored. Load the checkpoint "
            "with `AutoModelForCausalLM`."
        )
    if len(stacks) > 1:
        raise UnsupportedArchitectureError(
            f"{model.config.model_type!r} keeps the parts of a layer in {', '.join(stacks)}, so no layer can be scored. "
            "Choose the layers yourself and call `drop_layers`."
        )
    return next(iter(stacks.values()))
