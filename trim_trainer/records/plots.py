"""The pictures of a run: importance of each layer per round, and the metric against depth."""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from .history import Dropped, Round, TrimHistory, place_of

INK, MUTED, PALE, ACCENT = "#1f2933", "#9aa5b1", "#e4e7eb", "#d64545"


def plot_importance(history: TrimHistory, path: str | Path | BinaryIO) -> None:
    """Draw one row per round, one column per layer of the untrimmed model; a cross marks the drop.

    Where seams were scored they have columns between those of their layers. Layers that have to stay, and that nothing was
    measured of, are grey.
    """
    rounds = history.rounds
    columns = 2 if any(a_round.seam_scores for a_round in rounds) else 1  # per layer
    grid = [[math.nan] * (columns * (history.num_layers - 1) + 1) for _ in rounds]
    unscored = []  # (row, place)
    for row, a_round in enumerate(rounds):
        for place, score, count in _scores_by_place(a_round):
            if count:
                grid[row][round(columns * place)] = score
            else:
                unscored.append((row, place))
    # The first and last layers matter so much more that the others would look alike: the scale ends at the third
    # quartile, and says so.
    scores = sorted(score for line in grid for score in line if not math.isnan(score))
    top = scores[(3 * len(scores)) // 4]
    figure = Figure(figsize=(9, 1.6 + 0.3 * len(rounds)), layout="constrained")
    axes = figure.subplots()
    low = scores[0] if scores[0] < top else top - 1
    side = 0.5 / columns
    image = axes.imshow(
        grid, aspect="auto", cmap="cividis", vmin=low, vmax=top, interpolation="nearest",
        extent=(-side, history.num_layers - 1 + side, len(rounds) - 0.5, -0.5),
    )  # fmt: skip
    for row, place in unscored:
        axes.add_patch(Rectangle((place - side, row - 0.5), 2 * side, 1, color=PALE))
    for row, a_round in enumerate(rounds):
        places = [place_of(each) for each in a_round.dropped]
        axes.plot(places, [row] * len(places), "x", color=ACCENT, markersize=8, markeredgewidth=2)
    axes.set_yticks(range(len(rounds)), [f"step {a_round.step}" for a_round in rounds])
    axes.set_xticks(range(0, history.num_layers, 2 if history.num_layers > 16 else 1))
    axes.set_xlabel(
        f"layer of the untrimmed model{', seams between' if columns > 1 else ''} (blank: dropped, cross: dropped in this "
        f"round{', grey: not scored' if unscored else ''})"
    )
    axes.set_title(f"Importance by {history.importance}, higher = keep", loc="left", color=INK)
    figure.colorbar(image, ax=axes, extend="max", label="score")
    figure.savefig(path, dpi=120, metadata={"Software": None})


def _scores_by_place(a_round: Round) -> Iterator[tuple[float, float, int]]:
    """Yield (place among the layers of the untrimmed model, score, examples that it comes from); a seam is in the middle."""
    counts = a_round.num_examples or (1,) * len(a_round.layers)
    yield from zip(a_round.layers, a_round.scores, counts, strict=True)
    if a_round.seam_scores:
        pairs = zip((a_round.mlps or a_round.layers)[:-1], a_round.layers[1:], strict=True)
        counts = a_round.seam_num_examples or (1,) * len(a_round.seam_scores)
        yield from zip(map(place_of, pairs), a_round.seam_scores, counts, strict=True)


def plot_metric(history: TrimHistory, path: str | Path | BinaryIO) -> None:
    """Draw the calibration metric against depth: healed (before each drop), and right after the drop."""
    drops = history.drops
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    axes = figure.subplots()
    healed = [(len(a_round.layers), a_round.metric) for a_round in drops]
    fresh = [(a_round.depth_after, a_round.metric_after) for a_round in drops if a_round.metric_after is not None]
    axes.plot(*zip(*healed, strict=True), "o-", color=INK, label="after training at this depth")
    if fresh:
        axes.plot(*zip(*fresh, strict=True), "v", color=ACCENT, label="right after the drop")
    label_by_depth(axes, f"{history.calibration_metric}, n = {history.calibration_size}", "Calibration set")
    figure.savefig(path, dpi=120, metadata={"Software": None})


def label_by_depth(axes: Axes, what: str, title: str) -> None:
    """Label a plot of `what` against depth, which falls to the right as a run goes on."""
    axes.invert_xaxis()
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set_xlabel("depth (layers)")
    axes.set_ylabel(what)
    axes.set_title(title, loc="left", color=INK)
    axes.grid(color=MUTED, alpha=0.3)
    axes.legend(frameon=False, fontsize=8)


def plot_layers(
    scores: list[float],
    droppable: list[bool],
    criterion: str,
    path: str | Path,
    first: Sequence[Dropped] = (),
    seam_scores: Sequence[float] = (),
    seams_droppable: Sequence[bool] = (),
) -> None:
    """Draw the score of each layer, and of seams between them; those that have to stay are grey, a cross marks what goes first."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    axes = figure.subplots()
    score_at = dict(enumerate(scores)) | {front + 0.5: score for front, score in enumerate(seam_scores)}
    colors = [INK if can_go else MUTED for can_go in (*droppable, *seams_droppable)]
    axes.bar(list(score_at), list(score_at.values()), width=0.4 if seam_scores else 0.8, color=colors)
    scores = list(score_at.values())
    # The first and last layers matter so much more that the others would look alike.
    middle = sorted(scores)[(3 * len(scores)) // 4]
    if max(scores) > 4 * abs(middle) > 0:
        axes.set_ylim(min(0.0, 1.1 * min(scores)), 2 * abs(middle))
    axes.axhline(0, color=MUTED, linewidth=0.8)
    places = [place_of(each) for each in first]
    axes.plot(places, [score_at[place] for place in places], "x", color=ACCENT, markersize=8, markeredgewidth=2)
    between = ", between layers: the seam" if seam_scores else ""
    axes.set_xlabel(f"layer (grey: has to stay, cross: goes first{between})")
    axes.set_ylabel("importance, higher = keep")
    axes.set_title(f"Importance by {criterion}", loc="left", color=INK)
    figure.savefig(path, dpi=120, metadata={"Software": None})
