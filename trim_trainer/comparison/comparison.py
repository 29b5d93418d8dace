"""Trimming next to its controls: every method, depth and seed is a cell that runs once."""

import json
import logging
import math
import statistics
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..evaluation.isolation import run_alone
from ..evaluation.tasks import Task
from ..recipe import Recipe, check_recipe
from ..scoring.finite import DivergedError
from .cells import RESULT, Cell, CellResult, run_cell
from .methods import FULL, METHODS

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Comparison:
    """What to run."""

    recipe: Recipe
    methods: tuple[str, ...]
    depths: tuple[int, ...]
    seeds: tuple[int, ...]
    learning_rates: tuple[float, ...]  # several: the best on the calibration split, per method and depth
    tasks: tuple[Task, ...]
    output_dir: Path
    is_equal_seconds: bool = False  # each method also with as many steps as the seconds of full depth have room for

    def run(self, num_layers: int) -> Iterator[CellResult]:
        """Run every cell that is not finished, and yield those of the chosen learning rate, one per method, depth and seed.

        Raises:
            ValueError: the folder holds cells of other settings, there is no full depth to have the seconds of, or the methods
                would have different tokens.
        """
        if self.is_equal_seconds and FULL not in self.methods:
            raise ValueError(
                f"`--methods` is {', '.join(self.methods)}, but `--equal_seconds` are those of `{FULL}`. Add it."
            )
        others = [method for method in self.methods if METHODS[method].drops != "while"]
        if others and (vocab_size := self.recipe.training_args.vocab_size) is not None:
            raise ValueError(
                f"`vocab_size` is {vocab_size}, but {others[0]} would have all tokens. Leave it out, and compare from a "
                "checkpoint that has fewer: `trim-trainer drop --vocab-size` makes one."
            )
        full: list[CellResult] = []
        for method in sorted(self.methods, key=lambda method: method != FULL):
            for depth in [num_layers] if METHODS[method].drops == "never" else self.depths:
                found = full if method == FULL else []
                for result in self._seeds(method, depth):
                    found.append(result)
                    yield result
                if self.is_equal_seconds and METHODS[method].trains and method != FULL:
                    num_steps = self._planned_steps(found) or steps_in_seconds(full, found)
                    for result in found:
                        yield self._cell(replace(result.cell, num_steps=num_steps))

    def check(self) -> None:
        """Look at what can be known before the first cell trains.

        Raises:
            ValueError: a method cannot reach one of the depths.
        """
        for method in self.methods:
            for depth in () if METHODS[method].drops == "never" else self.depths:
                cell = Cell(method, depth, self.seeds[0], self.learning_rates[0])
                check_recipe(cell.planned(self.recipe, cell.folder(self.output_dir)))
        if len(self.learning_rates) > 1 and self.recipe.script_args.dataset_calibration_split is None:
            logger.warning(
                "Without `dataset_calibration_split` learning rates are chosen by the loss on the %d examples that layers are "
                "chosen on, which are few, and favour methods that choose by them. Name a split.",
                self.recipe.training_args.calibration_size,
            )

    def _planned_steps(self, found: list[CellResult]) -> int | None:
        """The steps that a finished cell of equal seconds has, so that further seeds get the same; None: there is none."""
        folders = (replace(result.cell, num_steps=1).folder(self.output_dir) for result in found)
        return next((CellResult.load(folder).num_steps for folder in folders if (folder / RESULT).is_file()), None)

    def _seeds(self, method: str, depth: int) -> Iterator[CellResult]:
        """The cells of a method at a depth, at the best of the learning rates."""
        if not METHODS[method].trains:
            yield self._cell(Cell(method, depth, self.seeds[0], self.learning_rates[0]))
            return
        first = [self._cell(Cell(method, depth, self.seeds[0], rate)) for rate in self.learning_rates]
        best = min(first, key=lambda result: (math.isnan(result.selection_loss), result.selection_loss))
        self._warn_unless_bracketed(best.cell)
        yield best
        for seed in self.seeds[1:]:
            yield self._cell(Cell(method, depth, seed, best.cell.learning_rate))

    def _warn_unless_bracketed(self, best: Cell) -> None:
        """Warn where rates beyond those tried may be better: a baseline at a poor rate flatters what is compared with it."""
        lowest, highest = min(self.learning_rates), max(self.learning_rates)
        if lowest < highest and best.learning_rate in (lowest, highest):
            logger.warning(
                "%s, %d layers: the best learning rate is %g, at the end of those tried. Add a %s one to "
                "`--learning_rates`; what is finished is not run again.",
                METHODS[best.method].title, best.depth, best.learning_rate,
                "lower" if best.learning_rate == lowest else "higher",
            )  # fmt: skip

    def _cell(self, cell: Cell) -> CellResult:
        folder = cell.folder(self.output_dir)
        settings = cell.recipe(self.recipe, folder).settings
        if (folder / RESULT).is_file():
            done = CellResult.load(folder)
            self._check_same(done.settings, settings, folder)
            for task in self.tasks:
                if task.name in (done.tasks or {}):
                    self._check_same(done.tasks[task.name], task.settings, folder, f" of the task {task.name!r}")
            is_counted = done.num_steps is not None or not self.is_equal_seconds
            if is_counted and {task.name for task in self.tasks} < done.measured.quality.keys():
                return done
        try:
            run_alone(run_cell, cell, self.recipe, self.tasks, folder)
        except ChildProcessError as error:
            raise ChildProcessError(f"{folder}: {error} The same command goes on from what is finished.") from None
        except DivergedError as error:
            raise DivergedError(
                f"{folder}: {error} Or leave {cell.learning_rate:g} out of `--learning_rates`."
            ) from None
        return CellResult.load(folder)

    def _check_same(self, done: dict[str, Any], settings: dict[str, Any], folder: Path, of_what: str = "") -> None:
        settings = json.loads(json.dumps(settings))
        changed = [name for name in {*done, *settings} if done.get(name) != settings.get(name)]
        if changed:
            name = sorted(changed)[0]
            raise ValueError(
                f"{str(folder)!r} holds a result of other settings: `{name}`{of_what} was {done.get(name)!r}, now it is "
                f"{settings.get(name)!r}. Name another `--output_dir`, or delete the folder."
            )


def steps_in_seconds(full: list[CellResult], found: list[CellResult]) -> int:
    """Return how many optimizer steps of a method take the seconds of full depth, those of its calibrations included.

    Args:
        full: Cells of full depth.
        found: Those of the method, with the steps of the recipe: what their steps took is what further ones will.
    """
    seconds = statistics.fmean(result.train_seconds for result in full)
    fixed = statistics.fmean(result.calibration_seconds for result in found)
    per_step = statistics.fmean(
        (result.train_seconds - result.calibration_seconds) / result.num_steps for result in found
    )
    return max(1, math.floor((seconds - fixed) / per_step))
