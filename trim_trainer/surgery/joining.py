"""A layer with the attention half of one and the MLP half of another."""

import copy

import torch
from torch import nn
from transformers import PretrainedConfig

from ..architectures.errors import LayerConstraintError
from ..architectures.halves import Halves

_HELD = ("_modules", "_parameters", "_buffers")


def check_parts(layer: nn.Module, halves: Halves) -> None:
    """Raise a LayerConstraintError if a layer has something of which it is not known in which half it is."""
    unknown = sorted(_parts(layer) - {*halves.attention, *halves.mlp})
    if unknown:
        raise LayerConstraintError(
            f"{type(layer).__name__} has {', '.join(unknown)}, and it is not known to which half of the layer this belongs. Drop "
            "whole layers."
        )


def move_mlp_half(front: nn.Module, back: nn.Module, halves: Halves) -> None:
    """Give a layer the MLP half of another one in place of its own, in place: what is left of the other goes."""
    device = _device(front)
    for name in halves.mlp:
        for held in _HELD:
            ours, theirs = vars(front)[held], vars(back)[held]
            ours.pop(name, None)
            if name in theirs:
                part = theirs.pop(name)
                if isinstance(part, nn.Module) and _device(part) not in (None, device):
                    part.to(device)
                ours[name] = part
        if name in vars(back):  # a setting of the layer itself
            vars(front)[name] = vars(back)[name]


def joined_twin(front: nn.Module, back: nn.Module, halves: Halves) -> nn.Module:
    """Return a layer of its own with the attention half of one and the MLP half of another, whose weights it shares."""
    twin = copy.deepcopy(front, _shared(front))
    move_mlp_half(twin, copy.deepcopy(back, _shared(back)), halves)
    return twin


def _device(module: nn.Module) -> torch.device | None:
    """Where the weights of a module are; None: it has none, or they are nowhere yet."""
    return next((one.device for one in module.parameters() if not one.is_meta), None)


def _parts(layer: nn.Module) -> set[str]:
    return {name for held in _HELD for name in vars(layer)[held]}


def _shared(layer: nn.Module) -> dict[int, object]:
    """What a copy does not copy: tensors and configs."""
    kept = [*layer.parameters(), *layer.buffers()]
    configs = [each for module in layer.modules() for each in vars(module).values()]
    kept += [each for each in configs if isinstance(each, PretrainedConfig | torch.Tensor)]
    return {id(each): each for each in kept}
