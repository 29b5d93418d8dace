"""Weights that two modules share: taken apart before a change, put together where they are equal, and the config says which."""

import torch
from accelerate.utils import is_peft_model
from torch import nn
from transformers import PreTrainedModel

from ..architectures.configs import text_config

FIELD = "tie_word_embeddings"
_ADAPTED = (".base_layer", ".original_module", ".token_adapter")


def untie(model: nn.Module) -> None:
    """Give every module a weight of its own, in place: merging an adapter into one of them is not to change the others."""
    adapters = adapter_parts(model)
    known = set()
    for name, parameter in list(model.named_parameters(remove_duplicate=False)):
        if adapters & set(name.split(".")):  # parts of adapters are shared too, and never changed by merging
            continue
        if parameter in known:
            owner, _, own_name = name.rpartition(".")
            setattr(
                model.get_submodule(owner), own_name, nn.Parameter(parameter.detach().clone(), requires_grad=False)
            )
        known.add(parameter)


def tie_equal(model: PreTrainedModel, tied: dict[str, str], tolerance: float = 0.0) -> None:
    """Share the weights that the model's class shares, if all of them are equal; else the config says that none are.

    Args:
        model: A model without adapters, in place.
        tied: Names of the weights that may be shared, and of those that they are shared with.
        tolerance: Largest difference, as a share of the largest weight, of weights that count as equal.
    """
    pairs = [(model.get_parameter(one), model.get_parameter(other)) for one, other in tied.items()]
    if all(_is_equal(one, other, tolerance) for one, other in pairs):
        model.all_tied_weights_keys = dict(tied)
        model.tie_weights(recompute_mapping=False)
        return
    model.all_tied_weights_keys = {}
    for config in (model.config, text_config(model.config)):
        if getattr(config, FIELD, False):
            setattr(config, FIELD, False)


def say_untied(model: PreTrainedModel) -> None:
    """Correct the config of a model whose shared weights came apart, so that every loader reads all of them."""
    tied = model.get_expanded_tied_weights_keys(all_submodels=True)
    if any(not _is_equal(model.get_parameter(one), model.get_parameter(other)) for one, other in tied.items()):
        tie_equal(model, tied)


def adapter_parts(model: nn.Module) -> set[str]:
    """Names of the modules in which a `PeftModel` holds what it adds to the base model."""
    if not is_peft_model(model):
        return set()
    lists = ("adapter_layer_names", "other_param_names")
    found = {name for module in model.modules() for each in lists for name in getattr(module, each, None) or ()}
    return {name.split(".")[-1] for name in found}


def plain_name(name: str) -> str:
    """The name that a tensor has without adapters: PEFT puts what it adapts one module deeper."""
    for module in _ADAPTED:
        name = name.replace(module, "")
    return name


def _is_equal(one: torch.Tensor, other: torch.Tensor, tolerance: float = 0.0) -> bool:
    if one is other:
        return True
    if one.shape != other.shape:
        return False
    return bool((one - other).abs().max() <= tolerance * one.abs().max())
