"""What trimming is compared with: the same data, steps and seed, another way to fewer layers, one row each."""

import time
from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Literal

from transformers import PreTrainedModel

from .architectures.droppable import droppable_layers
from .data.metrics import choose_metric, scored_by
from .importance.calibration import Settings
from .importance.choice import choose_layers
from .importance.scores import LayerScores, calibrate
from .scoring.trial import choose_layout
from .surgery.drop import drop_layers
from .training.sparse_update import choose_trained_layers, freeze_all_but
from .training.trainer import TrimTrainer


@dataclass(frozen=True)
class Method:
    """A row of `METHODS`.

    Attributes:
        title: What tables and plots call it.
        criterion: By which layers are dropped, a name in `CRITERIA`; None: the recipe's own.
        drops: When layers are dropped: `"never"`, `"before"` training all at once, or `"while"` it trains, as the recipe
            says.
        compensates: Layers in front of dropped ones take over what they added, if the recipe sets `compensation_size`.
        num_last_trained: Train only the head and so many of the last layers; None: what the recipe says.
        paper: Where it comes from.
    """

    title: str
    drops: Literal["never", "before", "while"] = "before"
    criterion: str | None = None
    compensates: bool = False
    num_last_trained: int | None = None
    paper: str | None = None


METHODS = {
    "full": Method("full depth", drops="never"),
    "progressive": Method(
        "progressive", drops="while", compensates=True, paper="https://huggingface.co/papers/2412.11242"
    ),
    "progressive_tail": Method("progressive, last layers", drops="while", criterion="tail", compensates=True),
    "one_shot": Method("one-shot, same criterion", compensates=True),
    "block_influence": Method(
        "one-shot, block influence", criterion="block_influence", paper="https://huggingface.co/papers/2403.03853"
    ),
    "tail": Method("one-shot, last layers", criterion="tail", paper="https://huggingface.co/papers/2411.15558"),
    "tail_head": Method(
        "one-shot, last layers; trains head + last 3", criterion="tail", num_last_trained=3,
        paper="https://huggingface.co/papers/2411.15558",
    ),
    "tail_compensated": Method(
        "one-shot, last layers, compensated", criterion="tail", compensates=True,
        paper="https://huggingface.co/papers/2505.02819",
    ),
    "random": Method("one-shot, random", criterion="random"),
}  # fmt: skip


def choose_methods(asked: Iterable[str] | None, importance: str, compensation_size: int) -> tuple[str, ...]:
    """Names of the methods that were asked for; None: all that differ.

    Raises:
        ValueError: one of them compensates, and the recipe says nothing to do it on.
    """
    if asked is None:
        return distinct_methods(importance, compensation_size)
    if "tail_compensated" in asked and not compensation_size:
        raise ValueError(
            "`--methods` contains tail_compensated, but `compensation_size` is 0. Set it, such as `--compensation_size 200`, "
            "or leave the method out: it would be tail again."
        )
    return tuple(asked)


def distinct_methods(importance: str, compensation_size: int = 0) -> tuple[str, ...]:
    """Names of all methods but those that a recipe with this criterion makes the same as another one.

    Without compensation none compensates. With it, a control that drops before training and does not is one of its own,
    even by the recipe's criterion.
    """
    names, seen = [], set()
    for name, method in METHODS.items():
        criterion = method.criterion or importance
        what = (method.drops, criterion, method.compensates and compensation_size > 0, method.num_last_trained)
        if what not in seen:
            names.append(name)
            seen.add(what)
    return tuple(names)


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
