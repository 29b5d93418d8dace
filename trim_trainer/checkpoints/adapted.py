"""A trimmed model under an adapter becomes files that load plainly: merged, or base model and adapter apart."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from transformers import PreTrainedModel

from ..records.files import ADAPTER_DIR
from ..scoring.hooks import plain_forward
from ..surgery.drop import is_quantized
from .finishing import finish_checkpoint
from .verification import verify_checkpoint


def save_adapted(model, directory: str | Path, is_merged: bool) -> None:
    """Save a PEFT model, load it back and compare.

    Merged, `directory` holds a standard checkpoint, in full precision if the base was quantized. Apart, it holds the
    trimmed base model, and its folder `adapter` an adapter whose config names `directory` as its base model.

    Args:
        model: A `PeftModel`, left as it is.
        directory: Where to write.
        is_merged: Merged, or apart.

    Raises:
        VerificationError: what can be loaded is not what was trained.
    """
    base = plain_copy(model, is_merged)
    base.save_pretrained(directory)
    finish_checkpoint(directory, is_apart=not is_merged)
    if not is_merged:
        folder = Path(directory) / ADAPTER_DIR
        with _base_named(model, str(Path(directory).resolve())):
            model.save_pretrained(folder)
    verify_checkpoint(directory, base)


@torch.no_grad()
def plain_copy(model, is_merged: bool) -> PreTrainedModel:
    """Return the model inside a `PeftModel` as one of its own, with the adapters merged or without them."""
    with plain_forward(model.get_base_model()), plain_forward(model):
        copied = copy.deepcopy(model)
    if not is_merged:
        return copied.unload()
    if not is_quantized(copied.get_base_model()):
        return copied.merge_and_unload()
    copied.state_dict()  # undoes the order in which bitsandbytes keeps weights for its CPU kernels
    # Merged into 4 bits, the adapter would be rounded away: the weights that it was trained on are dequantized first.
    from peft import get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict

    plain = copied.unload().dequantize()
    for name in model.active_adapters:
        adapted = get_peft_model(plain, copy.deepcopy(model.peft_config[name]), adapter_name=name)
        set_peft_model_state_dict(adapted, get_peft_model_state_dict(model, adapter_name=name), adapter_name=name)
        plain = adapted.merge_and_unload()
    return plain


@contextmanager
def _base_named(model, name: str) -> Iterator[None]:
    """Let the adapters' configs name the trimmed base model, not the one that training began with."""
    before = {adapter: config.base_model_name_or_path for adapter, config in model.peft_config.items()}
    for config in model.peft_config.values():
        config.base_model_name_or_path = name
    try:
        yield
    finally:
        for adapter, config in model.peft_config.items():
            config.base_model_name_or_path = before[adapter]
