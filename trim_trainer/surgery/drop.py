"""The only code that changes a model's layers or config: rehearsed on a model without weights, then done."""

import operator
from collections.abc import Iterable

from accelerate.utils import is_compiled_module, is_peft_model
from huggingface_hub.errors import StrictDataclassError
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from ..architectures.configs import text_config
from ..architectures.droppable import keep_without, trimmed_fields
from ..architectures.errors import LayerConstraintError
from ..architectures.halves import find_halves
from ..architectures.kept import Cut, Kept, Seam
from ..architectures.modules import find_stacks
from ..architectures.rewriting import stale_fields
from ..architectures.table import find_architecture
from .adapters import trimmed_adapters
from .blueprint import LAYER_NUMBERS, adopt_constants, build, differing_constants, tensor_shapes
from .joining import check_parts, move_mlp_half
from .unstored import adopt_unstored, differing_buffers, differing_modules

_OTHER_TENSORS = (
    "The model has tensors that its config does not describe, and that loading would leave out; let buffers of your own be "
    "no part of the state dict (`persistent=False`)"
)


class SurgeryError(RuntimeError):
    """The trimmed model would not be what its config says; nothing was changed."""


def drop_layers(
    model: PreTrainedModel, layers: Iterable[int], seams: Iterable[tuple[int, int]] = ()
) -> PreTrainedModel:
    """Drop decoder layers in place: modules, layer numbers, config, and weights that depend on a layer's number.

    TrimLLM (arXiv 2412.11242) drops attention and MLP halves one by one. Two neighbouring halves leave a standard model:
    those of one layer, or a seam, the MLP half of a layer and the attention half of the next one. Of the two layers at a seam
    one is left, with the attention half of the first and the MLP half of the second.

    The drop is rehearsed first, on a model without weights: what is left of it must have exactly the tensors and the
    constants of a fresh model of the new config, so the result is saved and loaded as an ordinary checkpoint of its type.

    Args:
        model: A causal LM, or an image-text-to-text model, whose text decoder loses layers. With PEFT adapters, those of
            the dropped layers go too, and the others are renumbered.
        layers: Numbers of the layers to drop, as the model counts them now, from 0.
        seams: Pairs of neighbouring layers, such as `(21, 22)`, that are joined to one. No half may go twice.

    Returns:
        `model` itself.

    Raises:
        UnsupportedArchitectureError: no layer of this model can be dropped; or its layers have no halves to join.
        LayerConstraintError: these layers have to stay, see `droppable_layers`.
        ValueError: a number is out of range or given twice, or no layer would be left; a seam is not one of neighbours; or the
            model is wrapped by `torch.compile`, or has an adapter that PEFT's own model does not hold.
        SurgeryError: the layers that are left are not those that the new config describes.
    """
    base = _plain_model(model)
    stacks = find_stacks(base)
    depth = len(next(iter(stacks.values())))
    cuts = check_cuts(layers, seams, depth)
    if not cuts:
        return model
    kept = keep_without(base.config, cuts)
    adapters = trimmed_adapters(model, kept)
    rehearsed, expected = _rehearse(base, kept, has_plain_weights=base is model and not is_quantized(model))
    _cut(base, expected, kept)
    adopt_unstored(base, rehearsed, expected)
    adopt_constants(base, rehearsed, expected)
    for name, fields in adapters.items():
        vars(model.peft_config[name]).update(fields)
    return model


def check_not_compiled(model: PreTrainedModel) -> None:
    """Raise a ValueError for what `torch.compile` returned: a wrapper that has neither layers nor config of its own."""
    if is_compiled_module(model):
        raise ValueError(
            "`model` is what `torch.compile` returned, a wrapper. Pass the model in it, `model._orig_mod`, or compile in place, "
            "by `model.compile()`."
        )


def _plain_model(model: PreTrainedModel) -> PreTrainedModel:
    """The model inside adapters; or a ValueError where none can be told from them."""
    check_not_compiled(model)
    if is_peft_model(model):
        return model.get_base_model()
    if getattr(model, "_hf_peft_config_loaded", False):
        raise ValueError(
            "`model` has an adapter that `add_adapter` or `load_adapter` put into it. Make it by `peft.get_peft_model`, whose "
            "configs follow the layers, or merge it first."
        )
    return model


