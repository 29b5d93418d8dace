"""Two models compute the same: logits of one batch and greedy tokens, up to what rounding their weights does to them."""

import torch
from torch import nn
from transformers import PreTrainedModel

from ..architectures.configs import text_config

# Endings of the config fields that hold a token's number.
SPECIAL_TOKENS = ("_token_id", "_token_index")
# How far two models may be apart, by share of the positions, in units of what a weight's rounding does: the yardstick
# moves every weight by a whole unit in the last place. Equal weights differ only in how the products of them are added.
OF_EQUAL_WEIGHTS = {0.5: 1, 1.0: 2}
# Merged, or stored in another precision than it was trained in, a weight is rounded once or twice, by half a unit at most.
# A router may send some tokens to another expert for it.
OF_ROUNDED_WEIGHTS = {0.5: 2}
MAX_ROUNDINGS = 2
MIN_ROUNDING = 64 * torch.finfo(torch.float32).eps  # of equal tensors whose storage is aligned differently
INT8_ROUNDING = 2 / 127  # LLM.int8() rounds what it multiplies weights with to 8 bits
EMBEDDED_AT_ONCE = 4096
NUM_NEW_TOKENS = 8


def compare_outputs(model: nn.Module, loaded: PreTrainedModel, has_equal_weights: bool) -> str | None:
    """Say how `loaded` computes something else than `model`; None: it computes the same.

    What rounding does to logits is measured: those of `loaded` with every weight moved by one unit in the last place, to
    either side. So the tolerance is what this model, at this depth, in this precision, makes of rounding.

    Args:
        model: A causal LM, or a `PeftModel` with its adapters active, evaluating.
        loaded: What is compared with it; its weights are not its own any more afterwards.
        has_equal_weights: Without an adapter, or with it apart, not merged; and stored in the precision that `model` has.
    """
    wrong = _compare_embeddings(model, loaded)
    if wrong is not None:
        return wrong
    ids = plain_tokens(loaded).view(2, 13)
    options = {"attention_mask": torch.ones_like(ids)}
    one, other = (each(input_ids=ids, **options).logits.float() for each in (model, loaded))
    options |= {"do_sample": False, "min_new_tokens": NUM_NEW_TOKENS, "max_new_tokens": NUM_NEW_TOKENS}
    options |= {"pad_token_id": 0, "use_cache": True}
    tokens, loaded_tokens = (each.generate(input_ids=ids, **options) for each in (model, loaded))
    _round_weights(loaded, rounding_of(model, loaded))
    rounded = loaded(input_ids=ids, attention_mask=options["attention_mask"]).logits.float()

    least = MIN_ROUNDING * _sizes(one).max().clamp(min=1)
    off, rounding = (_apart(each, other).amax(-1).flatten() for each in (one, rounded))
    for share, roundings in (OF_EQUAL_WEIGHTS if has_equal_weights else OF_ROUNDED_WEIGHTS).items():
        found, allowed = off.quantile(share), torch.maximum(least, roundings * rounding.quantile(share))
        if not found <= allowed:  # nor where it is not a number
            return f"its logits differ by {found:.3g}, where rounding explains {allowed:.3g}"
    allowed = torch.maximum(least, MAX_ROUNDINGS * rounding.max())
    return _compare_tokens(model, tokens, loaded_tokens, ids.shape[1], allowed)


def _compare_embeddings(model: nn.Module, loaded: PreTrainedModel) -> str | None:
    """Every token's embedding, since an adapter may have changed those of a few tokens alone."""
    embed, loaded_embed = (each.get_input_embeddings() for each in (model, loaded))
    vocab_size = loaded_embed.weight.shape[0]
    for ids in torch.arange(vocab_size, device=loaded_embed.weight.device).split(EMBEDDED_AT_ONCE):
        one, other = (each(ids[None])[0].float() for each in (embed, loaded_embed))  # (ids, hidden)
        allowed = 2 * MAX_ROUNDINGS * rounding_of(model, loaded) * _sizes(one).amax(-1)  # computed in as many steps
        wrong = ids[~(_apart(one, other).amax(-1) <= allowed)]
        if len(wrong):
            return f"token {wrong[0].item()} has another embedding"
    return None


def _apart(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """How far numbers are apart; where both are NaN, or infinite alike, as after training that has diverged, not at all."""
    return (one - other).abs().masked_fill((one == other) | (one.isnan() & other.isnan()), 0)


def _sizes(values: torch.Tensor) -> torch.Tensor:
    """How large numbers are that are finite; 0 for others."""
    return values.abs().masked_fill(~values.isfinite(), 0)


def _compare_tokens(model, tokens, loaded_tokens, num_prompt: int, allowed: torch.Tensor) -> str | None:
    """Greedy tokens agree up to the first at which two are as likely, up to the rounding of their logits."""
    for row, loaded_row in zip(tokens, loaded_tokens, strict=True):
        differing = (row != loaded_row).nonzero().flatten()
        if not len(differing):
            continue
        first = int(differing[0])
        logits = model(input_ids=row[None, :first], attention_mask=torch.ones_like(row[None, :first])).logits[0, -1]
        if logits[row[first]].float() - logits[loaded_row[first]].float() > 2 * allowed:
            return f"greedy decoding with the KV cache gives another token at position {first - num_prompt}"
    return None


def rounding_of(model: nn.Module, loaded: PreTrainedModel) -> float:
    """Relative size of one unit in the last place, of the coarsest that either model stores or computes in."""
    dtypes = {each.dtype for one in (model, loaded) for each in one.parameters() if _can_round(each)}
    settings = getattr(model.config, "quantization_config", None)
    if getattr(settings, "load_in_4bit", False):
        dtypes.add(settings.bnb_4bit_compute_dtype)
    rounding = max(torch.finfo(dtype).eps for dtype in dtypes)
    return max(rounding, INT8_ROUNDING) if getattr(settings, "load_in_8bit", False) else rounding


def _round_weights(model: nn.Module, rounding: float) -> None:
    """Move every weight by one unit in the last place, to either side.

    The side is the product of a sign per row and one per column: what it does to a product with an input is as large, in
    the mean square, as with a sign of its own for each weight, which would have to be drawn.
    """
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        if _can_round(parameter):
            moved = parameter.data * rounding
            for dimension, size in enumerate(parameter.shape):
                signs = (torch.randint(2, (size,), generator=generator) * 2 - 1).to(moved)
                moved *= signs.view([-1 if each == dimension else 1 for each in range(moved.ndim)])
            parameter.data.add_(moved)


def _can_round(tensor: torch.Tensor) -> bool:
    return tensor.is_floating_point() and tensor.element_size() > 1


def plain_tokens(model: PreTrainedModel) -> torch.Tensor:
    """(26,): tokens that stand for nothing special, such as an image."""
    special = set()
    for config in (model.config, text_config(model.config)):
        for name, value in config.to_dict().items():
            if name.endswith(SPECIAL_TOKENS):
                special.update(value if isinstance(value, list) else [value])
    vocab_size = model.get_input_embeddings().weight.shape[0]
    plain = [token for token in range(3, vocab_size) if token not in special]
    return torch.tensor((plain * 26)[:26], device=model.device)
