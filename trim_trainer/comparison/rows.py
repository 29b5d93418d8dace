"""Results of several seeds as one row: means, intervals, differences paired by seed."""

import statistics
from collections.abc import Iterable
from dataclasses import dataclass

from ..records.statistics import students_t, wilson_interval
from .cells import CellResult
from .methods import METHODS

SHARES = ("accuracy", "macro_f1")  # between 0 and 1


# Results of several seeds as one row.


@dataclass(frozen=True)
class Row:
    """A method at a depth, over its seeds."""

    method: str
    depth: int
    results: tuple[CellResult, ...]

    @property
    def is_equal_seconds(self) -> bool:
        """Whether its steps took the seconds of full depth."""
        return self.results[0].cell.is_equal_seconds

    @property
    def title(self) -> str:
        """What tables call it."""
        return METHODS[self.method].title + ", equal seconds" * self.is_equal_seconds

    def mean(self, name: str) -> float | None:
        """Of a field of the results; None: not all of them have it."""
        values = [getattr(result if hasattr(result, name) else result.measured, name) for result in self.results]
        return None if None in values else statistics.fmean(values)

    def quality(self, task: str, name: str) -> tuple[float, float, float] | None:
        """Mean and 95 % confidence interval; None: not measured.

        Over several seeds the interval is Student's t over them, of a share no wider than 0 to 1. An accuracy of one
        seed has Wilson's, any other figure of one seed no interval (both ends are the figure).
        """
        found = [result.measured.quality[task] for result in self.results if task in result.measured.quality]
        values = [getattr(quality, name) for quality in found]
        if not values or None in values:
            return None
        if len(values) == 1 and name == "accuracy":
            return values[0], *wilson_interval(values[0], found[0].num_examples)
        mean, low, high = students_t(values)
        return (mean, max(0.0, low), min(1.0, high)) if name in SHARES else (mean, low, high)

    def difference(self, other: "Row", task: str, name: str) -> tuple[float, float, float] | None:
        """How much this row is above another one, paired by seed: mean and 95 % interval; None: they share no seed.

        Rows of a seed share the order of the data and the evaluation set, so their difference varies less than they do.
        Of one seed both ends are the difference.
        """
        mine, theirs = self._by_seed(task, name), other._by_seed(task, name)
        differences = [mine[seed] - theirs[seed] for seed in sorted(mine.keys() & theirs.keys())]
        return students_t(differences) if differences else None

    def _by_seed(self, task: str, name: str) -> dict[int, float]:
        values = {result.cell.seed: getattr(result.measured.quality.get(task), name, None) for result in self.results}
        return {seed: value for seed, value in values.items() if value is not None}


def group(results: Iterable[CellResult]) -> list[Row]:
    """Put the seeds of a method and a depth together, those of equal seconds apart: full depth first, then by depth."""
    by_row: dict[tuple[str, int, bool], list[CellResult]] = {}
    for result in results:
        cell = result.cell
        by_row.setdefault((cell.method, cell.depth, cell.is_equal_seconds), []).append(result)
    order = list(METHODS)
    rows = [Row(method, depth, tuple(found)) for (method, depth, _), found in by_row.items()]
    return sorted(rows, key=lambda row: (-row.depth, order.index(row.method), row.is_equal_seconds))
