"""Where each decoder keeps its layers, and which config fields are per layer: rows, not branches."""

from collections.abc import Iterable
from dataclasses import dataclass

from torch import nn
from transformers import PretrainedConfig, PreTrainedModel


class UnsupportedArchitectureError(ValueError):
    """Layers of this model cannot be dropped; the message names the model type and the reason."""


@dataclass(frozen=True)
class Architecture:
    """What one model type needs when layers go. `num_hidden_layers` is rewritten for all of them."""

    layers: str = "layers"  # attribute of the decoder that holds the layers
    select: tuple[str, ...] = ()  # config lists with one entry per layer: the kept layers' entries stay
    prefix_counts: tuple[str, ...] = ()  # config counts of leading layers: how many of them are kept
    stale: tuple[str, ...] = ()  # legacy fields that an explicit list overrides; other runtimes may read them: removed
    refused_if: tuple[tuple[str, str], ...] = ()  # (config field, why no layer can be dropped when it is true)


_QWEN = Architecture(select=("layer_types",), prefix_counts=("max_window_layers",))

ARCHITECTURES = {
    "llama": Architecture(),
    "mistral": Architecture(),
    "phi3": Architecture(),
    "qwen2": _QWEN,
    "qwen3": _QWEN,
    "gemma3_text": Architecture(select=("layer_types",), stale=("sliding_window_pattern", "_sliding_window_pattern")),
    "smollm3": Architecture(select=("layer_types", "no_rope_layers")),
    "gpt2": Architecture(
        layers="h",
        refused_if=(
            ("scale_attn_by_inverse_layer_idx", "attention is scaled by the layer's number, which a drop changes"),
            ("add_cross_attention", "it is half of an encoder-decoder"),
        ),
    ),
}

# Attributes under which modules remember their place in the stack.
LAYER_NUMBERS = ("layer_idx", "layer_id", "layer_number", "layer_num", "layer_index")


def text_config(config: PretrainedConfig) -> PretrainedConfig:
    """Return the config of the text decoder: the config itself, or its `text_config`."""
    return getattr(config, "text_config", config)


def find_architecture(config: PretrainedConfig) -> Architecture:
    """Return the row of a config's model type.

    Raises:
        UnsupportedArchitectureError: the model is no decoder, has no row, or its row refuses this config.
    """
    decoder = text_config(config)
    if getattr(config, "is_encoder_decoder", False):
        raise UnsupportedArchitectureError(
            f"`model_type` is {config.model_type!r}, an encoder-decoder. Layers are dropped from decoder-only models."
        )
    if decoder.model_type not in ARCHITECTURES:
        raise UnsupportedArchitectureError(
            f"`model_type` is {decoder.model_type!r}. Layers can be dropped from: {', '.join(sorted(ARCHITECTURES))}."
        )
    row = ARCHITECTURES[decoder.model_type]
    for name, reason in row.refused_if:
        if getattr(decoder, name, False):
            raise UnsupportedArchitectureError(
                f"`{name}` of this {decoder.model_type!r} model is {getattr(decoder, name)!r}: {reason}."
            )
    return row


def find_layers(model: PreTrainedModel) -> nn.ModuleList:
    """Return the list of decoder layers of a causal LM.

    Raises:
        UnsupportedArchitectureError: see `find_architecture`; or the model has no language-modelling head.
    """
    row = find_architecture(model.config)
    if model.get_output_embeddings() is None:
        raise UnsupportedArchitectureError(
            f"{type(model).__name__} has no language-modelling head, so no layer can be scored. Load the checkpoint "
            "with `AutoModelForCausalLM`."
        )
    return getattr(find_decoder(model), row.layers)


def find_decoder(model: PreTrainedModel) -> nn.Module:
    """Return the module that runs embeddings, layers and final norm, without the head."""
    return model.get_decoder()


def rewrite_config(config: PretrainedConfig, kept: Iterable[int]) -> None:
    """Make `config` (in place) that of the same model with only the layers `kept`, by number, in order.

    Lists are selected from, never cut, so that each kept layer keeps its own type.
    """
    row, decoder, kept = find_architecture(config), text_config(config), list(kept)
    for name in row.select:
        values = getattr(decoder, name, None)
        if values is not None:
            setattr(decoder, name, [values[layer] for layer in kept])
    for name in row.prefix_counts:
        count = getattr(decoder, name, None)
        if count is not None:
            setattr(decoder, name, sum(layer < count for layer in kept))
    for name in row.stale:
        decoder.__dict__.pop(name, None)
    decoder.num_hidden_layers = len(kept)
