"""Measured facts about a model: how good it is, with n, how fast, on which device."""

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass

import torch
from transformers import PreTrainedModel
from transformers.utils import is_peft_available

from .architectures.modules import find_layers
from .data.examples import IGNORED, ScoredExample
from .data.metrics import choose_metric, macro_f1, majority_accuracy, measure, predict
from .records.measurement import Measurement
from .scan import Layout, score_choices
from .speed import device_name, measure_tokens_per_second
from .surgery.drop import is_quantized


@dataclass(frozen=True)
class Quality:
    """What a model does on an evaluation set. None means that it does not apply."""

    num_examples: int
    num_tokens: int  # that the loss is the mean of
    loss: float  # mean negative log-likelihood of the scored tokens of the right choices, nats
    accuracy: float | None = None
    majority_accuracy: float | None = None  # of the most frequent right answer, or place of it
    macro_f1: float | None = None  # where every example has the same choices

    @property
    def perplexity(self) -> float:
        """Of the scored tokens."""
        return math.exp(min(self.loss, 700))


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
    log_probs = score_choices(model, examples, layout, batch_tokens)
    labels = (label for example in examples for label in example.choice_labels[example.answer])
    facts = {
        "num_examples": len(examples),
        "num_tokens": sum(label != IGNORED for label in labels),
        "loss": measure(log_probs, examples, "loss").item(),
    }
    if choose_metric(None, examples) == "accuracy":
        facts["accuracy"] = measure(log_probs, examples, "accuracy").item()
        facts["majority_accuracy"] = majority_accuracy(examples)
        facts["macro_f1"] = macro_f1(predict(log_probs, examples).tolist(), examples)
    return Quality(**facts)


def measure_model(
    name: str,
    model: PreTrainedModel,
    examples: list[ScoredExample] | None,
    layout: Layout | None,
    tokens_per_second: float | None = None,
) -> Measurement:
    """Measure a model as it is now.

    Args:
        name: Of the measurement.
        model: A causal LM.
        examples: The evaluation set; None: quality is not measured.
        layout: From `choose_layout`.
        tokens_per_second: Of decoding; None: timed here.
    """
    facts = {}
    if examples:
        facts = asdict(measure_quality(model, examples, layout))
        facts.pop("num_tokens")
        facts["precision"] = _precision(model)
    adapters = list(_adapter_parameters(model))  # merged when the model is saved
    return Measurement(
        name=name,
        depth=len(find_layers(model)),
        num_parameters=model.num_parameters() - sum(parameter.numel() for parameter in adapters),
        num_bytes=None if is_quantized(model) else model.get_memory_footprint() - sum(_sizes(adapters)),
        tokens_per_second=tokens_per_second or measure_tokens_per_second(model),
        device=device_name(model.device),
        dtype=str(model.dtype).removeprefix("torch."),
        **facts,
    )


def _adapter_parameters(model: PreTrainedModel) -> Iterator[torch.nn.Parameter]:
    if not is_peft_available():
        return
    from peft.tuners.tuners_utils import BaseTunerLayer

    for module in model.modules():
        if isinstance(module, BaseTunerLayer):
            for name in module.adapter_layer_names:
                yield from getattr(module, name).parameters()


def _sizes(parameters: list[torch.nn.Parameter]) -> Iterator[int]:
    return (parameter.numel() * parameter.element_size() for parameter in parameters)


def _precision(model: PreTrainedModel) -> str:
    if torch.is_autocast_enabled(model.device.type):
        return f"{str(torch.get_autocast_dtype(model.device.type)).removeprefix('torch.')} autocast"
    return str(model.dtype).removeprefix("torch.")
