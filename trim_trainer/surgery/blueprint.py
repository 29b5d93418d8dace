"""A model without weights, as its config describes it, and what differs between two of them."""

import copy
import math
from collections.abc import Iterator
from numbers import Number
from typing import Any

import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.initialization import meta_device_safe_creation_ops

from .unstored import compute_buffers

# Attributes under which modules remember their place in the stack: the KV cache is addressed by it.
LAYER_NUMBERS = ("layer_idx", "layer_id", "layer_number", "layer_num", "layer_index")
# What torch keeps in every module: tensors, children, hooks, the mode.
TORCH_STATE = frozenset(vars(nn.Module()))
_MISSING = object()


def build(
    model_class: type[PreTrainedModel], config: PretrainedConfig, dtype: torch.dtype | None = None
) -> PreTrainedModel:
    """Instantiate a model on the meta device: shapes, names, constants and computed buffers without memory for weights."""
    with torch.device("meta"), meta_device_safe_creation_ops():
        model = model_class._from_config(copy.deepcopy(config), **({} if dtype is None else {"dtype": dtype}))
    compute_buffers(model)
    return model


def tensor_shapes(model: nn.Module) -> dict[str, torch.Size]:
    """Name and shape of every tensor that a checkpoint of the model holds."""
    return {name: tensor.shape for name, tensor in model.state_dict().items()}


def differing_constants(one: nn.Module, other: nn.Module) -> Iterator[tuple[str, str, Any, Any]]:
    """Yield (module name, attribute, value, value in `other`) for every plain attribute whose value differs.

    Compares numbers, strings and containers of them; a value that is not there is `_MISSING`.
    """
    modules = dict(other.named_modules(remove_duplicate=False))
    for name, module in one.named_modules(remove_duplicate=False):
        if name not in modules:
            continue
        before, after = vars(module), vars(modules[name])
        for attribute in before.keys() | after.keys():
            old, new = before.get(attribute, _MISSING), after.get(attribute, _MISSING)
            if attribute not in TORCH_STATE and is_plain(old) and is_plain(new) and not _is_equal(old, new):
                yield name, attribute, old, new


def adopt_constants(model: nn.Module, before: nn.Module, after: nn.Module) -> None:
    """Give every module of `model` the plain attributes in which `after` differs from `before`, and its configs."""
    modules = dict(model.named_modules(remove_duplicate=False))
    for name, attribute, _, value in list(differing_constants(before, after)):
        if name not in modules:
            continue
        if value is _MISSING:
            modules[name].__dict__.pop(attribute, None)
        else:
            modules[name].__dict__[attribute] = copy.deepcopy(value)
    _adopt_configs(modules, before, after)


def _adopt_configs(modules: dict[str, nn.Module], before: nn.Module, after: nn.Module) -> None:
    done, counterparts = set(), dict(after.named_modules(remove_duplicate=False))
    for name, module in before.named_modules(remove_duplicate=False):
        for attribute, old in list(vars(module).items()):
            current = vars(modules[name]).get(attribute) if name in modules else None
            new = vars(counterparts[name]).get(attribute) if name in counterparts else None
            if all(isinstance(config, PretrainedConfig) for config in (current, old, new)):
                adopt_config(current, old, new, done)


def adopt_config(
    current: PretrainedConfig, before: PretrainedConfig, after: PretrainedConfig, done: set | None = None
):
    """Change `current`, in place, in the fields in which `after` differs from `before`, and the configs inside it."""
    done = set() if done is None else done
    if id(current) in done:
        return
    done.add(id(current))
    for name in before.__dict__.keys() | after.__dict__.keys():
        old, new = before.__dict__.get(name, _MISSING), after.__dict__.get(name, _MISSING)
        if isinstance(old, PretrainedConfig) and isinstance(new, PretrainedConfig):
            if isinstance(part := current.__dict__.get(name), PretrainedConfig):
                adopt_config(part, old, new, done)
        elif new is _MISSING:
            current.__dict__.pop(name, None)
        elif not _is_equal(old, new):
            _set(current, name, new)


def _set(config: PretrainedConfig, name: str, value: Any) -> None:
    current = config.__dict__.get(name)
    if name == "quantization_config" and hasattr(current, "to_dict"):  # an object once the model is loaded
        for field, entry in value.items():
            if hasattr(current, field):
                setattr(current, field, entry)
    else:
        config.__dict__[name] = copy.deepcopy(value)


def is_plain(value: Any) -> bool:
    """Whether a value is a number, a string, a flag or None, or a container of them."""
    if isinstance(value, list | tuple | set | frozenset):
        return all(is_plain(entry) for entry in value)
    if isinstance(value, dict):
        return all(is_plain(key) and is_plain(entry) for key, entry in value.items())
    return value is None or value is _MISSING or isinstance(value, Number | str)  # numpy's numbers too


def _is_equal(one: Any, other: Any) -> bool:
    if isinstance(one, float) and isinstance(other, float):
        return math.isclose(one, other, rel_tol=1e-9)
    return type(one) is type(other) and one == other
