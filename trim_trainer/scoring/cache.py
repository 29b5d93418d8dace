"""What a model keeps of each sequence that it goes on with: keys and values, and states of a fixed size."""

from collections import defaultdict
from collections.abc import Iterator

import torch
from transformers import Cache, PreTrainedModel

from ..records.measurement import CacheSize
from .hooks import plain_forward

NUM_CHECKED = 9  # tokens of the cache that tells whether what two smaller ones say is true


@torch.no_grad()
def measure_cache(model: PreTrainedModel, dtype: torch.dtype | None = None) -> CacheSize | None:
    """Read from caches of one and of two tokens how much each layer keeps, as Transformers keeps it.

    Args:
        model: A causal LM.
        dtype: Of keys and values; None: that of the model.

    Returns:
        None: the model keeps something else, or does not grow evenly.
    """
    was_training = model.training
    model.eval()
    try:
        with plain_forward(model), torch.autocast(model.device.type, enabled=False):
            caches = [_cache_of(model, num_tokens) for num_tokens in (1, 2, NUM_CHECKED)]
    finally:
        model.train(was_training)
    if not all(isinstance(cache, Cache) and hasattr(cache, "layers") for cache in caches):
        return None
    sizes = [[_num_bytes(layer, dtype or model.dtype) for layer in cache.layers] for cache in caches]
    growing, fixed = defaultdict(int), 0
    for layer, one, two in zip(caches[1].layers, *sizes[:2], strict=True):
        fixed += 2 * one - two
        if two > one:
            window = getattr(layer, "sliding_window", None)
            growing[window and window - 1] += two - one  # the token that comes is the last of the window
    found = CacheSize(tuple((growth, window) for window, growth in growing.items()), fixed)
    return found if found.num_bytes(NUM_CHECKED) == sum(sizes[2]) else None


def _cache_of(model: PreTrainedModel, num_tokens: int) -> object:
    ids = torch.ones(1, num_tokens, dtype=torch.long, device=model.device)
    return getattr(model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=True), "past_key_values", None)


def _num_bytes(layer, dtype: torch.dtype) -> int:
    grown = [getattr(layer, name, None) for name in ("keys", "values")]
    grown = [each for each in grown if isinstance(each, torch.Tensor)]
    others = [each for each in _tensors(vars(layer)) if not any(each is known for known in grown)]
    return sum(each.numel() for each in grown) * dtype.itemsize + sum(
        each.numel() * each.element_size() for each in others
    )


def _tensors(values: dict) -> Iterator[torch.Tensor]:
    for value in values.values():
        if isinstance(value, torch.Tensor) and value.ndim:  # others count tokens
            yield value
        elif isinstance(value, dict):
            yield from _tensors(value)
