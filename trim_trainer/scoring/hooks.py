"""What hangs on a model's layers while it is scored: a candidate that skips a layer, norms on the way."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from ..architectures.configs import text_config
from ..architectures.modules import find_layers
from ..architectures.table import find_architecture
from .batches import Batch
from .takeover import Takeover


@contextmanager
def stagger(
    stack: nn.ModuleList, candidates: list[int], batch: Batch, takeovers: Mapping[int, Takeover]
) -> Iterator[None]:
    """Let each candidate join the batch behind the layer that it skips, with what is taken over in its place."""
    num_rows = batch.shape[0]
    before = {}  # candidate -> hidden state in place of what the skipped layer returns, (rows, seq, hidden)
    watched = {}  # candidate -> what the layer in front of it takes over

    def widen(value, copies):
        if isinstance(value, torch.Tensor) and value.ndim > 1 and value.shape[0] == num_rows:
            return value.repeat(copies, *[1] * (value.ndim - 1))
        if isinstance(value, tuple):
            return tuple(widen(entry, copies) for entry in value)
        return value

    def enter(number):
        def hook(layer, args, kwargs):
            hidden, *others = args
            if number in candidates:
                state = hidden[:num_rows]
                before[number] = state + watched[number].added(state) if number in watched else state
            copies = len(hidden) // num_rows
            return (hidden, *(widen(other, copies) for other in others)), {
                name: widen(value, copies) for name, value in kwargs.items()
            }

        return hook

    def leave(number):
        def hook(layer, args, kwargs, output):
            return _replace_hidden(output, torch.cat([hidden_of(output), before.pop(number)]))

        return hook

    with ExitStack() as hooks:
        for number in takeovers.keys() & set(candidates):
            watched[number] = hooks.enter_context(takeovers[number].watched())
        for number, layer in enumerate(stack):
            if candidates:
                hooks.callback(layer.register_forward_pre_hook(enter(number), with_kwargs=True).remove)
            if number in candidates:
                hooks.callback(layer.register_forward_hook(leave(number), with_kwargs=True).remove)
        yield


@contextmanager
def record_squares(stack: nn.ModuleList, batch: Batch) -> Iterator[list[torch.Tensor]]:
    """Collect, per layer, (counted,): the squared norm of its output at each token; NaN where it has another shape."""
    squares = []

    def hook(layer, args, output):
        hidden = hidden_of(output)
        if isinstance(hidden, torch.Tensor) and hidden.shape[1:2] == batch.shape[1:] and hidden.ndim == 3:
            of_tokens = hidden[: batch.shape[0]].float().square().sum(-1)  # (rows, seq)
            squares.append(of_tokens[batch.counted_rows, batch.counted_positions] * batch.counts)
        else:
            squares.append(torch.full(batch.counts.shape, torch.nan))

    with ExitStack() as hooks:
        for layer in stack:
            hooks.callback(layer.register_forward_hook(hook).remove)
        yield squares


@contextmanager
def skip_layer(model: PreTrainedModel, number: int, takeover: Takeover | None = None) -> Iterator[None]:
    """Make a layer hand on what it is given: the hidden state, and the state beside it where the model type has one.

    To the hidden state is added what the layer in front takes over.
    """
    num_carried = find_architecture(model.config).num_carried

    def hook(layer, args, output):
        hidden, *others = args[: 1 + num_carried]
        hidden = hidden if watched is None else hidden + watched.added(hidden)
        if isinstance(output, tuple | list):
            return type(output)((hidden, *others, *output[1 + num_carried :]))
        return hidden

    with ExitStack() as hooks:
        watched = None if takeover is None else hooks.enter_context(takeover.watched())
        hooks.callback(find_layers(model)[number].register_forward_hook(hook).remove)
        yield


def hidden_of(output) -> torch.Tensor:
    """The hidden state among what a layer returns."""
    return output[0] if isinstance(output, tuple | list) else output


def _replace_hidden(output, hidden):
    return type(output)((hidden, *output[1:])) if isinstance(output, tuple | list) else hidden


@contextmanager
def plain_forward(model: PreTrainedModel) -> Iterator[None]:
    """Undo what a trainer hung on `model.forward` (autocast, a fused head): the model as `from_pretrained` gives it.

    Nor does it compute the routers' balance of experts, which is a part of training: models without a router, or with
    masks of packed rows, may fail at it.
    """
    wrapped = model.__dict__.pop("forward", None)
    try:
        with _without_router_loss(model.config):
            yield
    finally:
        if wrapped is not None:
            model.forward = wrapped


@contextmanager
def _without_router_loss(config: PreTrainedConfig) -> Iterator[None]:
    asked = [each for each in (config, text_config(config)) if getattr(each, "output_router_logits", False)]
    for each in asked:
        each.output_router_logits = False
    try:
        yield
    finally:
        for each in asked:
            each.output_router_logits = True
