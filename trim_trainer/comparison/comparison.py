"""Trimming next to its controls: every method, depth and seed is a cell that runs once."""

import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..evaluation.isolation import run_alone
from ..evaluation.tasks import Task
from ..recipe import Recipe
from .cells import RESULT, Cell, CellResult, run_cell
from .methods import METHODS

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

    def run(self, num_layers: int) -> Iterator[CellResult]:
        """Run every cell that is not finished, and yield those of the chosen learning rate, one per method, depth and seed.

        Raises:
            ValueError: the folder holds cells of other settings.
        """
        for method in self.methods:
            for depth in [num_layers] if METHODS[method].drops == "never" else self.depths:
                if not METHODS[method].trains:
                    yield self._cell(Cell(method, depth, self.seeds[0], self.learning_rates[0]))
                    continue
                first = [self._cell(Cell(method, depth, self.seeds[0], rate)) for rate in self.learning_rates]
                best = min(first, key=lambda result: result.selection_loss)
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
            self._check_same(done, settings, folder)
            if {task.name for task in self.tasks} < done.measured.quality.keys():
                return done
        run_alone(run_cell, cell, self.recipe, self.tasks, folder)
        return CellResult.load(folder)

    def _check_same(self, done: CellResult, settings: dict[str, Any], folder: Path) -> None:
        settings = json.loads(json.dumps(settings))
        changed = [name for name in {*done.settings, *settings} if done.settings.get(name) != settings.get(name)]
        if changed:
            name = sorted(changed)[0]
            raise ValueError(
                f"{str(folder)!r} holds a result of other settings: `{name}` was {done.settings.get(name)!r}, now it is "
                f"{settings.get(name)!r}. Name another `--output_dir`, or delete the folder."
            )
