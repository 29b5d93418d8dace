"""How much each layer matters: criteria as rows, one score per layer, higher = keep."""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from .architectures import find_layers
from .calibration import ScoredExample, choose_metric, measure, scored_by, tokenize_examples
from .scan import LayerScan, Layout, choose_layout, scan_layers, score_choices

TRIMLLM = "https://huggingface.co/papers/2412.11242"


@dataclass(frozen=True)
class Calibration:
    """What a criterion may look at: the model and the calibration set. The scan runs when it is first needed."""

    model: PreTrainedModel
    examples: list[ScoredExample]
    metric: str
    scan: Callable[[], LayerScan]
    num_layers: int
    seed: int


@dataclass(frozen=True)
class Criterion:
    """A row of `CRITERIA`. `score` returns one number per layer, higher = keep."""

    score: Callable[[Calibration], torch.Tensor]
    paper: str | None = None
    breaks_ties: bool = False  # equal scores: the layer with the largest activation norm goes first


@dataclass(frozen=True)
class LayerScores:
    """One calibration: the scores, and the facts that were measured on the way."""

    scores: tuple[float, ...]
    activation_norms: tuple[float, ...] | None  # None: the criterion needs no scan
    metric: float  # of the model as it is
    seconds: float = 0.0  # that the calibration took


def score_sensitivity(calibration: Calibration) -> torch.Tensor:
    """How much worse the metric gets without the layer: accuracy lost, or loss gained (TrimLLM)."""
    scan = calibration.scan()
    values = measure(scan.log_probs, calibration.examples, calibration.metric)  # (1 + layers,)
    harm = values[0] - values[1:]
    return harm if calibration.metric == "accuracy" else -harm


def score_activation_norm(calibration: Calibration) -> torch.Tensor:
    """Layers with a large output norm go first (TrimLLM's criterion for ties, on its own)."""
    return -calibration.scan().activation_norms


def score_tail(calibration: Calibration) -> torch.Tensor:
    """The last layers go first: the control that costs no scan."""
    return -torch.arange(calibration.num_layers, dtype=torch.float32)


def score_random(calibration: Calibration) -> torch.Tensor:
    """Layers go in random order: the control that knows nothing."""
    generator = torch.Generator().manual_seed(calibration.seed)
    return torch.rand(calibration.num_layers, generator=generator)


CRITERIA = {
    "sensitivity": Criterion(score_sensitivity, TRIMLLM, breaks_ties=True),
    "activation_norm": Criterion(score_activation_norm, TRIMLLM),
    "tail": Criterion(score_tail, "https://huggingface.co/papers/2411.15558"),
    "random": Criterion(score_random),
}


def calibrate(
    model: PreTrainedModel,
    examples: list[ScoredExample],
    *,
    criterion: str,
    metric: str,
    layout: Layout,
    seed: int = 0,
) -> LayerScores:
    """Score every layer of the model as it is now.

    Args:
        model: A causal LM.
        examples: The calibration set.
        criterion: A name in `CRITERIA`.
        metric: `"accuracy"` or `"loss"`.
        layout: From `choose_layout`.
        seed: For the criteria that draw.
    """
    started, done = time.perf_counter(), []

    def scan() -> LayerScan:
        if not done:
            done.append(scan_layers(model, examples, layout))
        return done[0]

    row = find_criterion(criterion)
    scores = row.score(Calibration(model, examples, metric, scan, len(find_layers(model)), seed))
    log_probs = done[0].log_probs[0] if done else score_choices(model, examples, layout)
    norms = tuple(done[0].activation_norms.tolist()) if done else None
    now = measure(log_probs, examples, metric).item()
    return LayerScores(tuple(scores.tolist()), norms, now, time.perf_counter() - started)


def choose_layers(
    scored: LayerScores,
    criterion: str,
    num_layers: int,
    droppable: Callable[[tuple[int, ...]], Iterable[int]],
) -> tuple[int, ...]:
    """Choose the least important layers.

    Args:
        scored: The scores of all layers.
        criterion: The name in `CRITERIA` that they come from.
        num_layers: How many to choose.
        droppable: Returns the layers that can go in addition to those chosen so far.

    Returns:
        Their numbers, in the order in which they go; fewer than asked for where the others have to stay.
    """
    norms = scored.activation_norms if CRITERIA[criterion].breaks_ties else None
    chosen: tuple[int, ...] = ()
    while len(chosen) < num_layers and (candidates := list(droppable(chosen))):
        best = min(candidates, key=lambda layer: (scored.scores[layer], -norms[layer] if norms else 0.0))
        chosen += (best,)
    return chosen


def find_criterion(name: str) -> Criterion:
    """Return the row of `CRITERIA`, or raise a ValueError that lists the names."""
    if name not in CRITERIA:
        raise ValueError(f"`importance` is {name!r}, expected one of: {', '.join(sorted(CRITERIA))}.")
    return CRITERIA[name]


def score_layers(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    calibration: Iterable[dict],
    criterion: str = "sensitivity",
    metric: str | None = None,
    seed: int = 0,
) -> list[float]:
    """Score the layers of a model without training it.

    Args:
        model: A causal LM.
        tokenizer: Its tokenizer.
        calibration: Examples in TRL's formats; multiple choice with the columns `choices` and `answer`.
        criterion: A name in `CRITERIA`.
        metric: `"accuracy"` or `"loss"`; None: accuracy if every example has choices, else loss.
        seed: For the criteria that draw.

    Returns:
        One score per layer, higher = more important.

    Raises:
        ValueError: unknown criterion, unusable calibration set, or unsupported architecture.
    """
    find_criterion(criterion)
    examples = tokenize_examples(calibration, tokenizer)
    metric = choose_metric(metric, examples)
    examples = scored_by(metric, examples)
    layout = choose_layout(model, examples)
    scored = calibrate(model, examples, criterion=criterion, metric=metric, layout=layout, seed=seed)
    return list(scored.scores)
