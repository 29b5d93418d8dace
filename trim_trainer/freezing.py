"""Which parameters train: the sparse update, and an optimizer that holds exactly those."""

import math
from collections.abc import Callable, Iterable

import torch
from torch import nn
from transformers import PreTrainedModel

from .architectures.modules import find_layers


def choose_trained_layers(
    scores: tuple[float, ...], ratio: float, num_layers: int, still_trained: Iterable[int] = ()
) -> tuple[int, ...]:
    """Choose the layers of the sparse update: those most likely to be kept (TrimLLM, arXiv 2412.11242).

    A layer that trains goes on training while it is there, so its optimizer state is not thrown away at each round;
    the places of dropped ones go to the highest scores.

    Args:
        scores: One per layer of the model as it is now, higher = keep.
        ratio: Share of the layers that trains, in (0, 1].
        num_layers: Depth of the untrimmed model, of which `ratio` is the share.
        still_trained: Numbers of layers that train already.

    Returns:
        Their numbers, in rising order.
    """
    number = min(max(1, math.ceil(ratio * num_layers)), len(scores))
    trained = list(still_trained)[:number]
    # Of two equal scores the later layer: its gradient costs less of the backward pass.
    by_score = sorted(range(len(scores)), key=lambda layer: (scores[layer], layer), reverse=True)
    trained += [layer for layer in by_score if layer not in trained][: number - len(trained)]
    return tuple(sorted(trained))


def freeze_all_but(model: PreTrainedModel, trained_layers: Iterable[int]) -> None:
    """Let the parameters of these layers train and nothing else: no embedding, head, final norm or other layer."""
    layers = find_layers(model)
    trained = {parameter for number in trained_layers for parameter in layers[number].parameters()}
    for parameter in model.parameters():
        parameter.requires_grad_(parameter in trained)
        if parameter not in trained:
            parameter.grad = None


def sync_optimizer(optimizer: torch.optim.Optimizer, model: nn.Module, decayed: Callable[[], Iterable[str]]) -> None:
    """Make an optimizer hold exactly the parameters of `model` that train, in model order.

    State of dropped and of frozen parameters is forgotten, that of the others is kept as it is; parameters that begin
    to train start without state. Parameters keep their group; new ones join the group with weight decay if their name
    is in `decayed()` and the one without otherwise, as the Trainer builds them.
    """
    names = {parameter: name for name, parameter in model.named_parameters() if parameter.requires_grad}
    groups = optimizer.param_groups
    group_of = {parameter: group for group in groups for parameter in group["params"] if parameter in names}
    with_decay = set(decayed())
    for parameter, name in names.items():
        if parameter not in group_of:
            group_of[parameter] = groups[0] if name in with_decay else groups[-1]
    for group in groups:
        group["params"] = [parameter for parameter in names if group_of[parameter] is group]
    for parameter in [parameter for parameter in optimizer.state if parameter not in names]:
        del optimizer.state[parameter]
