"""Whether the adapters of a model can be saved as asked, found out before training: one layer of each kind is tried."""

import copy

import torch
from torch import nn
from transformers.quantizers import HfQuantizer

from ..surgery.drop import is_quantized

_WAY_OUT = "Set `merge_adapter` to False, which saves base model and adapter apart"


def check_adapters(model, is_merged: bool) -> None:
    """Raise a ValueError if the adapters of a `PeftModel` cannot be saved merged, or apart from their base model.

    Args:
        model: A `PeftModel`, before training.
        is_merged: As `merge_adapter`.
    """
    base = model.get_base_model()
    if is_merged:
        for name in model.active_adapters:
            why = _why_not_mergeable(model, name) or (_why_not_dequantized(base) if is_quantized(base) else None)
            if why is not None:
                raise ValueError(f"`merge_adapter` is True, but {why}. {_WAY_OUT}.")
    elif is_quantized(base) and not base.hf_quantizer.is_serializable():
        raise ValueError(
            f"`merge_adapter` is False, but the base model is quantized with {_method(base)}, which Transformers cannot save. "
            "Use another quantization, or none."
        )


def _why_not_mergeable(model, adapter: str) -> str | None:
    config = model.peft_config[adapter]
    kind = type(config).__name__
    if not hasattr(model.base_model, "merge_and_unload"):
        return f"adapters of {kind} have no weights that can be merged"
    if getattr(config, "alora_invocation_tokens", None):
        return f"`alora_invocation_tokens` of {kind} switches the adapter on for some tokens, which weights cannot"
    if is_quantized(model.get_base_model()):  # merged after it is dequantized, by layers that are not there yet
        return None
    for name, layer in _one_of_each_kind(model.get_base_model(), adapter).items():
        try:
            with torch.no_grad():
                copy.deepcopy(layer).merge(adapter_names=[adapter])
        except (NotImplementedError, ValueError, RuntimeError) as error:
            return f"the adapter of {kind} in {name} cannot be merged: {str(error).rstrip('.') or 'its kind has no merging'}"
    return None


def _one_of_each_kind(base: nn.Module, adapter: str) -> dict[str, nn.Module]:
    """The smallest layer of each class that an adapter is in."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    found = {}
    for name, layer in base.named_modules():
        if isinstance(layer, BaseTunerLayer) and any(
            adapter in getattr(layer, part, ()) for part in layer.adapter_layer_names
        ):
            size = sum(parameter.numel() for parameter in layer.parameters())
            if type(layer) not in found or size < found[type(layer)][0]:
                found[type(layer)] = size, name, layer
    return {name: layer for _, name, layer in found.values()}


def _why_not_dequantized(base) -> str | None:
    if type(base.hf_quantizer)._dequantize is HfQuantizer._dequantize:  # which raises
        return f"Transformers cannot dequantize a base model that is quantized with {_method(base)}"
    return None


def _method(base) -> str:
    return str(getattr(base.hf_quantizer.quantization_config.quant_method, "value", "another method"))
