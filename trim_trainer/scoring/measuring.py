"""Measured facts about a model as it is now: size, quality, speed, device."""

from collections.abc import Iterator

import torch
from transformers import PreTrainedModel
from transformers.utils import is_peft_available

from ..architectures.modules import find_layers
from ..data.examples import ScoredExample
from ..records.measurement import Measurement
from ..surgery.drop import is_quantized
from .cache import measure_cache
from .layout import Layout
from .quality import measure_quality
from .speed import device_name, measure_saved_tokens_per_second
from .trial import choose_layout


def measure_model(
    model: PreTrainedModel,
    sets: dict[str, list[ScoredExample]],
    layout: Layout | None = None,
    batch_tokens: int | None = None,
    is_merged: bool = True,
    **facts,
) -> Measurement:
    """Measure a model as it is now.

    Args:
        model: A causal LM.
        sets: Evaluation sets by name; none, and empty ones: quality is not measured.
        layout: From `choose_layout`; None: chosen for each set.
        batch_tokens: Of one pass, at most.
        is_merged: Whether adapters are merged where the model is saved.
        facts: Fields of `Measurement` that are known already. Decoding is timed here unless it is among them.
    """
    quality = {
        name: measure_quality(model, examples, layout or choose_layout(model, examples), batch_tokens)
        for name, examples in sets.items()
        if examples
    }
    adapters = list(_adapter_parameters(model))  # merged when the model is saved
    if facts.get("decode_tokens_per_second") is None:
        facts["decode_tokens_per_second"] = measure_saved_tokens_per_second(model, is_merged)
    if "num_bytes" not in facts:
        facts["num_bytes"] = None if is_quantized(model) else model.get_memory_footprint() - sum(_sizes(adapters))
    if "cache" not in facts:
        facts["cache"] = measure_cache(model)
    return Measurement(
        depth=len(find_layers(model)),
        num_parameters=model.num_parameters() - sum(parameter.numel() for parameter in adapters),
        device=device_name(model.device),
        dtype=str(model.dtype).removeprefix("torch."),
        precision=_precision(model) if quality else None,
        quality=quality,
        **facts,
    )


def _adapter_parameters(model: PreTrainedModel) -> Iterator[torch.nn.Parameter]:
    """What a merged checkpoint does not have: adapters, and modules in whose place copies were trained."""
    if not is_peft_available():
        return
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils import ModulesToSaveWrapper

    replaced = []  # by a copy that trains: what the places of the originals begin with
    for path, module in model.named_modules():
        if isinstance(module, BaseTunerLayer):
            for name in module.adapter_layer_names:
                yield from getattr(module, name).parameters()
        elif isinstance(module, ModulesToSaveWrapper):
            replaced.append(f"{path}.original_module.")
    originals, others = set(), set()  # one may be tied to what stays
    for name, parameter in model.named_parameters(remove_duplicate=False):
        (originals if name.startswith(tuple(replaced)) else others).add(parameter)
    yield from originals - others


def _sizes(parameters: list[torch.nn.Parameter]) -> Iterator[int]:
    return (parameter.numel() * parameter.element_size() for parameter in parameters)


def _precision(model: PreTrainedModel) -> str:
    if torch.is_autocast_enabled(model.device.type):
        return f"{str(torch.get_autocast_dtype(model.device.type)).removeprefix('torch.')} autocast"
    return str(model.dtype).removeprefix("torch.")