def check_layers(layers: Iterable[int], num_layers: int) -> set[int]:
    """Return `layers` as a set, or raise a ValueError that says which number is wrong."""
    numbers = [operator.index(layer) for layer in layers]
    wrong = [layer for layer in numbers if not 0 <= layer < num_layers]
    if wrong:
        raise ValueError(f"`layers` contains {wrong}, expected numbers from 0 to {num_layers - 1}.")
    if len(set(numbers)) < len(numbers):
        raise ValueError(f"`layers` is {numbers}, expected each number once.")
    if len(numbers) == num_layers:
        raise ValueError(f"`layers` names all {num_layers} layers, at least one has to stay.")
    return set(numbers)


def check_cuts(layers: Iterable[int], seams: Iterable[tuple[int, int]], num_layers: int) -> list[Cut]:
    """Return the layers and seams that are to go, or raise a ValueError that says which of them is wrong."""
    cuts: list[Cut] = [*sorted(check_layers(layers, num_layers))]
    for seam in seams:
        numbers = tuple(operator.index(layer) for layer in seam)
        if len(numbers) != 2 or numbers[1] != numbers[0] + 1 or not 0 <= numbers[0] < num_layers - 1:
            raise ValueError(
                f"`seams` contains {seam!r}, expected pairs of neighbouring layers, from (0, 1) to {(num_layers - 2, num_layers - 1)}."
            )
        if Seam(numbers[0]) in cuts:
            raise ValueError(f"`seams` contains {numbers} twice.")
        cuts.append(Seam(numbers[0]))
    shared = [
        (layer, cut) for cut in cuts if isinstance(cut, Seam) for layer in cuts if layer in (cut.front, cut.back)
    ]
    if shared:
        layer, seam = shared[0]
        raise ValueError(
            f"`layers` contains {layer}, and `seams` {(seam.front, seam.back)}: a half of layer {layer} would go twice. Leave one "
            "of them out."
        )
    if len(cuts) >= num_layers:
        raise ValueError(f"`layers` and `seams` take all {num_layers} layers together, at least one has to stay.")
    return cuts


def reload_config(config: PretrainedConfig) -> PretrainedConfig:
    """Return the config as it is once it is saved and read again."""
    return type(config).from_dict(config.to_dict())


def trimmed_config(config: PretrainedConfig, kept: Kept) -> PretrainedConfig:
    """Return the config that a checkpoint with only what is `kept` has once it is saved and read again.

    Raises:
        UnsupportedArchitectureError, LayerConstraintError: see `trimmed_fields`.
        SurgeryError: the config class refuses the new fields.
    """
    fields = trimmed_fields(config, kept)
    try:
        new = type(config).from_dict(fields)
    except (ValueError, TypeError, StrictDataclassError) as error:
        raise SurgeryError(
            f"{type(config).__name__} refuses the fields of a model without {kept}: {error}. Nothing was changed."
        ) from error
    for name in stale_fields(text_config(new).to_dict()):
        text_config(new).__dict__.pop(name, None)  # the default of the class, which is as wrong
    return new


def is_quantized(model: PreTrainedModel) -> bool:
    """Whether the weights have a form that the config alone does not describe."""
    return getattr(model, "hf_quantizer", None) is not None


def check_tensors(model: PreTrainedModel) -> None:
    """Raise a SurgeryError if a model has tensors, such as a buffer of its own, that would not be loaded again."""
    if not is_quantized(model):
        _compare_shapes(model, build(type(model), reload_config(model.config)), _OTHER_TENSORS)


def _rehearse(model: PreTrainedModel, kept: Kept, has_plain_weights: bool) -> tuple[PreTrainedModel, PreTrainedModel]:
    """Drop the layers of a copy without weights; return it, and the fresh model of the new config that it must equal."""
    rehearsed = build(type(model), reload_config(model.config))
    expected = build(type(model), trimmed_config(model.config, kept))
    if has_plain_weights:
        _compare_shapes(model, rehearsed, _OTHER_TENSORS)
    stacks, edited = tuple(find_stacks(rehearsed)), _cut(rehearsed, expected, kept)
    if edited and not has_plain_weights:
        raise LayerConstraintError(
            f"Cannot drop {kept} of this {model.config.model_type!r} model: {edited[0]} would have "
            "to be edited, which an adapter or quantized weights do not allow. Merge or dequantize the model first."
        )
    _compare_shapes(
        rehearsed,
        expected,
        f"Without {kept}, tensors are left that the new config does not describe",
    )
    _compare_constants(rehearsed, expected, kept, stacks)
    _compare_unstored(rehearsed, expected, kept, stacks)
    return rehearsed, expected


