"""The model card, recipe and plots beside a checkpoint: their facts taken from a trainer, then written."""

from importlib import metadata
from pathlib import Path

import yaml
from trl.trainer.utils import get_config_model_id

from .. import __version__
from ..architectures.runtimes import runtime_caveats
from ..checkpoints.older_readers import oldest_reader
from ..hub.card import is_hub_id, render_card
from ..importance.criteria import CRITERIA
from ..records.facts import CardFacts
from ..records.files import ADAPTER_DIR, CARD_NAME, IMPORTANCE_PLOT, METRIC_PLOT, RECIPE_NAME
from ..records.history import TrimHistory
from ..records.plots import plot_importance, plot_metric
from ..records.settings import changed_settings

VERSIONED = ("trl", "transformers", "torch", "datasets", "accelerate")


def collect_facts(trainer, model_name: str | None = None, dataset_name: str | None = None, tags=None) -> CardFacts:
    """Take the facts of the card from a trainer; `recipe` entries come before what the model's config knows."""
    recipe = dict(trainer.recipe or changed_settings(trainer.args))
    source = get_config_model_id(trainer.model.config)
    tags = [tags] if isinstance(tags, str) else list(tags or ())
    dataset = trainer.train_dataset
    return CardFacts(
        model_name=model_name or (trainer.hub_model_id or trainer.args.output_dir).rstrip("/").split("/")[-1],
        num_train_examples=len(dataset) if hasattr(dataset, "__len__") else None,
        recipe=recipe,
        versions={"trim_trainer": __version__} | {name: metadata.version(name) for name in VERSIONED},
        tags=tuple(dict.fromkeys(["trl", "sft", "trim-trainer", "trimmed", *tags])),
        base_model=recipe.get("base_model") or (source if source and is_hub_id(source) else None),
        license=recipe.get("license"),
        dataset_name=dataset_name or recipe.get("dataset_name"),
        paper=CRITERIA[name].paper if (name := trainer.history.importance) in CRITERIA else None,
        caveats=(*runtime_caveats(trainer.model.config), *trainer.evaluation_sets.caveats),
        oldest_transformers=oldest_reader(trainer.model.config),
    )


def write_card(directory: str | Path, history: TrimHistory, facts: CardFacts) -> None:
    """Write `README.md`, `recipe.yaml` and the plots into `directory`."""
    folder = Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / RECIPE_NAME).write_text(yaml.safe_dump(facts.recipe, sort_keys=False), encoding="utf-8")
    if history.rounds:
        plot_importance(history, folder / IMPORTANCE_PLOT)
    if history.drops:
        plot_metric(history, folder / METRIC_PLOT)
    (folder / CARD_NAME).write_text(
        render_card(history, facts, has_adapter=(folder / ADAPTER_DIR).is_dir()), encoding="utf-8"
    )
