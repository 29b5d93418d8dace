"""The last depth that was good enough, to come back to."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from ..records.history import TrimHistory
from ..surgery.backup import LayerBackup
from ..surgery.drop import is_quantized
from ..surgery.optimizer import ParameterGroups, sync_optimizer

LAST_GOOD_NAME = "last_good.pt"


@dataclass(frozen=True)
class LastGood:
    """A model at one depth: layers, weights, frozen set, optimizer state, history. Values are copies on the CPU."""

    history: TrimHistory
    layers: LayerBackup
    weights: dict[str, torch.Tensor]
    trained: frozenset[str]  # names of the parameters that train
    states: dict[str, dict]  # of the optimizer, by name of the parameter
    parameters: dict[str, nn.Parameter]

    @classmethod
    def take(cls, model: nn.Module, optimizer: torch.optim.Optimizer, history: TrimHistory) -> "LastGood":
        """Keep the model as it is now."""
        parameters = dict(model.named_parameters())
        return cls(
            history,
            LayerBackup(model),
            {name: tensor.detach().to("cpu", copy=True) for name, tensor in _weights(model).items()},
            frozenset(name for name, parameter in parameters.items() if parameter.requires_grad),
            {
                name: {key: _copied(value) for key, value in optimizer.state[parameter].items()}
                for name, parameter in parameters.items()
                if parameter in optimizer.state
            },
            parameters,
        )

    def restore(self, model: nn.Module, optimizer: torch.optim.Optimizer, groups: ParameterGroups) -> None:
        """Bring everything back, in place, each parameter into the group of the optimizer that it was in."""
        self.layers.restore()
        _load(model, self.weights)
        for name, parameter in self.parameters.items():
            parameter.requires_grad_(name in self.trained)
        sync_optimizer(optimizer, model, groups)
        group_of = {parameter: group for group in optimizer.param_groups for parameter in group["params"]}
        for name, state in self.states.items():
            parameter = self.parameters[name]
            group = group_of[parameter]
            counts_on_device = group.get("fused") or group.get("capturable")
            optimizer.state[parameter] = {
                key: _placed(value, parameter if key != "step" or counts_on_device else None)
                for key, value in state.items()
            }

    def save(self, directory: str | Path) -> None:
        """Write it beside a checkpoint, for a run that is resumed there."""
        values = {"weights": self.weights, "trained": sorted(self.trained), "states": self.states}
        torch.save(values | {"history": self.history.to_json()}, Path(directory) / LAST_GOOD_NAME)

    @classmethod
    def load(cls, directory: str | Path, bring_to: Callable[[TrimHistory], nn.Module]) -> "LastGood | None":
        """Read what `save` wrote, if it did; `bring_to` gives the model the depth of a history."""
        path = Path(directory) / LAST_GOOD_NAME
        if not path.is_file():
            return None
        values = torch.load(path, map_location="cpu", weights_only=True)
        history = TrimHistory.from_json(values["history"])
        model = bring_to(history)
        return cls(
            history,
            LayerBackup(model),
            values["weights"],
            frozenset(values["trained"]),
            values["states"],
            dict(model.named_parameters()),
        )


def _weights(model: nn.Module) -> dict[str, torch.Tensor]:
    """What training can change: all there is; of a model with quantized weights, which stay, the others."""
    if not is_quantized(model):
        return model.state_dict()
    return {name: weight for name, weight in model.named_parameters() if weight.is_floating_point()}


@torch.no_grad()
def _load(model: nn.Module, weights: dict[str, torch.Tensor]) -> None:
    if not is_quantized(model):
        model.load_state_dict(weights)
        return
    for name, weight in _weights(model).items():
        weight.copy_(weights[name])


def _copied(value):
    return value.detach().to("cpu", copy=True) if isinstance(value, torch.Tensor) else value


def _placed(value, parameter: nn.Parameter | None):
    """A copy beside the parameter, or on the CPU, where torch's optimizers keep their counts of steps."""
    if not isinstance(value, torch.Tensor):
        return value
    return value.to("cpu" if parameter is None else parameter.device, copy=True)
