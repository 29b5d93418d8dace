"""Passes over examples that show what modules are given and return, and that may begin in the middle of the model."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from functools import partial
from types import MappingProxyType

import torch
from torch import nn
from transformers import PreTrainedModel

from ..architectures.modules import find_layers
from ..data.examples import ScoredExample
from .batches import Batch, make_batches
from .hooks import hidden_of, plain_forward
from .processes import from_main, share
from .projection import Enough
from .scored_positions import no_logits
from .trial import MISFITS

Begin = tuple[int, Sequence[torch.Tensor]]  # number of a layer; what it is given in each pass, (tokens, hidden)


@torch.no_grad()
def record(
    model: PreTrainedModel,
    examples: list[ScoredExample],
    batch_tokens: int | None = None,
    precision: Callable[[], AbstractContextManager] = nullcontext,
    outputs: Sequence[nn.Module] = (),
    inputs: Sequence[nn.Module] = (),
    begin: Begin | None = None,
    is_shared: bool = True,
    beside: Mapping[int, Sequence[nn.Module]] = MappingProxyType({}),
) -> Iterator[list[torch.Tensor]]:
    """Yield, per pass of this process, (tokens, size) for each module: the outputs of some, then the inputs of others.

    Args:
        model: A causal LM. Layers behind the last of the modules do not run.
        examples: Whose tokens are seen, in the same passes each time.
        batch_tokens: Tokens that one pass carries at most.
        precision: Makes the context in which the model runs, such as autocast.
        outputs: Modules whose hidden state is seen.
        inputs: Modules whose first argument is seen.
        begin: A layer, and what an earlier call has seen it being given: layers in front of it do not run. See
            `begins_midway`.
        is_shared: Several processes share the passes.
        beside: Number of a layer -> modules that run on what it is given, and are no part of the model.
    """
    found: dict[int, torch.Tensor] = {}
    was_training = model.training

    def keep(place, value):
        found[place] = value
        if len(found) == len(outputs) + len(inputs):
            raise Enough

    def leave(module, args, output, place):
        keep(place, hidden_of(output))

    def enter(module, args, kwargs, place):
        keep(place, args[0] if args else next(iter(kwargs.values())))

    def run_beside(layer, args, kwargs, others):
        for other in others:
            other(*args, **kwargs)

    batches = make_batches(model, examples, False, batch_tokens)
    model.eval()
    with ExitStack() as hooks:
        for number, others in beside.items():
            hook = partial(run_beside, others=others)
            hooks.callback(find_layers(model)[number].register_forward_pre_hook(hook, with_kwargs=True).remove)
        hooks.callback(model.train, was_training)
        for number, batch in enumerate(share(batches, model) if is_shared else batches):
            found.clear()
            with ExitStack() as watched, suppress(Enough), precision(), plain_forward(model):
                if begin is not None:
                    watched.enter_context(_begun_at(model, begin[0], begin[1][number], batch))
                for place, module in enumerate(outputs):
                    watched.callback(module.register_forward_hook(partial(leave, place=place)).remove)
                for place, module in enumerate(inputs, len(outputs)):
                    watched.callback(
                        module.register_forward_pre_hook(partial(enter, place=place), with_kwargs=True).remove
                    )
                model(**batch.inputs, use_cache=False, **no_logits(model))
            rows = [found[place].view(*batch.shape, -1) for place in range(len(found))]  # some see (rows · seq, size)
            yield [values[batch.counted_rows, batch.counted_positions] for values in rows]


def begins_midway(model: PreTrainedModel, examples: list[ScoredExample], number: int) -> bool:
    """Say whether a pass that begins at a layer gives what a whole one does, by trying it on the shortest example.

    It does not where layers hand on more than a hidden state, or take something from others that have run.
    """
    layers = find_layers(model)
    shortest = [min(examples, key=lambda example: example.num_tokens)]
    seen = partial(record, model, shortest, outputs=[layers[-1]], inputs=[layers[number]], is_shared=False)
    try:
        ((whole, given),) = seen()
        ((begun, _),) = seen(begin=(number, [given]))
        is_same = torch.equal(whole, begun)
    except MISFITS:  # a layer misses what did not run
        is_same = False
    return from_main(is_same)


@contextmanager
def _begun_at(model: PreTrainedModel, number: int, state: torch.Tensor, batch: Batch) -> Iterator[None]:
    """Give a layer a state (tokens, hidden) whatever is in front of it, and let the layers there hand on what they get."""
    layers = find_layers(model)
    whole = state.new_zeros(*batch.shape, state.shape[-1])
    whole[batch.counted_rows.to(state.device), batch.counted_positions.to(state.device)] = state

    def enter(layer, args):
        hidden, *others = args
        return (whole.to(hidden), *others)

    with ExitStack() as undone:
        undone.callback(layers[number].register_forward_pre_hook(enter).remove)
        for layer in layers[:number]:
            own = vars(layer).get("forward")
            layer.forward = lambda hidden, *args, **kwargs: hidden
            undone.callback(_restore, layer, own)
        yield


def _restore(layer: nn.Module, forward) -> None:
    if forward is None:
        del layer.forward
    else:
        layer.forward = forward
