"""An optimizer that holds exactly the parameters that train, when layers are gone or other parameters train."""

from collections.abc import Callable, Iterable

import torch
from torch import nn
from torch.utils.weak import WeakTensorKeyDictionary

from .wrapping import hold_shards


class ParameterGroups:
    """The group of an optimizer that each parameter belongs to, also while it is frozen or its layer is gone.

    A parameter that was in none joins the group with weight decay if its name is in `decayed()` and the one without
    otherwise, as the Trainer builds them; one that `leave_out` found stays in none.
    """

    def __init__(self, decayed: Callable[[], Iterable[str]]):
        self._decayed = decayed
        self._numbers: WeakTensorKeyDictionary = WeakTensorKeyDictionary()  # of the group; None: in none

    def leave_out(self, optimizer: torch.optim.Optimizer, model: nn.Module) -> None:
        """Note what could train and is in no group of an optimizer that somebody made: it was left out on purpose."""
        self.note(optimizer)
        for parameter in model.parameters():
            if parameter.requires_grad and parameter not in self._numbers:
                self._numbers[parameter] = None

    def note(self, optimizer: torch.optim.Optimizer) -> None:
        """Note which group holds what."""
        for number, group in enumerate(optimizer.param_groups):
            for parameter in group["params"]:
                self._numbers[parameter] = number

    def number_of(self, names: dict[nn.Parameter, str], number_of_groups: int) -> dict[nn.Parameter, int | None]:
        """The group of each parameter; None: it is left out."""
        decayed = set(self._decayed())
        for parameter, name in names.items():
            if parameter not in self._numbers:
                self._numbers[parameter] = 0 if name in decayed else number_of_groups - 1
        return {parameter: self._numbers[parameter] for parameter in names}


def sync_optimizer(optimizer: torch.optim.Optimizer, model: nn.Module, groups: ParameterGroups) -> None:
    """Make an optimizer hold exactly the parameters of `model` that train, in model order, each in its group.

    State of dropped and of frozen parameters is forgotten, that of the others is kept as it is; parameters that begin
    to train start without state.
    """
    hold_shards(model)
    groups.note(optimizer)
    names = {parameter: name for name, parameter in model.named_parameters() if parameter.requires_grad}
    numbers = groups.number_of(names, len(optimizer.param_groups))
    for number, group in enumerate(optimizer.param_groups):
        group["params"] = [parameter for parameter in names if numbers[parameter] == number]
    for parameter in [parameter for parameter in optimizer.state if numbers.get(parameter) is None]:
        del optimizer.state[parameter]
