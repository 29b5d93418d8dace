"""Runtimes that take what a layer is from its number instead of from the config: what a trimmed model must not expect.

Read from, and where noted run with, llama.cpp as in llama-cpp-python 0.3.36 (its converter and `src/models`), and vLLM
0.33.0 (`vllm/model_executor/models`), and the builder of ONNX Runtime GenAI 0.18.0, November 2026. Transformers reads the
lists, so nothing of this concerns it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from transformers import PretrainedConfig

from .configs import num_layers, text_config


@dataclass(frozen=True)
class Assumption:
    """What a runtime assumes of a model type, whatever the config says.

    `is_met` gets the fields of the decoder's config and its depth.
    """

    runtime: str
    what: str
    is_met: Callable[[dict[str, Any], int], bool]


def every(period: int, field: str, special: Any, ordinary: Any) -> Callable[[dict[str, Any], int], bool]:
    """The `period`-th layer, and every `period`-th after it, is `special`; the others are `ordinary`."""

    def is_met(fields: dict[str, Any], depth: int) -> bool:
        return fields.get(field) == [ordinary if (layer + 1) % period else special for layer in range(depth)]

    return is_met


def full_every(period: int) -> Callable[[dict[str, Any], int], bool]:
    """Every `period`-th layer attends fully, the others within a window."""
    return every(period, "layer_types", "full_attention", "sliding_attention")


def never_slides(fields: dict[str, Any], depth: int) -> bool:
    """No layer attends within a window."""
    return "sliding_attention" not in (fields.get("layer_types") or [])


def slides_at_64(fields: dict[str, Any], depth: int) -> bool:
    """A window is used at a depth of 64 only."""
    return depth == 64 or never_slides(fields, depth)


def scales_by_head(fields: dict[str, Any], depth: int) -> bool:
    """The 27B models, known by their depth, are the only ones whose queries are not scaled by the head's size."""
    return depth in (46, 62) or fields.get("query_pre_attn_scalar") == fields.get("head_dim")


_LLAMA_CPP, _VLLM, _ONNX = "llama.cpp", "vLLM", "ONNX Runtime GenAI"
_SCALE = Assumption(
    _LLAMA_CPP, "that a 27B model, which scales its queries differently, is 46 or 62 layers deep", scales_by_head
)

ASSUMPTIONS = {
    "gemma2": (Assumption(_LLAMA_CPP, "that every 2nd layer attends fully", full_every(2)), _SCALE),
    "gemma3_text": (Assumption(_LLAMA_CPP, "that every 6th layer attends fully", full_every(6)), _SCALE),
    "afmoe": (Assumption(_LLAMA_CPP, "that every 4th layer attends fully, without positions", full_every(4)),),
    "cohere2": (Assumption(_LLAMA_CPP, "that every 4th layer attends fully, without positions", full_every(4)),),
    "gpt_oss": (
        Assumption(_LLAMA_CPP, "that every 2nd layer attends fully", full_every(2)),
        Assumption(_VLLM, "that every 2nd layer attends fully", full_every(2)),
        Assumption(_ONNX, "that every 2nd layer attends fully", full_every(2)),
    ),
    "smollm3": (Assumption(_LLAMA_CPP, "that every 4th layer has no positions", every(4, "no_rope_layers", 0, 1)),),
    "exaone4": (Assumption(_LLAMA_CPP, "that only a model 64 layers deep has sliding windows", slides_at_64),),
    "qwen2": (Assumption(_LLAMA_CPP, "that no layer has a sliding window", never_slides),),
    "llama4_text": (
        Assumption(_LLAMA_CPP, "that every 4th layer has no positions", every(4, "no_rope_layers", 0, 1)),
        Assumption(
            f"{_LLAMA_CPP} and {_VLLM}",
            "that layers with experts come at a fixed interval",
            lambda fields, depth: fields.get("moe_layers") == list(range(depth)),
        ),
    ),
}


def runtime_caveats(config: PretrainedConfig) -> list[str]:
    """Say which runtimes would silently compute something else with a model of this config, a sentence each."""
    decoder, depth = text_config(config), num_layers(config)
    fields = decoder.to_dict()
    return [
        f"{assumption.runtime} assumes of {decoder.model_type!r} {assumption.what}, whatever the config says; this model "
        "is not like that, and would load there without an error and compute something else."
        for assumption in ASSUMPTIONS.get(decoder.model_type, ())
        if not assumption.is_met(fields, depth)
    ]
