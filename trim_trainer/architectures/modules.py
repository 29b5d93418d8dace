"""Where each decoder keeps its layers."""

from collections.abc import Iterable

from torch import nn
from transformers import (
    PreTrainedModel,
)

from .configs import num_layers
from .errors import UnsupportedArchitectureError
from .table import find_architecture


def find_decoder(model: PreTrainedModel) -> nn.Module:
    """Return the module that runs embeddings, layers and final norm, without the head."""
    return model.get_decoder()


def find_stacks(model: PreTrainedModel) -> dict[str, nn.ModuleList]:
    """Return the lists of modules of which each layer has one, by name: mostly one list, the decoder layers.

    Raises:
        UnsupportedArchitectureError: no list, or more than one, is as long as the depth.
    """
    row, depth = find_architecture(model.config), num_layers(model.config)
    lists = {name: module for name, module in model.named_modules() if isinstance(module, nn.ModuleList)}
    if row.stacks:
        lists = {name: module for name, module in lists.items() if name.endswith(row.stacks)}
    else:
        lists = {name: module for name, module in lists.items() if len(module) == depth}
        lists = {name: module for name, module in lists.items() if not _is_inside(name, lists)}
        in_decoder = {id(module) for module in find_decoder(model).modules()}
        inner = {name: module for name, module in lists.items() if id(module) in in_decoder}
        lists = inner or lists  # a vision tower may have as many layers
    if len(lists) != max(1, len(row.stacks)):
        raise UnsupportedArchitectureError(
            f"{type(model).__name__} ({model.config.model_type!r}) has {len(lists)} lists of {depth} modules "
            f"({', '.join(lists) or 'none'}), so it is not clear which are its layers."
        )
    return lists


def _is_inside(name: str, others: Iterable[str]) -> bool:
    return any(name.startswith(f"{other}.") for other in others)


def find_layers(model: PreTrainedModel) -> nn.ModuleList:
    """Return the list of decoder layers of a causal LM.

    Raises:
        UnsupportedArchitectureError: see `find_stacks`; or the model has no language-modelling head, or layers that are
            spread over several lists, so no layer can be scored.
    """
    stacks = find_stacks(model)
    if model.get_output_embeddings() is None:
        raise UnsupportedArchitectureError(
            f"{type(model).__name__} has no language-modelling head, so no layer can be scored. Load the checkpoint "
            "with `AutoModelForCausalLM`."
        )
    if len(stacks) > 1:
        raise UnsupportedArchitectureError(
            f"{model.config.model_type!r} keeps the parts of a layer in {', '.join(stacks)}, so no layer can be scored. "
            "Choose the layers yourself and call `drop_layers`."
        )
    return next(iter(stacks.values()))
