"""Changes to weights that keep a trimmed model's function where a constant comes from a layer's number or the depth.

An edit is called after the layers are gone: `edit(decoder, expected, kept)`, with the module that holds the layers of the
model, its counterpart of a fresh model of the new config (whose constants are those that a reload will have), and the
layers that stay. It puts new parameters in place of old ones, never changes values in place, so that a backup of the
modules can bring the old ones back.
"""

import math

import torch
from torch import nn

from .kept import Kept


def fold_residual_scale(decoder: nn.Module, expected: nn.Module, kept: Kept) -> None:
    """Beam adds branch r of the stack as x·sqrt((r-1)/r) + f(x)/sqrt(r); another r is a scale of x and of f(x).

    With r → s the stream becomes the old one times c, c² changing by [r/(r-1)]·[(s-1)/s] at each addition; the branch is
    a norm of the stream, so its own weight takes what is left. The final norm does not see c.
    """
    scale = 1.0
    for layer, new in zip(decoder.layers, expected.layers, strict=True):
        for norm, index in (("post_attention_layernorm", "attn"), ("post_feedforward_layernorm", "mlp")):
            old_index, new_index = (getattr(one, f"{index}_residual_add_idx") for one in (layer, new))
            after = scale * math.sqrt((new_index - 1) / new_index * old_index / (old_index - 1))
            factor, scale = after * math.sqrt(new_index / old_index), after
            _replace(getattr(layer, norm), "weight", lambda w, f=factor: w * f)


def fold_lambda(decoder: nn.Module, expected: nn.Module, kept: Kept) -> None:
    """DiffLlama's lambda_init: the difference goes into lambda_k1, the factor (1 - lambda_init) into o_proj."""
    for layer, new in zip(decoder.layers, expected.layers, strict=True):
        attention, before, after = layer.self_attn, layer.self_attn.lambda_init, new.self_attn.lambda_init
        if before == after:
            continue
        _replace(attention.o_proj, "weight", lambda w, f=(1 - before) / (1 - after): w * f)
        q1, k1 = attention.lambda_q1.double(), attention.lambda_k1.double()
        # exp(q1·k1) has to grow by `before - after`: moves k1 along q1. Below zero there is no such k1.
        wanted = torch.exp((q1 * k1).sum()) + before - after
        move = (torch.log(wanted) - (q1 * k1).sum()) / q1.square().sum()
        _replace(attention, "lambda_k1", lambda w, m=move * q1: w.double() + m)


def fold_query_scale(decoder: nn.Module, expected: nn.Module, kept: Kept) -> None:
    """GPT-2's scale_attn_by_inverse_layer_idx: the query's third of c_attn takes the ratio of the scales."""
    for layer, new in zip(decoder.h, expected.h, strict=True):
        ratio = layer.attn.scaling / new.attn.scaling
        if ratio == 1:
            continue
        projection, size = layer.attn.c_attn, layer.attn.embed_dim
        factors = torch.cat([torch.full((size,), ratio), torch.ones(2 * size)]).to(projection.weight.device)
        for name in ("weight", "bias"):  # (hidden, 3 * hidden) and (3 * hidden,)
            _replace(projection, name, lambda w, f=factors: w * f)


def add_last_bias(decoder: nn.Module, expected: nn.Module, kept: Kept) -> None:
    """GPT-NeoX-Japanese gives its last layer a bias: a new last layer gets zeros."""
    attention = decoder.layers[-1].attention
    if attention.dense_bias is None:
        weight = attention.dense.weight
        attention.dense_bias = nn.Parameter(weight.new_zeros(weight.shape[0]), requires_grad=weight.requires_grad)


def drop_first_router_scale(decoder: nn.Module, expected: nn.Module, kept: Kept) -> None:
    """Zaya's first layer has no router state before it to scale."""
    decoder.layers[0].mlp.gate._parameters.pop("router_states_scale", None)


def select_layer_inputs(decoder: nn.Module, expected: nn.Module, kept: Kept) -> None:
    """Gemma 3n and 4 pack an embedding per layer into one table: (vocab, depth * size) and (depth * size, hidden)."""
    if not getattr(decoder, "hidden_size_per_layer_input", None):
        return

    def rows(weight: torch.Tensor) -> torch.Tensor:
        return weight.unflatten(0, (kept.depth, -1))[list(kept.layers)].flatten(0, 1)

    _replace(decoder.embed_tokens_per_layer, "weight", lambda w: rows(w.T).T.contiguous())
    _replace(decoder.per_layer_model_projection, "weight", rows)


def select_adapters(decoder: nn.Module, expected: nn.Module, kept: Kept) -> None:
    """Zamba 2's shared blocks hold an adapter for each `hybrid` layer."""
    before = next(m.layer_dic for m in decoder.modules() if hasattr(m, "layer_dic"))  # layer -> place of its adapter
    gone = sorted((place for layer, place in before.items() if layer not in kept.layers), reverse=True)
    for module in decoder.modules():
        for name, child in module.named_children():
            if name.endswith("_adapter_list"):
                setattr(module, name, nn.ModuleList(a for place, a in enumerate(child) if place not in gone))


def undo_rescale(decoder: nn.Module, expected: nn.Module, kept: Kept) -> None:
    """RWKV divides weights by 2^(number // rescale_every) when it first runs in evaluation mode: back to what is stored."""
    if not decoder.layers_are_rescaled:
        return
    for block in decoder.blocks:
        factor = 2 ** (block.layer_id // decoder.config.rescale_every) if decoder.config.rescale_every else 1
        for projection in (block.attention.output, block.feed_forward.value):
            _replace(projection, "weight", lambda w, f=factor: w * f)
    decoder.layers_are_rescaled = False


def _replace(module: nn.Module, name: str, change) -> None:
    """Put a new parameter, computed from the old one, in its place. Keeps dtype and whether it trains."""
    old = getattr(module, name)
    with torch.no_grad():
        value = change(old.detach()).to(old.dtype)
    module.register_parameter(name, nn.Parameter(value, requires_grad=old.requires_grad))
