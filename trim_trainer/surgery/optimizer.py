"""An optimizer that holds exactly the parameters that train, when layers are gone or other parameters train."""

from collections.abc import Callable, Iterable

import torch
from torch import nn

from .wrapping import hold_shards


def sync_optimizer(optimizer: torch.optim.Optimizer, model: nn.Module, decayed: Callable[[], Iterable[str]]) -> None:
    """Make an optimizer hold exactly the parameters of `model` that train, in model order.

    State of dropped and of frozen parameters is forgotten, that of the others is kept as it is; parameters that begin
    to train start without state. Parameters keep their group; new ones join the group with weight decay if their name
    is in `decayed()` and the one without otherwise, as the Trainer builds them.
    """
    hold_shards(model)
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
