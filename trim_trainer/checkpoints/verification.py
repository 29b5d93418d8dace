"""A saved checkpoint is loaded back and must be the model that was trained: same tensors, same logits, same tokens."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch
from accelerate.utils import is_peft_model
from torch import nn
from torch.distributed.fsdp import FSDPModule
from transformers import PreTrainedModel

from ..records.files import ADAPTER_DIR
from ..scoring.hooks import plain_forward
from ..surgery.cpu_kernels import check_order, keep_order
from ..surgery.drop import is_quantized
from ..surgery.ties import adapter_parts, plain_name
from .outputs import compare_outputs

_ADAPTER_CONFIG = "adapter_config.json"


class VerificationError(RuntimeError):
    """The checkpoint on disk is not the model in memory; the message says what differs."""


@torch.no_grad()
def verify_checkpoint(directory: str | Path, model: nn.Module) -> None:
    """Load the checkpoint in `directory` plainly and compare it with the model that was trained.

    No key may be missing, unexpected or mismatched. Every tensor must be equal bit for bit, in the precision of the
    checkpoint, except those that an adapter was merged into. The embedding of every token, the logits of one batch and
    greedy decoding with the KV cache must agree up to what rounding the weights does to them.

    Args:
        directory: A checkpoint of a whole model, into which adapters are merged, or with an adapter in its folder
            `adapter`, or that never had one.
        model: The trained model: a causal LM, or a `PeftModel`, whose active adapters are compared as they are. It is left
            as it is.

    Raises:
        VerificationError: names what differs first.
    """
    check_order(model)
    with _evaluating(model):
        is_adapted = is_peft_model(model)
        is_apart = is_adapted and (Path(directory) / ADAPTER_DIR / _ADAPTER_CONFIG).is_file()
        base = model.get_base_model() if is_adapted else model
        expected = _base_tensors(model, is_merged=is_adapted and not is_apart)
        loaded = verify_tensors(directory, base, expected)
        if not is_quantized(loaded):
            loaded.to(base.device)
        loaded.set_attn_implementation(base.config._attn_implementation)
        if is_apart:
            loaded = _load_adapters(Path(directory) / ADAPTER_DIR, model, loaded)
        is_rounded = (is_adapted and not is_apart) or loaded.dtype != base.dtype
        wrong = compare_outputs(model, loaded.eval(), has_equal_weights=not is_rounded)
        if wrong is not None:
            raise _failed(directory, wrong)


def verify_tensors(
    directory: str | Path, model: PreTrainedModel, expected: dict[str, torch.Tensor | None]
) -> PreTrainedModel:
    """Load the checkpoint and compare every tensor bit for bit; enough where the model in memory is sharded.

    Args:
        directory: The checkpoint.
        model: The model in memory, whose class it is loaded with.
        expected: The whole tensors that were saved; None: something was merged into it.

    Returns:
        What was loaded.

    Raises:
        VerificationError: names what differs first.
    """
    # A sharded model has a class of its own, in front of that of Transformers.
    of_type = next(cls for cls in type(model).__mro__ if not issubclass(cls, FSDPModule))
    placed = {"device_map": {"": model.device}} if is_quantized(model) else {}
    loaded, info = of_type.from_pretrained(directory, dtype="auto", output_loading_info=True, **placed)
    keep_order(loaded)
    problems = {name: sorted(map(str, keys)) for name, keys in info.items() if keys and name != "error_msgs"}
    if problems or info.get("error_msgs"):
        raise _failed(directory, f"it loads with {problems or info['error_msgs']}")
    _compare_tensors(directory, loaded.state_dict(), expected)
    return loaded


def _base_tensors(model: nn.Module, is_merged: bool) -> dict[str, torch.Tensor | None]:
    """The tensors of a model without its adapters, by the names that they have then; see `verify_tensors`."""
    if not is_peft_model(model):
        return model.state_dict()
    parts, tensors = adapter_parts(model), {}
    for name, tensor in model.get_base_model().state_dict().items():
        if parts & set(name.split(".")):
            continue
        plain = plain_name(name)
        is_changed = is_merged and (plain != name or not tensor.is_floating_point())  # merged into, or dequantized
        tensors[plain] = None if is_changed else tensor
    return tensors


def _load_adapters(folder: Path, model: nn.Module, base: PreTrainedModel) -> nn.Module:
    """Put the saved adapters on the base model that was loaded, as a user does, and compare their tensors."""
    from peft import PeftModel, get_peft_model_state_dict

    active = model.active_adapters
    where = {name: folder if name == "default" or len(active) == 1 else folder / name for name in active}
    loaded = PeftModel.from_pretrained(base, where[active[0]], active[0], torch_device=str(base.device))
    for name in active[1:]:
        loaded.load_adapter(where[name], name, torch_device=str(base.device))
    loaded.base_model.set_adapter(active)
    for name in active:
        found, expected = (get_peft_model_state_dict(each, adapter_name=name) for each in (loaded, model))
        _compare_tensors(where[name], found, expected)
        if missing := sorted(expected.keys() - found.keys()):
            raise _failed(where[name], f"it loads without {missing[0]!r}")
    return loaded


def _compare_tensors(directory, found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor | None]) -> None:
    for name, tensor in found.items():
        if name not in expected or not (expected[name] is None or _is_equal(tensor, expected[name])):
            raise _failed(directory, f"tensor {name!r} is not the one in memory")


def _is_equal(found: torch.Tensor, expected: torch.Tensor) -> bool:
    found, expected = found.cpu(), expected.cpu().to(found.dtype)
    if torch.equal(found, expected):
        return True
    # NaN is not equal to itself, and a model whose training has diverged is saved as it is.
    has_nan = found.is_floating_point() and found.element_size() > 1
    return has_nan and torch.allclose(found, expected, rtol=0, atol=0, equal_nan=True)


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """The model evaluates as `from_pretrained` gives it, and is afterwards as it was."""
    modes = {module: module.training for module in model.modules()}
    with ExitStack() as plain:
        plain.enter_context(plain_forward(model))
        if is_peft_model(model):
            plain.enter_context(plain_forward(model.get_base_model()))
        model.eval()
        try:
            yield
        finally:
            for module, was_training in modes.items():
                module.training = was_training


def _failed(directory, what: str) -> VerificationError:
    return VerificationError(
        f"The checkpoint in {str(directory)!r} is not the model that was trained: {what}. The trained model is still in "
        "memory; do not use or publish the folder."
    )
