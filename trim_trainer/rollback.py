"""The quality floor, and the last depth that was above it, to come back to."""

import copy
from collections.abc import Callable, Iterable
from dataclasses import replace

import torch
from transformers import PreTrainedModel

from .freezing import sync_optimizer
from .history import TrimHistory
from .surgery import LayerBackup


class LastGood:
    """A model at one depth: layers, weights, frozen set, optimizer state, history. Copies weights to the CPU."""

    def __init__(self, model: PreTrainedModel, optimizer: torch.optim.Optimizer, history: TrimHistory):
        self.history = history
        self._layers = LayerBackup(model)
        self._weights = {name: tensor.detach().to("cpu", copy=True) for name, tensor in model.state_dict().items()}
        self._trained = {parameter for parameter in model.parameters() if parameter.requires_grad}
        self._state = {parameter: copy.deepcopy(state) for parameter, state in optimizer.state.items()}

    def restore(
        self, model: PreTrainedModel, optimizer: torch.optim.Optimizer, decayed: Callable[[], Iterable[str]]
    ) -> None:
        """Bring everything back, in place. `decayed` is as in `sync_optimizer`."""
        self._layers.restore()
        model.load_state_dict(self._weights)
        for parameter in model.parameters():
            parameter.requires_grad_(parameter in self._trained)
        sync_optimizer(optimizer, model, decayed)
        optimizer.state.update(self._state)


class QualityFloor:
    """How much worse than before the first drop the calibration metric may become.

    The metric is looked at when the model has trained at its depth, right before the next drop and at the end of the
    run, not right after a drop, which training is there to heal.
    """

    def __init__(self, max_metric_drop: float | None, metric: str):
        self.max_metric_drop = max_metric_drop
        self._sign = 1 if metric == "accuracy" else -1  # accuracy falls when it gets worse, loss rises
        self._metric_name = metric
        self._first: float | None = None
        self._last_good: LastGood | None = None

    def is_crossed(self, metric: float) -> bool:
        """Whether `metric` is worse than before the first drop by more than `max_metric_drop`."""
        if self.max_metric_drop is None or self._first is None:
            return False
        return self._sign * (self._first - metric) > self.max_metric_drop

    def keep(self, metric: float, model: PreTrainedModel, optimizer, history: TrimHistory) -> None:
        """Remember the model as the last good one, right before a drop."""
        if self.max_metric_drop is not None:
            self._first = metric if self._first is None else self._first
            self._last_good = LastGood(model, optimizer, history)

    def restore(self, metric: float, history: TrimHistory, model: PreTrainedModel, optimizer, decayed) -> TrimHistory:
        """Roll back to the last good depth; return its history, which says why dropping stopped."""
        good = self._last_good
        good.restore(model, optimizer, decayed)
        reason = (
            f"{self._metric_name} on the calibration set was {metric:.4g} at depth {history.depth} and "
            f"{self._first:.4g} before the first drop, worse by more than `max_metric_drop` {self.max_metric_drop:g}; "
            f"depth {good.history.depth} was restored"
        )
        self._last_good = None
        return replace(good.history, stopped=reason)
