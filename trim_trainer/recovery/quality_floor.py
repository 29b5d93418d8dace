"""The quality floor: how much worse than before the first drop a model may become."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from torch import nn

from ..records.history import TrimHistory
from .last_good import LastGood


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
        """Whether `metric` is worse than before the first drop by more than `max_metric_drop`, or not a number."""
        if self.max_metric_drop is None or self._first is None:
            return False
        return not self._sign * (self._first - metric) <= self.max_metric_drop

    def keep(self, metric: float, model: nn.Module, optimizer, history: TrimHistory) -> None:
        """Remember the model as the last good one, right before a drop."""
        if self.max_metric_drop is not None:
            self._first = metric if self._first is None else self._first
            self._last_good = LastGood.take(model, optimizer, history)

    def restore(self, metric: float, history: TrimHistory, model: nn.Module, optimizer, groups) -> TrimHistory:
        """Roll back to the last good depth; return its history, which says why dropping stopped."""
        good = self._last_good
        good.restore(model, optimizer, groups)
        reason = (
            f"{self._metric_name} on the calibration set was {metric:.4g} at depth {history.depth} and "
            f"{self._first:.4g} before the first drop, worse by more than `max_metric_drop` {self.max_metric_drop:g}; "
            f"depth {good.history.depth} was restored"
        )
        self._last_good = None
        return replace(good.history, stopped=reason)

    def save(self, directory: str | Path) -> None:
        """Write the last good depth beside a checkpoint."""
        if self._last_good is not None:
            self._last_good.save(directory)

    def resume(
        self, directory: str | Path, history: TrimHistory, bring_to: Callable[[TrimHistory], nn.Module]
    ) -> None:
        """Go on from a checkpoint with this history; `bring_to` is as in `LastGood.load`."""
        self._first = self._last_good = None
        if self.max_metric_drop is not None and history.drops:
            self._first = history.drops[0].metric
            self._last_good = LastGood.load(directory, bring_to)
            if self._last_good is None and history.stopped is None:
                raise ValueError(
                    f"`max_metric_drop` is {self.max_metric_drop:g}, but the checkpoint {str(directory)!r} was written "
                    "without a quality floor, so there is no depth to come back to. Resume it without `max_metric_drop`."
                )
