"""The algorithm of TrimLLM: score, choose, drop, recover, freeze, record, until a depth is reached (arXiv 2412.11242)."""

import logging
import math
import time
from collections.abc import Callable, Collection, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Protocol

import torch
from transformers import PreTrainedModel

from ..architectures.droppable import droppable_cuts
from ..architectures.kept import Cut, Kept, Seam, cuts_of, sublayers
from ..architectures.modules import find_layers
from ..data.examples import ScoredExample
from ..data.metrics import measure
from ..importance.calibration import Settings
from ..importance.choice import choose_layers
from ..importance.criteria import CriterionLike, find_criterion
from ..importance.scores import LayerScores, calibrate
from ..records.history import Dropped, Round, TrimHistory
from ..recovery.compensation import Compensation
from ..recovery.quality_floor import QualityFloor
from ..scoring.finite import DivergedError
from ..scoring.layout import Layout
from ..scoring.processes import from_main
from ..scoring.scan import score_choices
from ..scoring.speed import measure_saved_tokens_per_second
from ..scoring.trial import choose_layout
from ..surgery.backup import LayerBackup
from ..surgery.drop import drop_layers
from ..surgery.optimizer import ParameterGroups
from .sparse_update import WantedTraining, choose_trained_layers, freeze_all_but

logger = logging.getLogger(__name__)

NUM_RUNS_AT_DROPS = 1  # of timed decoding: a curve for the card, not the figure that it states


class Run(Protocol):
    """What the algorithm needs of the training run that it works in: `TrimTrainer`."""

    model: PreTrainedModel  # with its adapters
    causal_lm: PreTrainedModel  # inside adapters and wrappers: the one whose layers are dropped
    optimizer: torch.optim.Optimizer | None
    parameter_groups: ParameterGroups  # of the optimizer
    global_step: int  # optimizer steps that are done
    compensation: Compensation | None  # None: nothing takes over what dropped layers added

    def scoring(self) -> AbstractContextManager[None]:
        """The model scores within as it evaluates."""

    def sync_parameters(self) -> None:
        """Tell the optimizer and the wrapper of several processes what the model has and what trains."""


@dataclass(frozen=True)
class TrimSettings:
    """How layers are scored, chosen and dropped; fields as in `TrimConfig`."""

    seed: int
    scan_batch_tokens: int | None = None
    layers_per_trim: int = 1
    racing_confidence: float | None = None
    sparse_update_ratio: float | None = None  # None: all parameters train
    protected_layers: tuple[int, ...] = ()  # numbers in the untrimmed model
    with_seams: bool = False  # halves of neighbouring layers may go too, not only whole layers
    compensates: bool = True  # in front of dropped layers, if the run has examples for it
    measures_drops: bool = True  # metric and speed right after each drop


