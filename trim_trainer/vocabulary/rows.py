"""The rows of a model that stand for tokens: embedding and head, tied or not, with biases and adapters on them."""

import copy

import torch
from accelerate.utils import is_peft_model
from torch import nn
from transformers import PreTrainedModel

from ..architectures.configs import text_config
from ..surgery.blueprint import build, tensor_shapes
from .errors import VocabularyError
from .token_ids import SIZE, check_counts, ids_in, renumber, resize

# Attributes of modules that say how many tokens there are, or which one pads.
_SIZES = (SIZE, "num_embeddings", "out_features", "in_features")
_PADDING = "padding_idx"


def base_of(model: nn.Module) -> PreTrainedModel:
    """The model inside of adapters."""
    return model.get_base_model() if is_peft_model(model) else model


def num_rows(model: nn.Module) -> int:
    """Of the embedding: tokens that the model knows, and rows that stand for none.

    Raises:
        VocabularyError: embedding and head have other numbers of them, or are quantized.
    """
    base = base_of(model)
    sizes = {name: _weight(module, name).shape[0] for name, module in _token_modules(base).items()}
    if len(set(sizes.values())) > 1:
        raise VocabularyError(
            f"`vocab_size` cannot be changed: {type(base).__name__} has "
            f"{' and '.join(f'{size} rows in its {name}' for name, size in sizes.items())}. Leave `vocab_size` out."
        )
    return next(iter(sizes.values()))


def check_rows(model: nn.Module, num_tokens: int) -> None:
    """Raise a VocabularyError for a model that counts tokens where it is not known, or has too few rows for a tokenizer.

    Args:
        model: A causal LM, with an adapter or without.
        num_tokens: Of the tokenizer.
    """
    base, size = base_of(model), num_rows(model)
    if num_tokens > size:
        raise VocabularyError(
            f"`vocab_size` cannot be changed: the tokenizer has {num_tokens:,} tokens, the model {size:,} rows for them. "
            "Pass the model's own tokenizer."
        )
    check_counts(base.config, size)
    _check_tensors(base, size)
    for module in base.modules():
        if getattr(module, "token_indices", None) is not None or hasattr(module, "trainable_tokens_delta"):
            raise VocabularyError(
                "`vocab_size` cannot be changed: the adapter trains single tokens (`trainable_token_indices`). Make the "
                "vocabulary smaller first, with `trim-trainer drop --vocab-size`."
            )


def _check_tensors(base: PreTrainedModel, size: int) -> None:
    """Look at the model without weights, as its config describes it with one token more: only known rows are to follow."""
    more = copy.deepcopy(base.config)
    resize(more, size, size + 1)
    model, larger = build(type(base), base.config), tensor_shapes(build(type(base), more))
    rows = {
        id(tensor)
        for module in _token_modules(model).values()
        for tensor in module.state_dict(keep_vars=True).values()
    }
    tensors = model.state_dict(keep_vars=True)
    for name, tensor in tensors.items():
        expected = (
            [size + 1 if each == size else each for each in tensor.shape] if id(tensor) in rows else tensor.shape
        )
        if list(larger.get(name, ())) != list(expected):
            raise VocabularyError(
                f"`vocab_size` cannot be changed: in {type(base).__name__} `{name}` does not follow the {size:,} tokens of the "
                "config as a row for each would, and what it does is not known. Leave `vocab_size` out."
            )


def needed_ids(model: nn.Module) -> dict[str, list[int]]:
    """Token ids that the model's configs name, by their fields."""
    base = base_of(model)
    found = ids_in(base.config)
    for name, ids in ids_in(base.generation_config).items() if base.generation_config is not None else ():
        found[name] = [*found.get(name, []), *ids]
    return found


def select_rows(model: nn.Module, ids: tuple[int, ...]) -> None:
    """Keep these rows of embedding and head, in this order, in place; configs are rewritten.

    Args:
        model: A causal LM that `check_rows` has passed.
        ids: Old ids, at their new places.
    """
    base, size = base_of(model), num_rows(model)
    new_ids, order = {old: new for new, old in enumerate(ids)}, torch.tensor(ids)
    selected: dict[int, nn.Parameter | torch.Tensor] = {}
    for top in _token_modules(base).values():
        for module in top.modules():
            for tensor in [*module._parameters.values(), *module._buffers.values()]:
                if tensor is not None and size in tensor.shape and id(tensor) not in selected:
                    selected[id(tensor)] = _select(tensor, tensor.shape.index(size), order)
            for name in _SIZES:
                if vars(module).get(name) == size:
                    setattr(module, name, len(ids))
    padding = getattr(text_config(base.config), "pad_token_id", None)
    for module in base.modules():  # some hold a row that another one holds too, such as a bias
        for tensors in (module._parameters, module._buffers):
            tensors.update({name: selected[id(old)] for name, old in tensors.items() if id(old) in selected})
        if vars(module).get(SIZE) == size:
            module.vocab_size = len(ids)
        if padding is not None and vars(module).get(_PADDING) == padding:
            module.padding_idx = new_ids[padding]
    for config in filter(None, (base.config, base.generation_config)):
        renumber(config, new_ids)
    resize(base.config, size, len(ids))


def _select(tensor: torch.Tensor, dimension: int, order: torch.Tensor) -> torch.Tensor:
    rows = tensor.detach().index_select(dimension, order.to(tensor.device)).clone()
    return nn.Parameter(rows, requires_grad=tensor.requires_grad) if isinstance(tensor, nn.Parameter) else rows


def _token_modules(base: PreTrainedModel) -> dict[str, nn.Module]:
    """Embedding and head, by their names."""
    found = {"embedding": base.get_input_embeddings(), "head": base.get_output_embeddings()}
    return {name: module for name, module in found.items() if module is not None}


def _weight(module: nn.Module, name: str) -> torch.Tensor:
    weight = getattr(getattr(module, "base_layer", getattr(module, "original_module", module)), "weight", None)
    if weight is None or not weight.is_floating_point() or weight.dim() != 2:
        raise VocabularyError(
            f"`vocab_size` cannot be changed: the {name} is a {type(module).__name__}, whose rows cannot be taken apart, as "
            "where it is quantized. Make the vocabulary smaller first, with `trim-trainer drop --vocab-size`."
        )
    return weight