def _cut(model: PreTrainedModel, expected: PreTrainedModel, kept: Kept) -> list[str]:
    """Take the layers out of every stack, edit weights that depend on a layer's number, return the names of those."""
    known = set(model.parameters())
    row, stacks = find_architecture(model.config), find_stacks(model)
    for stack in stacks.values():
        _join(model, stack, kept)
        for layer in reversed(kept.dropped):
            del stack[layer]
    owner = next(iter(stacks)).rpartition(".")[0]
    for edit in row.edits:
        edit(model.get_submodule(owner), expected.get_submodule(owner), kept)
    return [name for name, parameter in model.named_parameters() if parameter not in known]


def _join(model: PreTrainedModel, stack: nn.ModuleList, kept: Kept) -> None:
    """Give each layer that is left the MLP half that it is to have."""
    if not kept.is_joined:
        return
    halves = find_halves(model.config)
    for front, back in kept.joined.items():
        check_parts(stack[front], halves)
        check_parts(stack[back], halves)
        move_mlp_half(stack[front], stack[back], halves)


def _compare_constants(
    rehearsed: PreTrainedModel, expected: PreTrainedModel, kept: Kept, stacks: tuple[str, ...]
) -> None:
    """Inside the layers only numbers may differ, and constants that the model type's row makes good."""
    allowed = {*LAYER_NUMBERS, *find_architecture(expected.config).constants}
    wrong = [
        f"{name}.{attribute}"
        for name, attribute, old, new in differing_constants(rehearsed, expected)
        if name.startswith(tuple(f"{stack}." for stack in stacks))
        and attribute not in allowed
        # A copy of a list of the config, which may say something else of each layer, has to agree with it.
        and not (
            isinstance(old, list) and len(old) == kept.depth and new in (kept.select(old), kept.of_mlps.select(old))
        )
    ]
    _refuse_other_function(wrong, expected, kept)


def _compare_unstored(
    rehearsed: PreTrainedModel, expected: PreTrainedModel, kept: Kept, stacks: tuple[str, ...]
) -> None:
    """Inside the layers nothing that is computed may differ; outside of them it is made anew, if it can be."""
    inside = tuple(f"{stack}." for stack in stacks)
    modules = list(differing_modules(rehearsed, expected))
    buffers = [(f"{owner}.{name}", value) for owner, name, value in differing_buffers(rehearsed, expected)]
    _refuse_other_function([name for name, _ in modules + buffers if name.startswith(inside)], expected, kept)
    unknown = [name for name, value in buffers if value is not None and value.is_meta]
    unknown += [name for name, module in modules if module is not None and module.state_dict()]
    if unknown:
        raise SurgeryError(
            f"Without {kept} of this {expected.config.model_type!r} model, "
            f"{', '.join(unknown[:3])} would have to be made anew, and its code does not say with which values. "
            "Nothing was changed."
        )


def _refuse_other_function(names: list[str], expected: PreTrainedModel, kept: Kept) -> None:
    if names:
        raise SurgeryError(
            f"Without {kept} of this {expected.config.model_type!r} model, layers that stay would "
            f"compute something else, because {', '.join(sorted(names)[:3])} depends on the layer's number. Nothing was "
            "changed."
        )


def _compare_shapes(one: nn.Module, other: nn.Module, what: str) -> None:
    left, right = tensor_shapes(one), tensor_shapes(other)
    differing = sorted(name for name in left.keys() | right.keys() if left.get(name) != right.get(name))
    if differing:
        names = ", ".join(differing[:5]) + (" …" if len(differing) > 5 else "")
        raise SurgeryError(f"{what} ({other.config.model_type!r}): {names}. Nothing was changed.")
