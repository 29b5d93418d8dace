"""Candidates that are clearly worse after part of the calibration set stop early: racing by paired differences.

Hoeffding races (Maron and Moore, 1993) with a test on the differences between two candidates on the same examples, in
stages that double, as in successive halving (Jamieson and Talwalkar, 2016).
"""

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import torch

from ..architectures.kept import Cut
from ..data.examples import ScoredExample
from ..data.metrics import predict
from ..scoring.scan import LayerScan

# Examples of the first stage, at least: fewer say nothing about the spread.
MIN_STAGE = 8
# Of the test that tells layers which are clearly worse from those among which position decides.
TIE_CONFIDENCE = 0.9


@dataclass(frozen=True)
class Race:
    """What a race found.

    Attributes:
        harms: (layers,): how much worse the metric gets without each layer, on the examples that the layer was scored on.
        num_examples: (layers,): how many these are; candidates of the last stage have all of them.
        log_probs: (choices,): of the model as it is, on all examples.
        activation_norms: (layers,), or None, as in `LayerScan`.
        contenders: Candidates of the last stage that are not clearly worse than those of the lowest harm.
    """

    harms: torch.Tensor
    num_examples: torch.Tensor
    log_probs: torch.Tensor
    activation_norms: torch.Tensor | None
    contenders: tuple[Cut, ...]


def race(
    scan: Callable[[list[ScoredExample], list[Cut]], LayerScan],
    examples: list[ScoredExample],
    metric: str,
    candidates: Sequence[Cut],
    num_chosen: int,
    confidence: float,
    seed: int = 0,
) -> Race:
    """Score candidates in stages, on more and more examples; drop those that are worse than the best with confidence.

    Args:
        scan: Scores examples with each candidate left out.
        examples: The calibration set.
        metric: `"accuracy"` or `"loss"`.
        candidates: Layers and seams, from front to back.
        num_chosen: How many are to be chosen: a candidate races against the one of this rank.
        confidence: In (0.5, 1): of the one-sided test that a candidate is worse.
        seed: For the order of the examples.
    """
    order = random.Random(seed).sample(range(len(examples)), len(examples))
    alive, done = list(candidates), 0
    harms = torch.full((len(candidates), len(examples)), torch.nan)  # column: place in `order`
    base: dict[int, torch.Tensor] = {}
    norms = []
    for end in stage_ends(len(examples)):
        part = [examples[number] for number in order[done:end]]
        found = scan(part, alive)
        rows = [candidates.index(layer) for layer in alive]
        harms[rows, done:end] = example_harms(found.log_probs, part, metric)
        sizes = [len(example.choice_ids) for example in part]
        base |= dict(zip(order[done:end], found.log_probs[0].split(sizes), strict=True))
        norms += [] if found.activation_norms is None else [found.activation_norms * len(part)]
        done = end
        if end < len(examples):
            alive = [candidates[row] for row in survivors(harms[:, :end], rows, metric, num_chosen, confidence)]
    return Race(
        mean_harms(harms, [examples[number] for number in order], metric),
        harms.isfinite().sum(1),
        torch.cat([base[number] for number in range(len(examples))]),
        sum(norms) / len(examples) if norms else None,
        find_contenders(harms, alive, candidates, metric, num_chosen),
    )


def stage_ends(num_examples: int) -> list[int]:
    """How many examples have been seen after each stage: an eighth, a quarter, half, all."""
    ends = [max(MIN_STAGE, math.ceil(num_examples / part)) for part in (8, 4, 2)]
    return [*sorted({end for end in ends if end < num_examples}), num_examples]


def example_harms(log_probs: torch.Tensor, examples: list[ScoredExample], metric: str) -> torch.Tensor:
    """Return (candidates, examples): what leaving a layer out costs on each example.

    Args:
        log_probs: (1 + candidates, choices), as in `LayerScan`.
        examples: Those of the choices.
        metric: With accuracy the cost is 1, 0 or -1: an answer lost or won; with loss it is nats, summed over tokens.
    """
    if metric == "accuracy":
        answers = torch.tensor([example.answer for example in examples])
        right = predict(log_probs, examples).eq(answers).float()  # (1 + candidates, examples)
        return right[0] - right[1:]
    sizes = [len(example.choice_ids) for example in examples]
    right = torch.stack(
        [part[:, example.answer] for part, example in zip(log_probs.split(sizes, dim=1), examples, strict=True)], dim=1
    )
    return right[0] - right[1:]


def mean_harms(harms: torch.Tensor, examples: list[ScoredExample], metric: str) -> torch.Tensor:
    """Return (candidates,): the harm to the metric itself, over the examples that are not NaN."""
    if metric == "accuracy":
        return harms.nanmean(1)
    seen = harms.isfinite() * torch.tensor([example.num_scored for example in examples])
    return harms.nansum(1) / seen.sum(1).clamp(min=1)


def find_contenders(
    harms: torch.Tensor, alive: Sequence[Cut], candidates: Sequence[Cut], metric: str, num_chosen: int
) -> tuple[Cut, ...]:
    """Return the candidates that are not clearly worse than the `num_chosen` of the lowest harm: chance may order them.

    Args:
        harms: (candidates, examples), as from `example_harms`.
        alive: Layers that were left out of every example.
        candidates: The layer of each row.
        metric: `"accuracy"` or `"loss"`.
        num_chosen: How many are to be chosen.
    """
    rows = [candidates.index(layer) for layer in alive]
    if harms.shape[1] < 2:  # says nothing about the spread
        return tuple(alive)
    return tuple(candidates[row] for row in survivors(harms, rows, metric, num_chosen, TIE_CONFIDENCE))


def survivors(harms: torch.Tensor, rows: list[int], metric: str, num_chosen: int, confidence: float) -> list[int]:
    """Return those of the rows that may still be among the `num_chosen` least harmful."""
    total = harms[rows].sum(1)
    rival = rows[total.argsort()[min(num_chosen, len(rows)) - 1]]
    num_examples = harms.shape[1]
    differences = harms[rows] - harms[rival]  # (rows, examples)
    # Accuracy changes on few examples: one difference that was not seen keeps a lucky rival from winning at once.
    unseen = 1.0 if metric == "accuracy" else 0.0
    spread = (differences.var(1, correction=1) * (num_examples - 1) + unseen).div(num_examples - 1).sqrt()
    bound = t_quantile(confidence, num_examples - 1) * spread / math.sqrt(num_examples)
    return [
        row for row, is_worse in zip(rows, differences.mean(1) > bound, strict=True) if not is_worse or row == rival
    ]


def t_quantile(confidence: float, degrees: int) -> float:
    """Student's t, by the first terms of its expansion around the normal quantile (Abramowitz and Stegun 26.7.5)."""
    z = NormalDist().inv_cdf(confidence)
    return z + (z**3 + z) / (4 * degrees) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * degrees**2)
