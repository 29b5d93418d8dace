"""Accuracy against depth, one line per method."""

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..records.plots import ACCENT, INK, MUTED, label_by_depth
from .methods import METHODS, RECIPE
from .rows import Row

# Line styles that stay apart in black and white too.
STYLES = {
    "progressive": ("o-", ACCENT), "progressive_tail": ("P-", "#8e4ec6"), "one_shot": ("s--", INK),
    "progressive_sublayers": ("*-", "#d97706"), "block_influence": ("^:", "#3b7dd8"), "tail": ("v-.", "#2f9e77"),
    "tail_head": ("D:", "#b07d2b"),
    "tail_compensated": ("<-.", "#1b7a8c"), "random": ("x:", MUTED),
}  # fmt: skip

NUM_LAYERS_BESIDE = 0.1  # by which the points of two methods are apart


def plot_rows(rows: list[Row], path: str | Path) -> None:
    """Draw the accuracy (or, without choices, the loss) against depth, one line per method, full depth as a band.

    With the steps of the recipe; rows of equal seconds are in the table.
    """
    name = "accuracy" if any(row.quality(RECIPE, "accuracy") for row in rows) else "loss"
    figure = Figure(figsize=(9, 4.2), layout="constrained")
    axes = figure.subplots()
    lines: dict[str, dict[int, tuple]] = {}
    for row in rows:
        if row.is_equal_seconds:
            continue
        lines.setdefault(row.method, {})[row.depth] = row.quality(RECIPE, name)
    draw_methods(axes, lines)
    label_by_depth(axes, f"{name} on the evaluation set", "Bars and band: 95 % confidence interval")
    figure.savefig(path, dpi=120, metadata={"Software": None})


def draw_methods(axes: Axes, lines: dict[str, dict[int, tuple[float, float, float]]]) -> None:
    """Draw mean and interval of each method (a name in `METHODS`) by depth; of full depth a band."""
    for number, (method, found) in enumerate(lines.items()):
        title = METHODS[method].title
        means, lows, highs = zip(*found.values(), strict=True)
        if METHODS[method].drops == "never":
            axes.axhline(
                means[0], color=MUTED, linewidth=1, linestyle="-" if METHODS[method].trains else ":", label=title
            )
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
