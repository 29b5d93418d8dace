"""The only code that changes a model's layers or config."""

import copy
import operator
from collections.abc import Iterable

import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from .architectures import LAYER_NUMBERS, find_layers, rewrite_config, text_config


class SurgeryError(RuntimeError):
    """The trimmed model would not be what its config says; nothing was changed."""


def drop_layers(model: PreTrainedModel, layers: Iterable[int]) -> PreTrainedModel:
    """Drop decoder layers in place: modules, layer numbers and config.

    Before anything changes, the new config is instantiated on the meta device and must ask for exactly the tensors
    that are left, so the result is saved and loaded as an ordinary checkpoint of its model type.

    Args:
        model: A causal LM of a type in `ARCHITECTURES`.
        layers: Numbers of the layers to drop, as the model counts them now, from 0.

    Returns:
        `model` itself.

    Raises:
        UnsupportedArchitectureError: layers of this model type cannot be dropped.
        ValueError: a number is out of range or given twice, or no layer would be left.
        SurgeryError: the tensors that are left are not those of the new config.
    """
    stack = find_layers(model)
    dropped = check_layers(layers, len(stack))
    if not dropped:
        return model
    kept = [layer for layer in range(len(stack)) if layer not in dropped]
    check_result(model, stack, kept)
    for layer in sorted(dropped, reverse=True):
        del stack[layer]
    renumber_layers(stack)
    rewrite_config(model.config, kept)
    return model


def check_layers(layers: Iterable[int], num_layers: int) -> set[int]:
    """Return `layers` as a set, or raise a ValueError that says which number is wrong."""
    numbers = [operator.index(layer) for layer in layers]
    wrong = [layer for layer in numbers if not 0 <= layer < num_layers]
    if wrong:
        raise ValueError(f"`layers` contains {wrong}, expected numbers from 0 to {num_layers - 1}.")
    if len(set(numbers)) < len(numbers):
        raise ValueError(f"`layers` is {numbers}, expected each number once.")
    if len(numbers) == num_layers:
        raise ValueError(f"`layers` names all {num_layers} layers, at least one has to stay.")
    return set(numbers)


def trimmed_config(config: PretrainedConfig, kept: Iterable[int]) -> PretrainedConfig:
    """Return the config that a checkpoint with the layers `kept` has once it is saved and read again."""
    new = copy.deepcopy(config)
    rewrite_config(new, kept)
    return type(config).from_dict(new.to_dict())


def check_result(model: PreTrainedModel, stack: nn.ModuleList, kept: list[int]) -> None:
    """Raise a SurgeryError unless the new config asks for exactly the tensors of the kept layers."""
    config = trimmed_config(model.config, kept)
    with torch.device("meta"):
        expected = type(model)._from_config(config).state_dict()
    prefix = next(name for name, module in model.named_modules() if module is stack) + "."
    new_number = {str(old): str(new) for new, old in enumerate(kept)}
    left = {}
    for name, tensor in model.state_dict().items():
        head, found, tail = name.partition(prefix)
        number, _, rest = tail.partition(".")
        if not found or head:
            left[name] = tensor.shape
        elif number in new_number:
            left[f"{prefix}{new_number[number]}.{rest}"] = tensor.shape
    expected = {name: tensor.shape for name, tensor in expected.items()}
    if left != expected:
        differing = sorted(name for name in left.keys() | expected.keys() if left.get(name) != expected.get(name))
        raise SurgeryError(
            f"Dropping these layers of {config.model_type!r} leaves tensors that its config does not describe: "
            f"{', '.join(differing[:5])}{' …' if len(differing) > 5 else ''}. Nothing was changed."
        )


def renumber_layers(stack: nn.ModuleList) -> None:
    """Give every module in the stack its layer's new number: the KV cache is addressed by it."""
    for number, layer in enumerate(stack):
        for module in layer.modules():
            for name in LAYER_NUMBERS:
                if name in module.__dict__:
                    setattr(module, name, number)


class LayerBackup:
    """The layers and the config of a model as they are now, to bring them back after later drops.

    Holds the layer modules themselves, so it costs no memory until layers are dropped. Values of parameters are not
    copied: that is the caller's part.
    """

    def __init__(self, model: PreTrainedModel):
        self._layers = list(find_layers(model))
        self._config = copy.deepcopy(text_config(model.config).__dict__)

    def restore(self, model: PreTrainedModel) -> None:
        """Put the layers and the config back, in place."""
        stack = find_layers(model)
        del stack[:]
        stack.extend(self._layers)
        renumber_layers(stack)
        config = text_config(model.config)
        config.__dict__.clear()
        config.__dict__.update(copy.deepcopy(self._config))