class Trimming:
    """Drops the layers of one model, in a run that trains it or before.

    Args:
        run: Whose model it is.
        history: What was dropped already, and the target.
        criterion: A name in `CRITERIA`, or a function of the user's.
        examples: The calibration set, as its metric looks at it.
        settings: How it is done.
        floor: How much worse the metric may become.
        other_examples: What else is scored in the run, and its layout has to fit.
        on_round: Called with each round that dropped layers.
        before_drop: Called when the model has trained at a depth that it is about to leave.
    """

    def __init__(
        self,
        run: Run,
        history: TrimHistory,
        criterion: CriterionLike,
        examples: list[ScoredExample],
        settings: TrimSettings,
        floor: QualityFloor,
        other_examples: Iterable[ScoredExample] = (),
        on_round: Callable[[Round], None] = lambda a_round: None,
        before_drop: Callable[[], None] = lambda: None,
    ):
        self.run, self.history, self.criterion = run, history, criterion
        self.examples, self.settings, self.floor = examples, settings, floor
        self._laid_out = [*examples, *other_examples]
        self._on_round, self._before_drop = on_round, before_drop
        self._wanted: WantedTraining | None = None  # nothing is frozen yet
        self._untrimmed: LayerBackup | None = None
        self.is_over = False  # no further layer is dropped, whatever the plan says

    # The algorithm.

    def trim_to(self, depth: int) -> None:
        """Drop layers until `depth` of them are left; stop at the quality floor."""
        while self.history.depth > depth and not self.is_over:
            try:
                scored = self.score()
            except DivergedError:
                if not self.floor.is_crossed(math.nan):
                    raise
                self.roll_back(math.nan)
                return
            if self.floor.is_crossed(scored.metric):
                self.roll_back(scored.metric)
                return
            self._before_drop()
            self.floor.keep(scored.metric, self.run.model, self.run.optimizer, self.history)
            number = min(self.settings.layers_per_trim, self.history.depth - depth)
            dropped = from_main(choose_layers(scored, self.criterion, number, self.droppable))
            if not dropped:
                self.stop("no layer that is left can be dropped")
                return
            started = time.perf_counter()
            trained = self.drop(dropped, scored)
            self.record(scored, dropped, trained, from_main(time.perf_counter() - started))

    @property
    def compensation(self) -> Compensation | None:
        """How drops are made good, here; None: not at all."""
        return self.run.compensation if self.settings.compensates else None

    def droppable(self, chosen: tuple[Cut, ...] = ()) -> set[Cut]:
        """Layers, and seams, (numbers of the model as it is now) that can go in addition to `chosen`."""
        owners = [half // 2 for half in _sublayers(self.history)]
        protected = set(self.settings.protected_layers)
        protected |= {owners[2 * layer] for layer in self._last_to_train(chosen)}
        cuts = droppable_cuts(self.run.causal_lm, chosen, self.settings.with_seams)
        return {cut for cut in cuts if not protected & {owners[half] for half in sublayers(cut)}}

    def _last_to_train(self, chosen: tuple[Cut, ...]) -> list[int]:
        """The one layer (number of the model as it is now) behind `chosen` without which nothing would train any more, if any.

        An adapter may be on a few layers only, or a script may have frozen the others.
        """
        wanted = self._wanted or WantedTraining(self.run.model)
        layers = find_layers(self.run.causal_lm)
        inside = {parameter for layer in layers for parameter in layer.parameters()}
        if any(wanted.trains(each) for each in self.run.model.parameters() if each not in inside):
            return []
        gone = {cut for cut in chosen if not isinstance(cut, Seam)}
        left = [
            number
            for number, layer in enumerate(layers)
            if number not in gone and any(map(wanted.trains, layer.parameters()))
        ]
        return left if len(left) == 1 else []

    def score(self) -> LayerScores:
        """Score every candidate that is left: how good is the model on the calibration set without it?

        Without it, and with the layer in front of it taking over, where drops are compensated for.
        """
        started, candidates, takeovers = time.perf_counter(), self.droppable(), {}
        if self.compensation is not None and find_criterion(self.criterion).scans:
            with self.run.scoring():
                takeovers = self.compensation.takeovers(self.run.causal_lm, candidates)
        settings = Settings(
            self.history.calibration_metric,
            self.layout,
            self.settings.scan_batch_tokens,
            self.settings.layers_per_trim,
            self.settings.racing_confidence,
            self.settings.seed + self.run.global_step,
            takeovers,
            self.settings.with_seams,
        )
        with self.run.scoring():
            scored = calibrate(self.run.causal_lm, self.examples, self.criterion, settings, candidates)
        return from_main(replace(scored, seconds=time.perf_counter() - started))

    def drop(self, dropped: tuple[Cut, ...], scored: LayerScores) -> tuple[int, ...] | None:
        """Drop layers and seams (numbers of the model as it is now), choose which of the others train, tell the optimizer.

        Returns:
            Numbers, before the drop, of the layers that train from now on; None: all parameters do.
        """
        kept, trained = self.history.kept, self.history.trained_layers
        left = Kept.without(len(kept), dropped).layers
        with self.compensation.dropping(self.run.causal_lm, dropped) if self.compensation else nullcontext():
            self._take_out(dropped)
        if trained is not None:
            still_trained = [new for new, old in enumerate(left) if kept[old] in trained]
            scores = tuple(scored.of_layers[old] for old in left)
            chosen = choose_trained_layers(
                scores, self.settings.sparse_update_ratio, self.history.num_layers, still_trained
            )
            freeze_all_but(self.run.model, chosen, self._wanted)
            trained = tuple(left[new] for new in chosen)
        self.run.sync_parameters()
        return trained

    def record(
        self,
        scored: LayerScores,
        dropped: tuple[Cut, ...],
        trained: tuple[int, ...] | None,
        drop_seconds: float = 0.0,
    ) -> None:
        """Add the round to the history, in the layer numbers of the untrimmed model."""
        kept, mlps = zip(*self.history.halves, strict=True)
        counts, with_seams = scored.num_examples, scored.with_seams
        a_round = Round(
            step=self.run.global_step,
            layers=kept,
            scores=scored.of_layers,
            metric=scored.metric,
            seconds=scored.seconds,
            activation_norms=scored.activation_norms,
            num_examples=counts[::2] if counts and with_seams else counts,
            contenders=None if scored.contenders is None else tuple(map(self._original, scored.contenders)),
            dropped=tuple(map(self._original, dropped)),
            trained_layers=None if trained is None else tuple(kept[layer] for layer in trained),
            drop_seconds=drop_seconds,
            mlps=None if mlps == kept else mlps,
            seam_scores=scored.scores[1::2] if with_seams else None,
            seam_num_examples=counts[1::2] if counts and with_seams else None,
        )
        before = self.history
        self.history = before.add(a_round)  # first of all: measuring may fail, and the layers are gone
        if dropped and self.settings.measures_drops:
            a_round = replace(
                a_round,
                metric_after=self.measure_metric(),
                decode_tokens_per_second=from_main(
                    measure_saved_tokens_per_second(self.run.causal_lm, self.run.args.merge_adapter, NUM_RUNS_AT_DROPS)
                ),
            )
            self.history = before.add(a_round)
        if dropped:
            self._on_round(a_round)

    def _original(self, cut: Cut) -> Dropped:
        """A layer or seam, in the layer numbers of the untrimmed model."""
        halves = self.history.halves
        return (halves[cut.front][1], halves[cut.back][0]) if isinstance(cut, Seam) else halves[cut][0]

    def roll_back(self, metric: float) -> None:
        """Return to the last depth above the quality floor; the rest of the schedule heals it."""
        run, target = self.run, self.history.target_layers
        self.history = self.floor.restore(metric, self.history, run.model, run.optimizer, run.parameter_groups)
        run.sync_parameters()
        self.history = replace(self.history, target_layers=target)  # a resumed run may have another one
        self.stop(self.history.stopped)

    def stop(self, reason: str) -> None:
        """Drop no further layer; the rest of the schedule heals what is left."""
        self.is_over = True
        self.history = replace(self.history, stopped=reason)
        logger.warning("Dropping stops: %s.", reason)

    # Before and after it.

    def begin(self) -> None:
        """A run begins: what was said of the end of an earlier one is not true any more."""
        if not self.is_over:
            self.history = replace(self.history, stopped=None)
        self._wanted = WantedTraining(self.run.model)

    def end(self, reason: str) -> None:
        """The run has ended; where that is above its target, record and say why."""
        if self.history.is_above_target and self.history.stopped is None:
            self.history = self.history_stopped_by(reason)

    def history_stopped_by(self, reason: str) -> TrimHistory:
        """The history of a model that is left above the target, for a reason that is said."""
        depths = self.history.depth, self.history.target_layers
        logger.warning("The model has %d layers, above the target of %d: %s.", *depths, reason)
        return replace(self.history, stopped=reason)

    def choose_trained(self) -> None:
        """Choose the layers most likely to be kept, which train in a sparse update, if there is to be one."""
        if not self.history.rounds and self.settings.sparse_update_ratio is not None:
            scored = self.score()
            ratio = self.settings.sparse_update_ratio
            self.record(scored, (), choose_trained_layers(scored.of_layers, ratio, self.history.num_layers))
            self.freeze()

    def freeze(self) -> None:
        """Freeze all but the layers of the sparse update, once they are known."""
        kept, trained = self.history.kept, self.history.trained_layers
        if trained is not None:
            freeze_all_but(self.run.causal_lm, [kept.index(layer) for layer in trained], self._wanted)

    def unfreeze(self) -> None:
        """Let train again what the sparse update has frozen: what comes behind the run may train all of the model."""
        if self.history.trained_layers is not None:
            self._wanted.bring_back()

    def check_floor(self) -> None:
        """Roll back if the model that has trained to the end is below the quality floor."""
        if self.history.drops and not self.is_over:
            metric = self.measure_metric()
            if self.floor.is_crossed(metric):
                self.roll_back(metric)

    @cached_property
    def layout(self) -> Layout:
        """How examples are laid out for scoring: the fastest way that is exact for this model, tried once."""
        return from_main(choose_layout(self.run.causal_lm, self._laid_out, self.settings.with_seams))

    def measure_metric(self) -> float:
        """The calibration metric of the model as it is now."""
        return self.measure_on(self.examples, self.history.calibration_metric)

    def measure_on(self, examples: list[ScoredExample], metric: str) -> float:
        """A metric of the model as it is now."""
        with self.run.scoring():
            log_probs = score_choices(self.run.causal_lm, examples, self.layout, self.settings.scan_batch_tokens)
        return measure(log_probs, examples, metric).item()

    # Other depths: a checkpoint that is resumed, a best model that had more layers.

    def keep_untrimmed(self) -> None:
        """Keep the layers that will be dropped, on the CPU, where a checkpoint that has them may be come back to."""
        self._untrimmed = LayerBackup(self.run.model)

    def resume(self, checkpoint: str, history: TrimHistory, is_over: bool) -> None:
        """Give the untrimmed model the depth of a checkpoint, whose weights are loaded into it later.

        Args:
            checkpoint: Its folder.
            history: Of the run that wrote it.
            is_over: Whether dropping had stopped for good.

        Raises:
            ValueError: the checkpoint has layers that the model has lost, or knows no depth to come back to.
        """
        target = self.history.target_layers
        self.floor.resume(checkpoint, history, self._bring_to)
        self._bring_to(history)
        self.is_over = is_over
        is_stopped = is_over and history.depth > target
        self.history = replace(history, target_layers=target, stopped=history.stopped if is_stopped else None)

    def return_to(self, checkpoint: str) -> None:
        """Give the model the depth of an earlier checkpoint, with layers that have gone since; see `keep_untrimmed`."""
        best, was = TrimHistory.load(checkpoint), self.history
        if best.depth > self.history.depth:
            logger.warning(
                "The best checkpoint has %d layers, the last one %d. To choose among those at the target only, set "
                "`eval_delay` to when it is reached.",
                best.depth,
                self.history.depth,
            )
        self.bring_back()
        self.history = replace(best, rounds=())
        asked = {"target_layers": was.target_layers, "untrimmed": was.untrimmed, "stopped": None}
        self._bring_to(replace(best, **asked))
        if self.history.is_above_target:
            returned = f"`load_best_model_at_end` returned to {Path(checkpoint).name}, which has {best.depth} layers"
            reasons = [was.stopped] if best.depth == was.depth and was.stopped else [was.stopped, returned]
            self.history = replace(self.history, stopped="; ".join(filter(None, reasons)))

    def bring_back(self) -> None:
        """Give the model all layers again, with the weights that each had when it went; see `keep_untrimmed`."""
        self._untrimmed.restore()

    def take_out_dropped(self) -> None:
        """Drop, from the untrimmed model, what the history says."""
        left = _sublayers(self.history)
        self._take_out(cuts_of([half for half in range(2 * self.history.num_layers) if half not in left]))

    def _bring_to(self, history: TrimHistory) -> PreTrainedModel:
        """Give the model the layers of a history, of which it has all or more, and return it."""
        ours, theirs = (_sublayers(each) for each in (self.history, history))
        lost = sorted({half // 2 for half in theirs if half not in ours})
        if lost:
            raise ValueError(
                f"The model has dropped {lost}, which the checkpoint has: its layers are {list(history.kept)}. Make a new "
                "trainer, with the untrimmed model that the run began with, and resume there."
            )
        self._take_out(cuts_of([place for place, half in enumerate(ours) if half not in theirs]))
        self.history = history
        return self.run.model

    def _take_out(self, cuts: Collection[Cut]) -> None:
        """Drop layers and seams (numbers of the model as it is now)."""
        before = set(find_layers(self.run.causal_lm).modules())
        seams = [(cut.front, cut.back) for cut in cuts if isinstance(cut, Seam)]
        drop_layers(self.run.model, [cut for cut in cuts if not isinstance(cut, Seam)], seams)
        if self._untrimmed is not None:
            for module in before - set(find_layers(self.run.causal_lm).modules()):
                module.zero_grad()
                module.to("cpu")


def _sublayers(history: TrimHistory) -> list[int]:
    """The halves that are left, in order, by their numbers in the untrimmed model; see `sublayers`."""
    return [half for layer, mlp in history.halves for half in (2 * layer, 2 * mlp + 1)]
