"""What is known of a checkpoint whose layers somebody named: its history, card and facts, as a run would leave them."""

import logging
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

from transformers import PretrainedConfig

from .. import __version__
from ..architectures.configs import num_layers
from ..architectures.runtimes import runtime_caveats
from ..hub.card import is_hub_id
from ..hub.card_files import write_card
from ..hub.merging import Card
from ..hub.weights import weights_digest
from ..records.facts import CardFacts
from ..records.files import CARD_NAME, HISTORY_NAME
from ..records.history import TrimHistory
from ..records.measurement import Measurement
from ..records.vocabulary import VocabularyRecord
from .loading import Source, find_file, is_composite
from .older_readers import oldest_reader

logger = logging.getLogger(__name__)

BY_HAND = "layers named by hand"


def write_drop_record(
    folder: Path,
    source: Source,
    config: PretrainedConfig,
    dropped: tuple[list[int], list[tuple[int, int]]],
    num_parameters: tuple[int, int],
    *,
    earlier: TrimHistory | None = None,
    vocabulary: VocabularyRecord | None = None,
) -> None:
    """Write history and card of a drop without training; one of a trimmed model goes on with that model's history.

    Args:
        folder: Of the checkpoint that is left.
        source: Of the one before.
        config: Of the one that is left.
        dropped: Layers and seams, as the one before counts them.
        num_parameters: Before, and of what is left.
        earlier: Beside the one before.
        vocabulary: What a smaller one kept; None: it is as it was.
    """
    left = num_layers(config)
    depth = left + sum(map(len, dropped))
    before, after = Measurement(depth, num_parameters[0]), Measurement(left, num_parameters[1])
    if earlier is not None and earlier.depth != depth:
        logger.warning("%s of %s speaks of %d layers, the model has %d: it is left out.", HISTORY_NAME, source.path,
                       earlier.depth, depth)  # fmt: skip
        earlier = None
    history = earlier or TrimHistory(depth, depth, BY_HAND, "nothing", 0, untrimmed=before)
    if any(dropped):
        history = history.add_named(*dropped)
    history = replace(history.add(after), vocabulary=vocabulary or history.vocabulary)
    facts = _facts(folder, source, config, earlier)
    history = replace(history, card=facts)
    write_card(folder, history, facts)
    history.save(folder)


def read_history(path: str | Path, revision: str = "main") -> TrimHistory | None:
    """The history beside a checkpoint, here or on the Hub; None: there is none.

    Raises:
        ValueError: it is damaged, or of a newer format.
    """
    found = find_file(str(path), HISTORY_NAME, revision)
    return None if found is None else TrimHistory.load(found.parent)


def _facts(folder: Path, source: Source, config: PretrainedConfig, earlier: TrimHistory | None) -> CardFacts:
    new: dict[str, Any] = {
        "model_name": folder.name,
        "versions": {"trim_trainer": __version__}
        | {name: metadata.version(name) for name in ("transformers", "torch")},
        "caveats": tuple(runtime_caveats(config)),
        "oldest_transformers": oldest_reader(config),
        "dtype": _dtype(config),
        "sees_images": is_composite(config),
        "weights": weights_digest(folder),
    }
    if earlier is not None and earlier.card is not None:
        return replace(earlier.card, **new)
    said = _said_of(source)
    base_model = source.path if is_hub_id(source.path) else said.get("base_model")
    return CardFacts(
        num_train_examples=None,
        recipe={},
        tags=("trim-trainer", "trimmed"),
        base_model=base_model if isinstance(base_model, str) else None,
        **{name: said.get(name) for name in ("license", "license_name", "license_link")},
        **new,
    )


def _dtype(config: PretrainedConfig) -> str | None:
    """In which the weights are stored; None: not known, or quantized."""
    if config.dtype is None or getattr(config, "quantization_config", None):
        return None
    return str(config.dtype).removeprefix("torch.")


def _said_of(source: Source) -> dict[str, Any]:
    """The metadata of the card beside the checkpoint."""
    try:
        found = find_file(source.path, CARD_NAME, source.revision)
        return {} if found is None else Card.read(found.read_text(encoding="utf-8")).metadata
    except ValueError as error:
        logger.warning("The licence of %s is not known: %s.", source.path, error)
        return {}
