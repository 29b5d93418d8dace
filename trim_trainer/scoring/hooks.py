"""What hangs on a model's layers while it is scored: a candidate that skips a layer, norms on the way."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from ..architectures.configs import text_config
from ..architectures.halves import find_halves
from ..architectures.kept import Cut, Seam
from ..architectures.modules import find_layers
from ..architectures.table import find_architecture
from ..surgery.joining import joined_twin
from .batches import Batch
from .takeover import Takeover


def joined_layers(model: PreTrainedModel, cuts: Iterable[Cut]) -> dict[Seam, nn.Module]:
    """Make, for each seam, the layer that it leaves of two, which shares their weights and is no part of the model."""
    layers = find_layers(model)
    seams = [cut for cut in cuts if isinstance(cut, Seam)]
    return {
        seam: joined_twin(layers[seam.front], layers[seam.back], find_halves(model.config)).eval() for seam in seams
    }


@contextmanager
def stagger(
    stack: nn.ModuleList,
    candidates: list[Cut],
    batch: Batch,
    takeovers: Mapping[Cut, Takeover],
    joined: Mapping[Seam, nn.Module],
) -> Iterator[None]:
    """Let each candidate join the batch behind the layer that it skips, with what is taken over in its place.

    A candidate without a seam has run through the joined layer meanwhile, from the state in front of its first layer.
    """
    num_rows = batch.shape[0]
    before = {}  # candidate -> hidden state in place of what the skipped layers return, (rows, seq, hidden)
    watched = {}  # candidate -> what the layer in front of it takes over
    joining = {}  # number of a layer -> candidates that join behind it
    for cut in candidates:
        joining.setdefault(cut.back if isinstance(cut, Seam) else cut, []).append(cut)
    seams = {cut.front: cut for cut in candidates if isinstance(cut, Seam)}

    def widen(value, copies):
        if isinstance(value, torch.Tensor) and value.ndim > 1 and value.shape[0] == num_rows:
            return value.repeat(copies, *[1] * (value.ndim - 1))
        if isinstance(value, tuple):
            return tuple(widen(entry, copies) for entry in value)
        return value

    def taken_over(cut, state):
        return state + watched[cut].added(state) if cut in watched else state

    def enter(number):
        def hook(layer, args, kwargs):
            hidden, *others = args
            state = hidden[:num_rows]
            if number in candidates:
                before[number] = taken_over(number, state)
            if number in seams:
                seam = seams[number]
                before[seam] = taken_over(seam, hidden_of(joined[seam](state, *others, **kwargs)))
            copies = len(hidden) // num_rows
            return (hidden, *(widen(other, copies) for other in others)), {
                name: widen(value, copies) for name, value in kwargs.items()
            }

        return hook

    def leave(number):
        def hook(layer, args, kwargs, output):
            states = [before.pop(cut) for cut in joining[number]]
            return _replace_hidden(output, torch.cat([hidden_of(output), *states]))

        return hook

    with ExitStack() as hooks:
        for cut in takeovers.keys() & set(candidates):
            watched[cut] = hooks.enter_context(takeovers[cut].watched())
        for number, layer in enumerate(stack):
            if candidates:
                hooks.callback(layer.register_forward_pre_hook(enter(number), with_kwargs=True).remove)
            if number in joining:
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
            squares.append(
                of_tokens[batch.counted_rows.to(hidden.device), batch.counted_positions.to(hidden.device)]
                * batch.counts.to(hidden.device)
            )
        else:
            squares.append(torch.full(batch.counts.shape, torch.nan))

    with ExitStack() as hooks:
        for layer in stack:
            hooks.callback(layer.register_forward_hook(hook).remove)
        yield squares


@contextmanager
def skip(
    model: PreTrainedModel, cut: Cut, takeover: Takeover | None = None, joined: nn.Module | None = None
) -> Iterator[None]:
    """Run the model without a layer, or with a joined layer in place of the two at a seam, which then goes for the second.

    To the hidden state behind what is left is added what is taken over.

    Args:
        model: The model.
        cut: What is skipped.
        takeover: Of the layer in front of a layer, or of the joined one.
        joined: Of a seam, see `joined_layers`.
    """
    layers, num_carried = find_layers(model), find_architecture(model.config).num_carried

    def added(hidden):
        return hidden if watched is None else hidden + watched.added(hidden)

    def hand_on(layer, args, output, state=added):
        hidden, *others = args[: 1 + num_carried]
        if isinstance(output, tuple | list):
            return type(output)((state(hidden), *others, *output[1 + num_carried :]))
        return state(hidden)

    def join(layer, args, kwargs, output):
        return _replace_hidden(output, added(hidden_of(joined(*args, **kwargs))))

    with ExitStack() as hooks:
        watched = None if takeover is None else hooks.enter_context(takeover.watched())
        if isinstance(cut, Seam):
            hooks.callback(layers[cut.front].register_forward_hook(join, with_kwargs=True).remove)
            as_it_is = partial(hand_on, state=lambda hidden: hidden)
            hooks.callback(layers[cut.back].register_forward_hook(as_it_is).remove)
        else:
            hooks.callback(layers[cut].register_forward_hook(hand_on).remove)
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
