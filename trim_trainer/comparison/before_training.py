"""Controls that drop all layers at once, before training."""

import time
from contextlib import nullcontext
from dataclasses import dataclass

from transformers import PreTrainedModel

from ..architectures.droppable import droppable_layers
from ..data.metrics import choose_metric, scored_by
from ..importance.calibration import Settings
from ..importance.choice import choose_layers
from ..importance.scores import LayerScores, calibrate
from ..scoring.trial import choose_layout
from ..surgery.drop import drop_layers
from ..training.sparse_update import choose_trained_layers, freeze_all_but
from ..training.trainer import TrimTrainer
from .methods import Method


@dataclass(frozen=True)
class Dropped:
    """What went before training."""

    layers: tuple[int, ...]  # in the order of their scores
    seconds: float  # that the choice took


def drop_before_training(trainer: TrimTrainer, method: Method, calibration, depth: int) -> Dropped:
    """Score the untrained model once, drop down to `depth` at once, and freeze what does not train.

    Args:
        trainer: Without a target, so that it trains what it is given.
        method: One that drops before training.
        calibration: Examples on which layers are scored.
        depth: To reach, in layers.

    Raises:
        ValueError: too few layers can be dropped.
    """
    args, model = trainer.args, trainer.model
    criterion = method.criterion or args.importance
    examples = trainer._tokenize_examples(calibration)
    metric = choose_metric(args.calibration_metric, examples)
    examples = scored_by(metric, examples)
    layout = choose_layout(model, examples)
    number = model.config.get_text_config().num_hidden_layers - depth
    # Not raced: the layers that go are compared with each other here, not only the best of them.
    settings = Settings(metric, layout, args.scan_batch_tokens, number, None, args.seed)
    started = time.perf_counter()
    with trainer.accelerator.autocast():
        scored = calibrate(model, examples, criterion, settings)
    seconds = time.perf_counter() - started
    # What the recipe protects belongs to its own criterion; controls drop what theirs says.
    protected = set(args.protected_layers or ()) if method.criterion is None else set()
    dropped = choose_layers(scored, criterion, number, lambda chosen: set(droppable_layers(model, chosen)) - protected)
    if len(dropped) < number:
        raise ValueError(
            f"`depths` contains {depth}, but only {len(dropped)} of {number} layers can be dropped: name a larger depth, or "
            "protect fewer layers."
        )
    num_layers = len(scored.scores)
    with trainer.compensated(dropped) if method.compensates else nullcontext():
        drop_layers(model, dropped)
    _freeze(trainer, method, scored, dropped, num_layers)
    return Dropped(dropped, seconds)


def _freeze(trainer: TrimTrainer, method: Method, scored: LayerScores, dropped: tuple[int, ...], num_layers: int):
    model, ratio = trainer.model, trainer.args.sparse_update_ratio
    depth = num_layers - len(dropped)
    if method.num_last_trained is not None:
        freeze_all_but(model, range(max(0, depth - method.num_last_trained), depth))
        _train_head(model)
    elif ratio is not None:
        scores = tuple(score for layer, score in enumerate(scored.scores) if layer not in dropped)
        freeze_all_but(model, choose_trained_layers(scores, ratio, num_layers))


def _train_head(model: PreTrainedModel) -> None:
    """Let the head train; where it is tied to the embedding, that is the embedding too."""
    model.get_output_embeddings().requires_grad_(True)
