"""The configs of PEFT adapters name layers by number: what they say when layers go."""

from typing import Any

from accelerate.utils import is_peft_model
from torch import nn

from ..architectures.errors import LayerConstraintError
from ..architectures.fields import renumber
from ..architectures.kept import Kept
from ..architectures.module_names import renumber_names

# Fields that hold module names, or rules by module name.
_NAMES = ("rank_pattern", "alpha_pattern", "target_modules", "exclude_modules", "modules_to_save", "target_parameters")


def trimmed_adapters(model: nn.Module, kept: Kept) -> dict[str, dict[str, Any]]:
    """Return, per adapter, the fields of its config that change when only the layers `kept` stay.

    Raises:
        LayerConstraintError: an adapter repeats layers.
    """
    if not is_peft_model(model):
        return {}
    return {name: _trimmed(config, kept) for name, config in model.peft_config.items()}


def _trimmed(config: Any, kept: Kept) -> dict[str, Any]:
    if getattr(config, "layer_replication", None):
        raise LayerConstraintError(
            f"`layer_replication` of the adapter is {config.layer_replication}: layers that are repeated cannot be dropped."
        )
    fields = {name: renumber_names(value, kept) for name in _NAMES if (value := getattr(config, name, None))}
    transformed = getattr(config, "layers_to_transform", None)
    if transformed is not None:
        numbers = [transformed] if isinstance(transformed, int) else transformed
        fields["layers_to_transform"] = renumber(numbers, kept)
    return fields
