"""The model card, recipe and plots beside a checkpoint."""

from pathlib import Path

import yaml

from ..records.facts import CardFacts
from ..records.files import ADAPTER_DIR, CARD_NAME, IMPORTANCE_PLOT, METRIC_PLOT, RECIPE_NAME
from ..records.history import TrimHistory
from .card import render_card
from .merging import BEGIN, merge_cards


def write_card(directory: str | Path, history: TrimHistory, facts: CardFacts) -> None:
    """Write `README.md`, the plots, and `recipe.yaml` where something was trained, into `directory`.

    What people changed in a card of ours that lies there stays.
    """
    folder = Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    if facts.recipe:
        (folder / RECIPE_NAME).write_text(yaml.safe_dump(facts.recipe, sort_keys=False), encoding="utf-8")
    scored = history.scored
    from ..records.plots import (  # matplotlib is slow to load; `publish` alone does without
        plot_importance,
        plot_metric,
    )

    if scored.rounds:
        plot_importance(scored, folder / IMPORTANCE_PLOT)
    if scored.drops:
        plot_metric(scored, folder / METRIC_PLOT)
    card, path = (
        render_card(history, facts, has_adapter=(folder / ADAPTER_DIR).is_dir(), has_code=any(folder.glob("*.py"))),
        folder / CARD_NAME,
    )
    there = path.read_text(encoding="utf-8") if path.is_file() else ""
    # A card that is none of ours is that of another trainer, or PEFT's.
    path.write_text(merge_cards(there if BEGIN in there else None, card), encoding="utf-8")
