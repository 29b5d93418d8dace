"""The configs of PEFT adapters name layers by number, and the base model by name: what they say when layers go."""

import re
from collections.abc import Iterable
from typing import Any, NamedTuple

from accelerate.utils import is_peft_model
from torch import nn

from ..architectures.errors import LayerConstraintError
from ..architectures.fields import renumber
from ..architectures.kept import CannotSay, Kept
from ..architectures.module_names import renumber_names
from ..architectures.modules import find_stacks

TRIMMED = ", trimmed to "  # behind the name of a base model that has all its layers
# Fields that hold module names, or rules by module name.
_NAMES = ("target_modules", "exclude_modules", "modules_to_save", "target_parameters")
_BASE = "base_model_name_or_path"
_PATTERNS = {
    "rank_pattern": ("r",),
    "alpha_pattern": ("lora_alpha", "alpha"),
    "n_frequency_pattern": ("n_frequency",),
}  # and where the usual value stands


class _Adapted(NamedTuple):
    """What an adapter is in, by names in the base model."""

    modules: list[str]
    parameters: list[str]  # of modules that it is not in itself
    saved: list[str]  # modules that train whole beside it


def trimmed_adapters(model: nn.Module, kept: Kept) -> dict[str, dict[str, Any]]:
    """Return, per adapter, the fields of its config that change when only the layers `kept` stay.

    Raises:
        LayerConstraintError: an adapter repeats layers, names one as a whole of which halves go to different places, or would
            be left without any; or it learns prompts, some of them per layer.
    """
    if not is_peft_model(model):
        return {}
    base = model.get_base_model()
    named, stacks = base.name_or_path, tuple(find_stacks(base))
    try:
        return {
            name: _trimmed(config, kept, _adapted(model, name), stacks)
            | {_BASE: _trimmed_name(getattr(config, _BASE) or named, kept)}
            for name, config in model.peft_config.items()
        }
    except CannotSay as reason:
        raise LayerConstraintError(f"Cannot drop {kept} of a model with this adapter: {reason}.") from None


def untrimmed_name(name: str | None) -> str | None:
    """The name of the base model that an adapter's config had before layers went; None: it had none."""
    return (name or "").partition(TRIMMED)[0] or None


def _trimmed_name(name: str | None, kept: Kept) -> str:
    """A name that no loader finds anything under: under the old one it would find the layers that are gone."""
    return f"{untrimmed_name(name) or ''}{TRIMMED}{len(kept.layers)} layers"


def _trimmed(config: Any, kept: Kept, adapted: _Adapted, stacks: tuple[str, ...]) -> dict[str, Any]:
    if config.is_prompt_learning:
        raise LayerConstraintError(
            f"The adapter is of the kind {config.peft_type}, which puts something in front of the prompt, and part of it may belong "
            "to a layer. Drop layers of the base model, then train the adapter; or use one inside the layers, such as LoRA."
        )
    if _says_numbers(getattr(config, "feedforward_modules", None)):
        raise LayerConstraintError(
            f"`feedforward_modules` of the adapter is {config.feedforward_modules}, which names layers by number, and "
            "`target_modules` would have to name the same ones when layers go. Name the modules without numbers."
        )
    everything = [name for names in adapted for name in names]
    if everything and not renumber_names(everything, kept, stacks):
        raise LayerConstraintError(
            f"Only layers that would be dropped have the adapter ({', '.join(everything[:2])}, ...), and PEFT takes one that is on "
            "no layer for one on all. Keep one of them, or adapt more layers."
        )
    if getattr(config, "layer_replication", None):
        raise LayerConstraintError(
            f"`layer_replication` of the adapter is {config.layer_replication}: layers that are repeated cannot be dropped."
        )
    fields = {name: renumber_names(value, kept, stacks) for name in _NAMES if (value := getattr(config, name, None))}
    transformed = getattr(config, "layers_to_transform", None)
    numbers = [transformed] if isinstance(transformed, int) else transformed
    is_split = numbers is not None and renumber(numbers, kept.of_attention) != renumber(numbers, kept.of_mlps)
    if is_split or any(_says_numbers(getattr(config, name, None)) for name in ("target_modules", "exclude_modules")):
        fields |= {"target_modules": set(renumber_names(adapted.modules, kept, stacks)), "exclude_modules": None}
    for name, (pattern, otherwise) in _patterns(config).items():
        fields[name] = renumber_names(
            _by_module(pattern, otherwise, [*adapted.modules, *adapted.parameters]), kept, stacks
        )
    if is_split:  # the modules are listed one by one now
        fields |= {"layers_to_transform": None, "layers_pattern": None}
    elif numbers is not None:
        fields["layers_to_transform"] = renumber(numbers, kept.of_attention)
    return fields


def _says_numbers(names: str | Iterable[str] | None) -> bool:
    """Whether names, or a regular expression, choose modules by their layers' numbers."""
    names = [names] if isinstance(names, str) else names or ()
    return any(re.search(r"\d|\[", name) for name in names)


def _patterns(config: Any) -> dict[str, tuple[dict[str, Any], Any]]:
    """Fields that say something per module, where they say it of some, and what holds for the others."""
    found = {}
    for name, defaults in _PATTERNS.items():
        if getattr(config, name, None):
            found[name] = (
                getattr(config, name),
                next(getattr(config, each) for each in defaults if hasattr(config, each)),
            )
    return found


def _by_module(pattern: dict[str, Any], otherwise: Any, adapted: list[str]) -> dict[str, Any]:
    """What a pattern says of each module that is adapted, by its full name, if it tells layers by their numbers."""
    from peft.utils.other import get_pattern_key

    if not _says_numbers(pattern):
        return pattern
    said = {name: pattern.get(get_pattern_key(pattern.keys(), name), otherwise) for name in adapted}
    return {name: value for name, value in said.items() if value != otherwise}


def _adapted(model: nn.Module, adapter: str) -> _Adapted:
    """What an adapter is in, by its names in the base model."""
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils import AuxiliaryTrainingWrapper

    found = _Adapted([], [], [])
    for name, module in model.get_base_model().named_modules():
        plain = name.replace(".base_layer", "")
        if isinstance(module, AuxiliaryTrainingWrapper):
            found.saved.append(plain)
        elif isinstance(module, BaseTunerLayer) and any(
            adapter in getattr(module, part, ()) for part in module.adapter_layer_names
        ):
            if hasattr(module, "parameter_name"):
                found.parameters.append(f"{plain}.{module.parameter_name}")
            else:
                found.modules.append(plain)
    return found
