"""What a model is judged by on examples: accuracy over choices, or loss of the right one."""

from collections import Counter
from dataclasses import replace

import torch
from sklearn.metrics import f1_score

from .examples import ScoredExample
from .splits import CalibrationError

METRICS = ("accuracy", "loss")  # of the calibration set; accuracy needs `choices`


def choose_metric(metric: str | None, examples: list[ScoredExample]) -> str:
    """Return the metric: the one asked for, or accuracy if every example has choices, else loss.

    Raises:
        CalibrationError: accuracy is asked for and an example has no choices.
        ValueError: another metric is asked for.
    """
    if metric is not None and metric not in METRICS:
        raise ValueError(f"`metric` is {metric!r}, expected one of {', '.join(METRICS)}, or None.")
    has_choices = all(len(example.choice_ids) > 1 for example in examples)
    if metric == "accuracy" and not has_choices:
        raise CalibrationError(
            '`calibration_metric` is "accuracy", which needs the columns `choices` and `answer` in the calibration set. '
            'Add them, or set `calibration_metric` to "loss".'
        )
    return metric or ("accuracy" if has_choices else "loss")


def scored_by(metric: str, examples: list[ScoredExample]) -> list[ScoredExample]:
    """Leave out what the metric does not look at: loss needs the right choice only, accuracy nothing that all share."""
    if metric == "accuracy":
        return [replace(example, prompt_labels=()) for example in examples]
    return [
        replace(
            example, choice_ids=example.choice_ids[k : k + 1], choice_labels=example.choice_labels[k : k + 1], answer=0
        )
        for example in examples
        for k in [example.answer]
    ]


def measure(log_probs: torch.Tensor, examples: list[ScoredExample], metric: str) -> torch.Tensor:
    """Compute the metric from the summed log-probabilities of all choices.

    Args:
        log_probs: (..., choices): the choices of all examples, one after the other; nats.
        examples: The examples that the choices belong to.
        metric: `"accuracy"` (share of examples whose right choice has the largest summed log-probability) or `"loss"`
            (mean negative log-likelihood of the scored tokens of the right choices, in nats).

    Returns:
        (...): the metric, for each leading index.
    """
    ends = torch.tensor([len(example.choice_ids) for example in examples]).cumsum(0).tolist()
    starts = [0, *ends[:-1]]
    if metric == "accuracy":
        return predict(log_probs, examples).eq(torch.tensor([example.answer for example in examples])).float().mean(-1)
    right = torch.tensor([start + example.answer for start, example in zip(starts, examples, strict=True)])
    num_tokens = sum(example.num_scored for example in examples)
    return -log_probs[..., right].sum(-1) / max(num_tokens, 1)


def predict(log_probs: torch.Tensor, examples: list[ScoredExample]) -> torch.Tensor:
    """Return (..., examples): the index of the choice with the largest summed log-probability; -1 where one is NaN."""
    sizes = [len(example.choice_ids) for example in examples]
    best = [choices.max(-1) for choices in log_probs.split(sizes, dim=-1)]
    return torch.stack([indices.masked_fill(values.isnan(), -1) for values, indices in best], dim=-1)


def majority_accuracy(examples: list[ScoredExample]) -> float:
    """Accuracy of the choice that is right most often: the most frequent right answer wherever it is on offer.

    Where that is not among the choices, the most frequent one that is counts. Right answers that hardly recur, as in
    exams, are no classes, and to count them would be to know them: there it is the most frequent place of the right one.
    """
    frequency = Counter(example.counted(example.answer) for example in examples)
    if 2 * len(frequency) > len(examples):
        return Counter(example.answer for example in examples).most_common(1)[0][1] / len(examples)
    right = 0
    for example in examples:
        guess = max(range(len(example.choice_ids)), key=lambda k: frequency[example.counted(k)])
        right += guess == example.answer
    return right / len(examples)


def macro_f1(predicted: list[int], examples: list[ScoredExample]) -> float | None:
    """Mean over the choices of the F1 of each, one never given counting 0; None: the examples differ in their choices.

    Args:
        predicted: As from `predict`.
        examples: That they are of.
    """
    offered = [[example.counted(k) for k in range(len(example.choice_ids))] for example in examples]
    classes = set(offered[0])
    if any(set(choices) != classes for choices in offered):
        return None
    numbers = {choice: number for number, choice in enumerate(sorted(classes))}
    right = [numbers[choices[example.answer]] for choices, example in zip(offered, examples, strict=True)]
    given = [numbers[choices[k]] if k >= 0 else -1 for k, choices in zip(predicted, offered, strict=True)]
    return float(f1_score(right, given, labels=list(numbers.values()), average="macro", zero_division=0))
