"""What there is to choose from, accuracy against bytes and speed: table and picture from docs/frontier.csv.

That is written by benchmarks/frontier.py.
"""

from pathlib import Path

from csv_rows import read
from inference_table import is_stated, ratio
from matplotlib.figure import Figure

from trim_trainer.records.plots import ACCENT, INK, MUTED

PICTURE = Path(__file__).with_name("frontier.png")
COLORS = (INK, "#3e7cb1", "#2a9d8f", ACCENT)
MARKERS = {"fp32": "o", "int8": "s", "int4": "^"}
WEIGHTS = {"fp32": "float32", "int8": "int8", "int4": "int4"}


def title(row: dict) -> str:
    """What the model is, in words."""
    whole, *_ = read("frontier.csv")
    tokens = "" if row["vocab_size"] == whole["vocab_size"] else f", {int(row['vocab_size']):,} tokens"
    return f"{row['depth']} layers{tokens}"


def lines() -> list[list[str]]:
    """A line for each model and each way to store its weights."""
    found = [["", "weights", "MB", "accuracy", "loss", "decoding, times as fast"]]
    for row in read("frontier.csv"):
        speed = "1" if len(found) == 1 else ratio(row, "to_whole")
        accuracy = f"{float(row['accuracy']):.3f} ({float(row['accuracy_low']):.3f}–{float(row['accuracy_high']):.3f})"
        size = f"{int(row['num_bytes']) / 1e6:,.0f}"
        found.append([title(row), WEIGHTS[row["weights"]], size, accuracy, f"{float(row['loss']):.3f}", speed])
    return found


def draw() -> None:
    """Draw accuracy against bytes and against speed, a color for each model, a marker for each way to store weights."""
    rows = read("frontier.csv")
    if not rows:
        return
    figure = Figure(figsize=(12, 4.2), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    titles = list(dict.fromkeys(map(title, rows)))
    for axes, x_of, label in (
        (panels[0], lambda row: int(row["num_bytes"]) / 1e6, "MB of weights (fewer is to the left)"),
        (panels[1], lambda row: float(row["to_whole"]), "tokens/s of one stream, times the whole model in float32"),
    ):
        for name, color in zip(titles, COLORS, strict=False):
            own = [row for row in rows if title(row) == name and (axes is panels[0] or is_stated(row, "to_whole"))]
            axes.plot(
                [x_of(row) for row in own], [float(row["accuracy"]) for row in own], color=color, label=name, lw=1
            )
            for row in own:
                middle, low, high = (float(row[key]) for key in ("accuracy", "accuracy_low", "accuracy_high"))
                axes.errorbar(
                    x_of(row), middle, [[middle - low], [high - middle]], color=color, marker=MARKERS[row["weights"]],
                    ms=7, elinewidth=0.6, ecolor=MUTED,
                )  # fmt: skip
        axes.set_xlabel(label)
        axes.set_xscale("log")
        ticks = (50, 100, 200, 500) if axes is panels[0] else (1, 2, 3, 5, 8)
        axes.set_xticks(ticks, [str(tick) for tick in ticks])
        axes.minorticks_off()
        axes.grid(color="#e4e7eb", lw=0.6)
    panels[0].set_ylabel("accuracy, 95 % interval")
    for weights, marker in MARKERS.items():
        panels[1].plot([], [], marker, color=MUTED, label=WEIGHTS[weights])
    figure.legend(*panels[1].get_legend_handles_labels(), loc="outside right center", frameon=False, fontsize=9)
    figure.savefig(PICTURE, dpi=120, metadata={"Software": None})
