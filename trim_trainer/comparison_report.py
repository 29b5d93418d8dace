"""Rows of a comparison -> one table, as Markdown and in the terminal, one picture, one JSON."""

import json
from dataclasses import asdict
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .compare import Row
from .methods import METHODS
from .records.plots import ACCENT, INK, MUTED, label_by_depth

TABLE, PLOT, NUMBERS = "comparison.md", "comparison.png", "comparison.json"
# Line styles that stay apart in black and white too.
STYLES = {
    "progressive": ("o-", ACCENT), "progressive_tail": ("P-", "#8e4ec6"), "one_shot": ("s--", INK),
    "block_influence": ("^:", "#3b7dd8"), "tail": ("v-.", "#2f9e77"), "tail_head": ("D:", "#b07d2b"),
    "tail_compensated": ("<-.", "#1b7a8c"), "random": ("x:", MUTED),
}  # fmt: skip

NUM_LAYERS_BESIDE = 0.1  # by which the points of two methods are apart


def save_report(rows: list[Row], directory: str | Path) -> None:
    """Write the table, the picture and the numbers of every cell into `directory`."""
    folder = Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    header, body = tabulate(rows)
    lines = [f"| {' | '.join(line)} |" for line in (header, ["---"] * len(header), *body)]
    (folder / TABLE).write_text("\n".join(lines) + "\n", encoding="utf-8")
    cells = [asdict(result) for row in rows for result in row.results]
    (folder / NUMBERS).write_text(json.dumps(cells, indent=1) + "\n", encoding="utf-8")
    plot_rows(rows, folder / PLOT)


def tabulate(rows: list[Row]) -> tuple[list[str], list[list[str]]]:
    """Return the header and the lines of the table; columns that nobody measured are left out."""
    tasks = list(dict.fromkeys(task for row in rows for result in row.results for task in result.quality))
    columns = {
        "layers": lambda row: f"{row.mean('depth'):.0f}",
        "method": lambda row: METHODS[row.method].title,
        "seeds": lambda row: str(len(row.results)),
        "lr": lambda row: f"{row.results[0].cell.learning_rate:g}",
    }
    for task in tasks:
        for name, title, form in (("accuracy", "accuracy", ".3f"), ("macro_f1", "macro-F1", ".3f")):
            columns[title if task == "recipe" else f"{task} {title}"] = _quality(task, name, form)
        if all(row.quality(task, "accuracy") is None for row in rows):
            columns[f"{task} perplexity"] = _quality(task, "perplexity", ".1f")
    columns |= {f"points over {METHODS[name].title}": _difference(rows, name) for name in ("full", "progressive")}
    columns |= {
        "training": lambda row: f"{row.mean('train_seconds'):.0f} s",
        "of it calibration": lambda row: f"{row.mean('calibration_seconds'):.0f} s",
        "tokens": lambda row: f"{row.mean('num_train_tokens'):,.0f}",
        "decode": lambda row: f"{row.mean('decode_tokens_per_second'):.1f}/s",
        "prefill": lambda row: f"{row.mean('prefill_tokens_per_second'):.0f}/s",
        "weights": lambda row: f"{row.mean('num_bytes') / 1e6:.0f} MB",
        "peak": lambda row: f"{row.mean('train_peak_bytes') / 2**30:.1f} GiB",
    }
    lines = [[cell(row) for cell in columns.values()] for row in rows]
    used = [i for i in range(len(columns)) if any(line[i] for line in lines)]
    return [list(columns)[i] for i in used], [[line[i] for i in used] for line in lines]


def _quality(task: str, name: str, form: str):
    def cell(row: Row) -> str:
        return _with_interval(row.quality(task, name), form, "–")

    return cell


def _difference(rows: list[Row], reference: str):
    """Accuracy above full depth, or above another method at the same depth, paired by seed, in points."""

    def cell(row: Row) -> str:
        is_deep = METHODS[reference].drops == "never"
        others = [each for each in rows if each.method == reference and (is_deep or each.depth == row.depth)]
        if not others or row.method == reference:
            return ""
        found = row.difference(others[0], "recipe", "accuracy")
        return _with_interval(found and tuple(100 * value for value in found), "+.1f", " to ")

    return cell


def _with_interval(found: tuple[float, float, float] | None, form: str, between: str) -> str:
    """Mean and interval as text; an interval of no width is left out, and what was not measured is empty."""
    if found is None:
        return ""
    mean, low, high = (format(value, form) for value in found)
    return mean if low == high else f"{mean} ({low}{between}{high})"


def plot_rows(rows: list[Row], path: str | Path) -> None:
    """Draw the accuracy (or, without choices, the loss) against depth, one line per method, full depth as a band."""
    name = "accuracy" if any(row.quality("recipe", "accuracy") for row in rows) else "loss"
    figure = Figure(figsize=(9, 4.2), layout="constrained")
    axes = figure.subplots()
    lines: dict[str, dict[int, tuple]] = {}
    for row in rows:
        lines.setdefault(row.method, {})[row.depth] = row.quality("recipe", name)
    draw_methods(axes, lines)
    label_by_depth(axes, f"{name} on the evaluation set", "Bars and band: 95 % confidence interval")
    figure.savefig(path, dpi=120, metadata={"Software": None})


def draw_methods(axes: Axes, lines: dict[str, dict[int, tuple[float, float, float]]]) -> None:
    """Draw mean and interval of each method (a name in `METHODS`) by depth; of full depth a band."""
    for number, (method, found) in enumerate(lines.items()):
        title = METHODS[method].title
        means, lows, highs = zip(*found.values(), strict=True)
        if METHODS[method].drops == "never":
            axes.axhline(means[0], color=MUTED, linewidth=1, label=title)
            axes.axhspan(lows[0], highs[0], color=MUTED, alpha=0.2)
            continue
        style, color = STYLES[method]
        beside = (number - len(lines) / 2) * NUM_LAYERS_BESIDE  # bars of one depth do not hide each other
        errors = [[mean - low for mean, low in zip(means, lows, strict=True)]]
        errors += [[high - mean for mean, high in zip(means, highs, strict=True)]]
        places = [depth + beside for depth in found]
        axes.errorbar(places, means, yerr=errors, fmt=style, color=color, capsize=3, label=title)
    trimmed = [depth for method, found in lines.items() if METHODS[method].drops != "never" for depth in found]
    if trimmed:
        axes.set_xlim(min(trimmed) - 1, max(trimmed) + 1)
