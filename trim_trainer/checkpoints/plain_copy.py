"""The model inside adapters as one of its own: with the adapters merged, or without them."""

import copy
import warnings

import torch
from transformers import PreTrainedModel

from ..scoring.hooks import plain_forward
from ..surgery.drop import is_quantized
from ..surgery.ties import FIELD, tie_equal, untie


@torch.no_grad()
def plain_copy(model, is_merged: bool) -> PreTrainedModel:
    """Return the model inside a `PeftModel`, copied, with the active adapters merged or without them."""
    with plain_forward(model.get_base_model()), plain_forward(model):
        copied = copy.deepcopy(model, _left_out(model))
    return merge(model, copied) if is_merged else _without_adapters(copied)


def without_init(config):
    """The config of an adapter that is loaded and not trained: PiSSA and its relatives begin by changing the base model."""
    plain = copy.deepcopy(config)
    if hasattr(plain, "init_lora_weights"):
        plain.init_lora_weights = True
    return plain


def merge(model, copied) -> PreTrainedModel:
    """Merge the active adapters of `model` into `copied`, which may be the model itself, and return what is inside it."""
    base = copied.get_base_model()
    tied, was_tied = dict(base.all_tied_weights_keys), getattr(base.config, FIELD, None)
    with warnings.catch_warnings():
        # PEFT says of shared weights what is done here.
        warnings.filterwarnings("ignore", "Model with `tie_word_embeddings=True`|.*no longer tied after merging")
        plain = _dequantized_and_merged(model, copied) if is_quantized(base) else _merged(copied)
    if was_tied is not None:
        setattr(plain.config, FIELD, was_tied)
    # The same change, merged into an embedding and into a head that share a weight, may be rounded in another order.
    tie_equal(plain, tied, tolerance=4 * torch.finfo(plain.dtype).eps)
    return plain


def _merged(adapted) -> PreTrainedModel:
    """An adapter on one of several modules that share a weight changes that one alone."""
    untie(adapted)
    return adapted.merge_and_unload()


def _dequantized_and_merged(model, copied) -> PreTrainedModel:
    """Merged into 4 bits, the adapter would be rounded away: the weights that it was trained on are dequantized first."""
    from peft import get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict

    plain = _without_adapters(copied).dequantize()
    plain.is_loaded_in_4bit = plain.is_loaded_in_8bit = False  # which it goes on to say
    for name in model.active_adapters:
        adapted = get_peft_model(plain, without_init(model.peft_config[name]), adapter_name=name)
        set_peft_model_state_dict(adapted, get_peft_model_state_dict(model, adapter_name=name), adapter_name=name)
        plain = _merged(adapted)
    return plain


def _without_adapters(adapted) -> PreTrainedModel:
    """The base model that the adapters were trained on.

    `unload` leaves copies that trained (`modules_to_save`) in place of their originals, and refuses some quantized layers.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils import AuxiliaryTrainingWrapper

    base, originals = adapted.get_base_model(), {}
    for name, module in base.named_modules():
        if name.startswith(tuple(f"{outer}." for outer in originals)):
            continue
        if isinstance(module, AuxiliaryTrainingWrapper):
            originals[name] = module.original_module
        elif isinstance(module, BaseTunerLayer):
            originals[name] = module.get_base_layer()
    for name, module in originals.items():
        base.set_submodule(name, module)
    vars(base).pop("peft_config", None)
    return base


def _left_out(model) -> dict[int, torch.Tensor]:
    """A memo for `copy.deepcopy`, which refuses results of computing: PEFT keeps some beside adapters that are tied."""
    kept = [value for module in model.modules() for value in getattr(module, "kwargs", {}).values()]
    tensors = [each for value in kept if isinstance(value, dict) for each in value.values()]
    return {id(each): each.detach() for each in tensors if isinstance(each, torch.Tensor) and not each.is_leaf}
