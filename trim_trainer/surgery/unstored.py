"""What a model computes from its config and no checkpoint holds: buffers such as rotary frequencies, modules without weights."""

import copy
from collections.abc import Iterator

import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel


def compute_buffers(model: PreTrainedModel) -> None:
    """Give the buffers of a model on the meta device that no checkpoint holds the values that they have once it is loaded.

    Loading makes room for them and lets the model's own `_init_weights` fill it, and so does this. What it leaves as it was
    stays on the meta device: its value is not known.
    """
    names = [name for name, _ in model.named_non_persistent_buffers()]
    if not names:
        return
    for tensor in model.state_dict(keep_vars=True).values():
        tensor._is_hf_initialized = True
    zeros, ones = (_initialize(model, names, fill) for fill in (0, 1))
    for name, value, other in zip(names, zeros, ones, strict=True):
        _put(model, name, value if torch.equal(value, other) else value.to("meta"))
    for module in model.modules():
        del module._is_hf_initialized


def _initialize(model: PreTrainedModel, names: list[str], fill: int) -> list[torch.Tensor]:
    """Fill the buffers, let the code of the model write over it, and return what is there then."""
    owners = {model.get_submodule(name.rpartition(".")[0]) for name in names}
    for module in model.modules():
        module._is_hf_initialized = module not in owners
    for name in names:
        _put(model, name, torch.full_like(_take(model, name), fill, device="cpu"))
    with torch.random.fork_rng(devices=[]):
        model.initialize_weights()
    return [_take(model, name) for name in names]


def _take(model: nn.Module, name: str) -> torch.Tensor:
    owner, _, buffer = name.rpartition(".")
    return model.get_submodule(owner)._buffers[buffer]


def _put(model: nn.Module, name: str, value: torch.Tensor) -> None:
    owner, _, buffer = name.rpartition(".")
    model.get_submodule(owner)._buffers[buffer] = value


def differing_modules(one: nn.Module, other: nn.Module, path: str = "") -> Iterator[tuple[str, nn.Module | None]]:
    """Yield (name, module in `other`) where only one of two models has a module, or they have modules of two classes."""
    left, right = one._modules, other._modules
    for name in list(left | right):
        old, new = left.get(name), right.get(name)
        if type(old) is not type(new):
            yield f"{path}{name}", new
        elif new is not None:
            yield from differing_modules(old, new, f"{path}{name}.")


def differing_buffers(one: nn.Module, other: nn.Module) -> Iterator[tuple[str, str, torch.Tensor | None]]:
    """Yield (module name, buffer, value in `other`) for buffers that no checkpoint holds and whose values differ.

    A value that one of the models does not have is None. Modules of one model only are left out.
    """
    modules = dict(other.named_modules(remove_duplicate=False))
    for name, module in one.named_modules(remove_duplicate=False):
        if type(module) is not type(modules.get(name)):
            continue
        before, after = _unstored(module), _unstored(modules[name])
        for buffer in before.keys() | after.keys():
            old, new = before.get(buffer), after.get(buffer)
            if not _is_equal(old, new):
                yield name, buffer, new


def _unstored(module: nn.Module) -> dict[str, torch.Tensor | None]:
    return {name: module._buffers[name] for name in module._non_persistent_buffers_set if name in module._buffers}


def _is_equal(one: torch.Tensor | None, other: torch.Tensor | None) -> bool:
    if one is None or other is None:
        return one is other
    if one.is_meta or other.is_meta:  # not known
        return one.shape == other.shape and one.is_meta == other.is_meta
    return torch.equal(one, other)


def adopt_unstored(model: PreTrainedModel, before: PreTrainedModel, after: PreTrainedModel) -> None:
    """Give `model` the modules and buffers in which `after` differs from `before`, on its device.

    New tensors take the place of old ones, which are left as they are, so that a backup of the modules can bring them back.
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    changed = list(differing_modules(before, after))
    for name, buffer, value in list(differing_buffers(before, after)):
        if name in modules:
            _adopt_buffer(modules[name], buffer, value, model.device)
    for name, new in changed:
        owner, _, child = name.rpartition(".")
        if owner not in modules:
            continue
        if new is None:
            modules[owner]._modules.pop(child, None)
        else:
            modules[owner]._modules[child] = _made_for(model, after, new)


def _adopt_buffer(module: nn.Module, name: str, value: torch.Tensor | None, device: torch.device) -> None:
    current = module._buffers.get(name)
    if value is None:
        delattr(module, name)
    elif current is None:
        module.register_buffer(name, value.to(device), persistent=False)
    else:
        module._buffers[name] = value.to(current)  # device and dtype


def _made_for(model: PreTrainedModel, after: PreTrainedModel, new: nn.Module) -> nn.Module:
    """A copy of a module without weights, which looks at the configs of `model` where it looked at those of `after`."""
    configs = {id(theirs): ours for theirs, ours in _pairs(after.config, model.config)}
    return copy.deepcopy(new, configs).to(model.device).train(model.training)


def _pairs(one: PretrainedConfig, other: PretrainedConfig) -> Iterator[tuple[PretrainedConfig, PretrainedConfig]]:
    yield one, other
    for name, part in vars(one).items():
        if isinstance(part, PretrainedConfig) and isinstance(vars(other).get(name), PretrainedConfig):
            yield from _pairs(part, vars(other)[name])
