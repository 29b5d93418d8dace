"""A model of full depth made of the weights of a trimmed one, to time the two side by side."""

from collections import Counter
from collections.abc import Sequence

import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from ..architectures.modules import find_stacks
from ..architectures.table import find_architecture
from .blueprint import build, tensor_shapes


def full_depth_twin(model: PreTrainedModel, config: PretrainedConfig, kept: Sequence[int]) -> PreTrainedModel | None:
    """Return a model of the untrimmed config that holds no weight of its own.

    A dropped layer's place is taken by a kept one of the same shapes: the least used of them, and of these the farthest,
    whose weights have left the caches. The twin computes something else than the untrimmed model, at its speed.

    Args:
        model: The trimmed model.
        config: Of the untrimmed one.
        kept: Numbers, in the untrimmed model, of the layers of `model`.

    Returns:
        None: weights outside the layers depend on the depth, no kept layer has the shapes of a dropped one, or the model
        changes its weights when it runs.
    """
    if find_architecture(config).writes_weights:
        return None
    twin = build(type(model), config).eval()
    modules = dict(model.named_modules(remove_duplicate=False))
    inside, pairs = set(), []
    for stack_name, stack in find_stacks(twin).items():
        layers = [modules[f"{stack_name}.{new}"] for new in range(len(kept))]
        shapes_of_kept = [tensor_shapes(layer) for layer in layers]
        uses = Counter()
        for number, layer in enumerate(stack):
            shapes = tensor_shapes(layer)
            alike = [new for new, found in enumerate(shapes_of_kept) if found == shapes]
            if not alike:
                return None
            best = min(alike, key=lambda new: (kept[new] != number, uses[new], -abs(kept[new] - number)))
            uses[best] += number not in kept
            sources = dict(layers[best].named_modules())
            pairs += [(module, sources.get(name)) for name, module in layer.named_modules()]
            inside |= set(layer.modules())
    others = [(name, module) for name, module in twin.named_modules(remove_duplicate=False) if module not in inside]
    pairs += [(module, modules.get(name)) for name, module in others]
    return twin if all(_share_tensors(module, source, model.device) for module, source in pairs) else None


def _share_tensors(module: nn.Module, source: nn.Module | None, device: torch.device) -> bool:
    """Let a module use the tensors of another, beside what it computes itself; say whether it could."""
    for kind in ("_parameters", "_buffers"):
        others = {} if source is None else vars(source)[kind]
        for name, own in vars(module)[kind].items():
            theirs = others.get(name)
            if own is None or own.is_meta:
                if getattr(own, "shape", None) != getattr(theirs, "shape", None):
                    return False
                vars(module)[kind][name] = theirs
            else:  # computed, see `build`: the trimmed model may have that of another layer under this name
                vars(module)[kind][name] = own.to(device) if theirs is None else own.to(theirs)
    return True
