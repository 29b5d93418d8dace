"""How good a model is on examples, with n."""

import torch
from transformers import PreTrainedModel

from ..data.examples import ScoredExample
from ..data.metrics import choose_metric, macro_f1, majority_accuracy, measure, predict
from ..records.measurement import Quality
from .layout import Layout
from .scan import score_choices


def measure_quality(
    model: PreTrainedModel,
    examples: list[ScoredExample],
    layout: Layout | None,
    batch_tokens: int | None = None,
) -> Quality:
    """Score every choice of every example.

    Args:
        model: A causal LM.
        examples: The evaluation set.
        layout: From `choose_layout`.
        batch_tokens: Of one pass, at most.
    """
    return summarize(score_choices(model, examples, layout, batch_tokens), examples)


def summarize(log_probs: torch.Tensor, examples: list[ScoredExample]) -> Quality:
    """Quality from the summed log-probabilities of all choices, [choices of all examples], nats."""
    facts = {
        "num_examples": len(examples),
        "num_tokens": sum(example.num_scored for example in examples),
        "loss": measure(log_probs, examples, "loss").item(),
    }
    if choose_metric(None, examples) == "accuracy":
        facts["accuracy"] = measure(log_probs, examples, "accuracy").item()
        facts["majority_accuracy"] = majority_accuracy(examples)
        facts["macro_f1"] = macro_f1(predict(log_probs, examples).tolist(), examples)
    return Quality(**facts)
