"""Other models by the default, next to full depth and controls, each from a CSV of its own: docs/gemma.csv, docs/qwen.csv."""

from collections.abc import Iterable
from statistics import fmean
from typing import NamedTuple

from csv_rows import read

from trim_trainer.comparison.methods import METHODS
from trim_trainer.records.statistics import wilson_interval

TASKS = {"fpb": "news", "medmcqa_subject": "medicine", "cuad_yesno": "law"}
# Runs that are not by the default, by what they say.
DIFFERENT = {
    "one layer at a time": {"layers_per_trim": "1"},
    "first steps": {"trim_steps": "1"},
}
RISES = {"scale_learning_rate": "True"}
HEADER = [
    "", "rate", "layers", "seeds", "accuracy", "loss", "points over full depth at its best rate", "layers that went",
]  # fmt: skip


class Cell(NamedTuple):
    """What one line of the table says: a method on a task, at a rate."""

    task: str
    method: str
    differs: tuple[str, ...]  # from the default, where the method is that
    rate: str

    @classmethod
    def of(cls, row: dict, rises: bool) -> "Cell":
        """That of a run; `rises`: by the default the rate does."""
        differs = tuple(title for title, fields in DIFFERENT.items() if row.items() >= fields.items())
        if (row.items() >= RISES.items()) != rises:
            differs += ("the rate stays" if rises else "the rate rises",)
        method = row["method"]
        return cls(row["dataset_name"], method, differs if method == "progressive" else (), row["learning_rate"])

    @property
    def title(self) -> str:
        """The task, and the method in words."""
        method = METHODS[self.method].title
        if self.method == "progressive":
            method = ", ".join(["the default", *self.differs]) if self.differs else "**the default**"
        return f"{TASKS[self.task]}, {method}"

    @property
    def place(self) -> tuple:
        """By which lines are sorted."""
        return list(TASKS).index(self.task), list(METHODS).index(self.method), self.differs, -float(self.rate)


def lines(name: str, rises: bool) -> list[list[str]]:
    """A line for each method on a task and its rate, over its seeds, from the CSV of a model on which the rate `rises` or not."""
    found = [HEADER]
    cells: dict[Cell, dict[str, dict]] = {}  # -> seed -> row
    for row in sorted(read(f"{name}.csv"), key=lambda row: row["seed"]):
        cells.setdefault(Cell.of(row, rises), {})[row["seed"]] = row
    for cell in sorted(cells, key=lambda cell: cell.place):
        runs = list(cells[cell].values())
        found.append(
            [
                cell.title,
                f"{float(cell.rate):.0e}".replace("e-0", "e-"),
                runs[0]["depth"],
                " ".join(cells[cell]),
                _accuracy(runs),
                f"{_mean(runs, 'loss'):.3f}",
                "" if cell.method == "full" else _ahead(cells[cell], _best_whole(cells, cell.task)),
                "; ".join(dict.fromkeys(row["dropped"] for row in runs)),
            ]
        )
    return found


def _best_whole(cells: dict[Cell, dict[str, dict]], task: str) -> dict[str, dict]:
    """Full depth at its best rate, on the seeds that all rates have: of the highest accuracy, then of the lowest loss."""
    whole = [runs for cell, runs in cells.items() if (cell.task, cell.method) == (task, "full")]
    shared = set.intersection(*(set(runs) for runs in whole))

    def quality(runs: dict[str, dict]) -> tuple[float, float]:
        rows = [runs[seed] for seed in shared]
        return _mean(rows, "accuracy"), -_mean(rows, "loss")

    return max(whole, key=quality)


def _mean(rows: Iterable[dict], name: str) -> float:
    return fmean(float(row[name]) for row in rows)


def _accuracy(rows: list[dict]) -> str:
    """That of the one run with the interval that its examples give, or the mean and each."""
    each = [float(row["accuracy"]) for row in rows]
    if len(each) > 1:
        return f"{fmean(each):.3f} ({', '.join(f'{value:.3f}' for value in each)})"
    low, high = wilson_interval(each[0], int(rows[0]["num_examples"]))
    return f"{each[0]:.3f} ({low:.3f}–{high:.3f})"


def _ahead(runs: dict[str, dict], whole: dict[str, dict]) -> str:
    """Points over full depth with the same seed: the mean, and each where there are several."""
    each = [
        100 * (float(row["accuracy"]) - float(whole[seed]["accuracy"])) for seed, row in runs.items() if seed in whole
    ]
    if not each:
        return ""
    return f"{fmean(each):+.1f}" + (f" ({', '.join(f'{value:+.1f}' for value in each)})" if len(each) > 1 else "")
