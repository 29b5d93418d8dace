"""The second model: Gemma 3 270M by the default, next to full depth and controls, from docs/gemma.csv."""

from statistics import fmean

from csv_rows import read

from trim_trainer.comparison.methods import METHODS
from trim_trainer.records.statistics import wilson_interval

TASKS = {"fpb": "news", "medmcqa_subject": "medicine", "cuad_yesno": "law"}
# A method, and whether its rate rises as layers go.
TITLES = {(name, ""): method.title for name, method in METHODS.items()}
TITLES |= {("progressive", "True"): "**the default**", ("progressive", ""): "the default, at the rate as it is"}
FULL = ("full", "")


def lines() -> list[list[str]]:
    """A line for each method on a task, over its seeds."""
    found = [["", "layers", "seeds", "accuracy", "loss", "points over full depth", "bytes", "layers that went"]]
    cells: dict[tuple[str, tuple[str, str]], dict[str, dict]] = {}  # task, method and rate -> seed -> row
    for row in sorted(read("gemma.csv"), key=lambda row: row["seed"]):
        method = row["method"], row["scale_learning_rate"]
        cells.setdefault((row["dataset_name"], method), {})[row["seed"]] = row
    for task, method in sorted(cells, key=_place):
        runs = cells[task, method]
        first = next(iter(runs.values()))
        found.append(
            [
                f"{TASKS[task]}, {TITLES[method]}", first["depth"], " ".join(runs), _accuracy(list(runs.values())),
                f"{fmean(float(row['loss']) for row in runs.values()):.3f}",
                "" if method == FULL else _ahead(runs, cells.get((task, FULL), {})),
                f"{int(first['num_bytes']) / 1e6:,.0f} MB", "; ".join(dict.fromkeys(row["dropped"] for row in runs.values())),
            ]
        )  # fmt: skip
    return found


def _place(cell: tuple[str, tuple[str, str]]) -> tuple[int, int, bool]:
    task, (method, rises) = cell
    return list(TASKS).index(task), list(METHODS).index(method), not rises


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
