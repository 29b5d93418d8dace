"""What a model card says beside the history, taken from a trainer."""

from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path

from transformers import PreTrainedModel
from trl.trainer.utils import get_config_model_id

from .. import __version__
from ..architectures.runtimes import runtime_caveats
from ..checkpoints.drop_record import read_history
from ..checkpoints.loading import is_composite
from ..checkpoints.older_readers import oldest_reader
from ..hub.card import is_hub_id
from ..hub.card_files import write_card as write_card  # the other half: what a run knows, and what is made of it
from ..importance.criteria import CRITERIA
from ..records.facts import CardFacts
from ..records.files import DEPTH_DIR, HISTORY_NAME
from ..records.history import TrimHistory, name_dropped
from ..records.settings import changed_settings
from ..surgery.drop import is_quantized

VERSIONED = ("trl", "transformers", "torch", "datasets", "accelerate")


@dataclass(frozen=True)
class Told:
    """What a script has told the card, as `create_model_card` and `push_to_hub` of SFTTrainer take it."""

    model_name: str | None = None
    dataset_name: str | None = None
    tags: str | list[str] | None = None


def earlier_history(model: str | PreTrainedModel) -> TrimHistory | None:
    """The history beside the model that training begins with, in its folder; None: there is none.

    Raises:
        ValueError: it is damaged.
    """
    source = model if isinstance(model, str) else get_config_model_id(model.config)
    return read_history(source) if source and Path(source).is_dir() else None


def collect_facts(trainer, model_name: str | None = None) -> CardFacts:
    """Take the facts of the card from a trainer; `recipe` entries come before what the model's config knows.

    `model_name` is of this card alone; None: as the script has told, else that of the repository or folder.
    """
    recipe = dict(trainer.recipe or changed_settings(trainer.args))
    source, earlier = get_config_model_id(trainer.model.config), trainer.earlier_history
    known = earlier.card if earlier is not None else None
    told = trainer.told_to_card
    tags = [told.tags] if isinstance(told.tags, str) else list(told.tags or ())
    dataset = trainer.train_dataset
    return CardFacts(
        model_name=model_name
        or told.model_name
        or (trainer.hub_model_id or trainer.args.output_dir).rstrip("/").split("/")[-1],
        num_train_examples=len(dataset) if hasattr(dataset, "__len__") else None,
        recipe=recipe,
        versions={"trim_trainer": __version__} | {name: metadata.version(name) for name in VERSIONED},
        tags=tuple(dict.fromkeys(["trl", "sft", "trim-trainer", "trimmed", *tags])),
        base_model=recipe.get("base_model")
        or (source if source and is_hub_id(source) else known and known.base_model),
        license=recipe.get("license") or (known and known.license),
        license_name=known and known.license_name,
        license_link=known and known.license_link,
        dataset_name=told.dataset_name or recipe.get("dataset_name"),
        paper=CRITERIA[name].paper if (name := trainer.history.importance) in CRITERIA else None,
        caveats=(
            *_dropped_before(earlier),
            *runtime_caveats(trainer.model.config),
            *trainer.evaluation_sets.caveats,
        ),
        dtype=_dtype(trainer),
        sees_images=is_composite(trainer.causal_lm.config),
        oldest_transformers=oldest_reader(trainer.model.config),
    )


def tell_saved(output_dir: str, facts: CardFacts) -> None:
    """Let the history of what a run has saved say what its script has told the card: `publish` makes cards from it."""
    folder = Path(output_dir)
    for path in (folder / HISTORY_NAME, *folder.glob(f"{DEPTH_DIR}*/{HISTORY_NAME}")):
        saved = TrimHistory.load(path.parent) if path.is_file() else None
        if saved is not None and saved.card is not None:
            card = replace(saved.card, dataset_name=facts.dataset_name, tags=facts.tags)
            replace(saved, card=card).save(path.parent)


def _dtype(trainer) -> str | None:
    """In which the weights are stored; None: quantized."""
    if is_quantized(trainer.causal_lm) and not trainer.args.merge_adapter:
        return None
    return str(trainer.dtype_to_save).removeprefix("torch.")


def _dropped_before(earlier: TrimHistory | None) -> list[str]:
    """What the history beside the model that training began with says: layers are numbered as that model had them."""
    if earlier is None or not earlier.dropped:
        return []
    layers, number = name_dropped(sorted(earlier.dropped, key=str)), earlier.num_layers
    return [f"The model that training began with had lost {len(earlier.dropped)} of {number} layers before: {layers}."]
