"""What two runs have to share, in short: examples by their tokens, base weights by a sample of their values."""

import hashlib
import json
from collections.abc import Iterable
from typing import Any

from transformers import PretrainedConfig, PreTrainedModel

from ..architectures.modules import find_layers
from ..data.examples import ScoredExample
from ..surgery.drop import is_quantized

NUM_SAMPLED = 64  # values of each tensor
# Fields of a config that do not say what the model computes.
SILENT_FIELDS = {
    "_name_or_path", "transformers_version", "dtype", "torch_dtype", "use_cache", "architectures", "bos_token_id",
    "eos_token_id", "pad_token_id",
}  # fmt: skip


def of_examples(examples: Iterable[ScoredExample] | dict[str, Iterable[ScoredExample]]) -> str:
    """Fingerprint of a set of tokenized examples, in whatever order; of several sets, by name, of all of them."""
    sets = examples if isinstance(examples, dict) else {"": examples}
    each = sorted(
        hashlib.sha256(repr((name, e.prompt_ids, e.choice_ids, e.choice_labels, e.answer)).encode()).digest()
        for name, entries in sets.items()
        for e in entries
    )
    return hashlib.sha256(b"".join(each)).hexdigest()


def of_layers(model: PreTrainedModel) -> str | None:
    """Fingerprint of what does not train in the layers of a model with an adapter; None: it has none that lasts.

    A sample: it tells one model from another. Quantized weights are packed as the device likes it.
    """
    if is_quantized(model):
        return None
    sampled = hashlib.sha256()
    for layer in find_layers(model):
        for parameter in layer.parameters():
            if not parameter.requires_grad:
                values = parameter.detach().flatten()
                sampled.update(values[:: max(1, len(values) // NUM_SAMPLED)].float().cpu().numpy().tobytes())
    return f"{model.dtype} {sampled.hexdigest()}"


def plain_config(config: PretrainedConfig) -> dict[str, Any]:
    """What a config says of what the model computes, as JSON knows it."""
    return _without_silent(json.loads(json.dumps(config.to_dict(), default=str)))


def different_fields(one: dict[str, Any], other: dict[str, Any], prefix: str = "") -> dict[str, tuple[Any, Any]]:
    """Fields that both have and that differ, by path, with both values; versions of Transformers may add others."""
    found: dict[str, tuple[Any, Any]] = {}
    for name in sorted(one.keys() & other.keys()):
        if isinstance(one[name], dict) and isinstance(other[name], dict):
            found |= different_fields(one[name], other[name], f"{prefix}{name}.")
        elif one[name] != other[name]:
            found[f"{prefix}{name}"] = (one[name], other[name])
    return found


def _without_silent(values: dict[str, Any]) -> dict[str, Any]:
    return {
        name: _without_silent(value) if isinstance(value, dict) else value
        for name, value in values.items()
        if name not in SILENT_FIELDS
    }
