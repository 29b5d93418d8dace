"""A model as it is now, to come back to after later drops."""

import copy

import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.utils import output_capturing

from .blueprint import TORCH_STATE, is_plain

_HELD = ("_modules", "_parameters", "_buffers", "_non_persistent_buffers_set")

# What the Trainer changes of modules and configs when it begins to train, which may be between a backup and its restoring.
SET_BY_TRAINING = (
    "gradient_checkpointing", "neftune_noise_alpha", "use_cache", "bos_token_id", "eos_token_id", "pad_token_id",
)  # fmt: skip


class LayerBackup:
    """The modules, constants and configs of a model as they are now, to bring them back after later drops.

    Holds references to modules and parameters, so it costs no memory until layers are dropped. Values of parameters are
    not copied: that is the caller's part. Layers that were put elsewhere when they went come back to where the model is.
    """

    def __init__(self, model: PreTrainedModel):
        self._modules = {module: _copy_settings(module) for module in model.modules()}
        self._devices = {module: _device_of(module) for module in self._modules}
        self._configs: dict[int, tuple[PretrainedConfig, dict]] = {}
        self._adapters = [
            (config, copy.deepcopy(vars(config))) for config in getattr(model, "peft_config", {}).values()
        ]
        for module in self._modules:
            for value in vars(module).values():
                self._keep_config(value)

    def restore(self) -> None:
        """Put the modules, constants and configs back, in place."""
        stayed = [module for module in next(iter(self._modules)).modules() if module in self._modules]
        moved = {
            self._devices[module]: _device_of(module) for module in stayed
        }  # the Trainer may have, since the backup
        for module, (children, settings) in self._modules.items():
            for name, entries in children.items():
                vars(module)[name].clear()
                vars(module)[name].update(entries)
            for name in _copy_settings(module)[1].keys() - settings.keys():
                del vars(module)[name]
            vars(module).update(copy.deepcopy(settings))
        for config, fields in self._configs.values():
            kept = {name: config.__dict__[name] for name in SET_BY_TRAINING if name in config.__dict__}
            config.__dict__.clear()
            config.__dict__.update(_copy_fields(fields) | kept)
        for config, fields in self._adapters:
            vars(config).clear()
            vars(config).update(copy.deepcopy(fields))
        for module, device in self._devices.items():
            if device is not None and _device_of(module) != (now := moved.get(device, device)):
                module.to(now)
            _forget_recorders(module)

    def _keep_config(self, config) -> None:
        if isinstance(config, PretrainedConfig) and id(config) not in self._configs:
            self._configs[id(config)] = (config, _copy_fields(config.__dict__))
            for part in config.__dict__.values():
                self._keep_config(part)


def _device_of(module: nn.Module) -> torch.device | None:
    """Of the weights that a module holds itself; None: it holds none."""
    return next((parameter.device for parameter in module.parameters(recurse=False)), None)


def _forget_recorders(module: nn.Module) -> None:
    """Take away the hooks by which Transformers records hidden states and router logits, and that it has put them there.

    It puts them on every module once, when a state is first asked for: that may have been between a drop and its undoing.
    """
    hooks = vars(module)["_forward_hooks"]
    for key in [key for key, hook in hooks.items() if getattr(hook, "__module__", None) == output_capturing.__name__]:
        del hooks[key]
    vars(module).pop("_output_capturing_hooks_installed", None)


def _copy_settings(module: nn.Module) -> tuple[dict[str, dict | set], dict]:
    """What a module holds (children, parameters, buffers) by reference, and its plain attributes by value."""
    children = {name: copy.copy(vars(module)[name]) for name in _HELD}
    own = (*TORCH_STATE, *SET_BY_TRAINING)
    settings = {name: value for name, value in vars(module).items() if is_plain(value) and name not in own}
    return children, copy.deepcopy(settings)


def _copy_fields(fields: dict) -> dict:
    """The fields of a config by value, except the configs inside it."""
    return {k: v if isinstance(v, PretrainedConfig) else copy.deepcopy(v) for k, v in fields.items()}
