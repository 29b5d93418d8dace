"""Measured facts about a model as it is now: size, quality, speed, device."""

from collections.abc import Iterator
from dataclasses import asdict

import torch
from transformers import PreTrainedModel
from transformers.utils import is_peft_available

from ..architectures.modules import find_layers
from ..data.examples import ScoredExample
from ..records.measurement import Measurement
from ..surgery.drop import is_quantized
from .layout import Layout
from .quality import measure_quality
from .speed import device_name, measure_tokens_per_second


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
