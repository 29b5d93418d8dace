"""The last linear map of a layer whose output reaches that of the layer, found by moving it and looking."""

from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from ..architectures.errors import UnsupportedArchitectureError
from ..architectures.kept import Seam
from ..architectures.modules import find_layers
from ..data.examples import ScoredExample
from .batches import make_batches
from .finite import check_finite
from .hooks import hidden_of, plain_forward
from .scored_positions import no_logits

# Share of a step that may come out as something else: rounding, in single precision and in 16 bits.
ROUNDING, ROUNDING_16 = 1e-4, 2e-2


@dataclass(frozen=True)
class Projection:
    """The last linear map of a decoder layer: what it returns is added to the hidden state, times `scale`."""

    module: nn.Linear | Conv1D
    scale: float

    @torch.no_grad()
    def change(self, by: torch.Tensor) -> None:
        """Add (inputs, hidden) to what the map returns per input; with a bias, the last input is 1."""
        weight, bias = self.module.weight, self.module.bias
        by = (by / self.scale).to(weight.device, torch.float32)
        if bias is not None:
            bias.copy_(bias.float() + by[-1])
            by = by[:-1]
        weight.copy_(weight.float() + (by.T if isinstance(self.module, nn.Linear) else by))


def check_compensation(model: PreTrainedModel, example: ScoredExample) -> None:
    """Raise an UnsupportedArchitectureError if a layer could not stand in for those behind it."""
    find_projections(model, range(len(find_layers(model))), example)


class Enough(Exception):
    """Ends a forward pass whose remaining layers nobody looks at."""


def find_projection(model: PreTrainedModel, number: int, example: ScoredExample) -> Projection:
    """Find that of one layer, see `find_projections`."""
    return find_projections(model, [number], example)[number]


@torch.no_grad()
def find_projections(
    model: PreTrainedModel,
    numbers: Iterable[int],
    example: ScoredExample,
    joined: Mapping[Seam, nn.Module] = MappingProxyType({}),
) -> dict[int | Seam, Projection]:
    """Find the last linear map of layers whose output reaches that of the layer as it is, by moving it and looking.

    Args:
        model: A causal LM.
        numbers: Of the layers.
        example: On which it is looked.
        joined: Layers that seams leave, and that are no part of the model.

    Raises:
        DivergedError: the model returns numbers that are not finite.
        UnsupportedArchitectureError: there is none: a norm or a gate stands behind the last one, or experts do the work; or
            the layer sees something else than a state per token.
    """
    layers, was_training = find_layers(model), model.training
    places = {**{number: number for number in sorted(numbers)}, **{seam: seam.front for seam in joined}}
    (batch,) = make_batches(model, [example], False)
    calls: dict[int, tuple] = {}

    def enter(layer, *call, number):
        calls[number] = call
        if len(calls) == len(set(places.values())):
            raise Enough

    model.eval()
    with ExitStack() as hooks:
        hooks.callback(model.train, was_training)
        hooks.enter_context(torch.autocast(model.device.type, enabled=False))
        with ExitStack() as watched, suppress(Enough), plain_forward(model):
            for number in set(places.values()):
                hook = partial(enter, number=number)
                watched.callback(layers[number].register_forward_pre_hook(hook, with_kwargs=True).remove)
            model(**batch.inputs, use_cache=False, **no_logits(model))
        return {
            place: _find(model, joined.get(place) or layers[number], place, *calls[number], batch.shape)
            for place, number in places.items()
        }


def check_plain(model: PreTrainedModel) -> None:
    """Raise an UnsupportedArchitectureError for weights that no solution can be written to, whatever stands behind them."""
    weights = list(find_layers(model).named_parameters())
    rules = {
        "under an adapter": any(".base_layer." in name for name, _ in weights),
        "quantized": not all(weight.is_floating_point() for _, weight in weights),
        "not in memory": any(weight.is_meta for _, weight in weights),
    }
    if why := next((why for why, is_so in rules.items() if is_so), None):
        raise UnsupportedArchitectureError(
            f"Weights of {type(model).__name__} are {why}, so no layer can stand in for those behind it. Set "
            "`compensation_size` to 0, or leave `compensation` out."
        )


def _find(
    model: PreTrainedModel, layer: nn.Module, name: int | Seam, args: tuple, kwargs: dict, shape: tuple[int, int]
) -> Projection:
    ran = []
    others = [other for other in find_layers(model) if other is not layer]
    elsewhere = {module for other in others for module in other.modules()}  # shared with others
    run = partial(layer, *args, **kwargs)
    with ExitStack() as hooks:
        for module in layer.modules():
            if isinstance(module, nn.Linear | Conv1D) and module not in elsewhere:
                hooks.callback(module.register_forward_hook(lambda module, args, output: ran.append(module)).remove)
        before = hidden_of(run())
    check_finite(before, model)
    # Some see another sequence than that of the tokens: patches of bytes, or a prompt in front.
    sees_tokens = before.shape[:2] == shape
    for module in reversed(list(dict.fromkeys(ran))) if sees_tokens else ():
        scale = _reach(run, before.float(), module)
        if scale is not None:
            return Projection(module, scale)
    raise UnsupportedArchitectureError(
        f"Layer {name} of {type(model).__name__} has no linear map whose output is added to the hidden state of each token "
        "as it is, so it cannot stand in for the layers behind it. Set `compensation_size` to 0."
    )


def _reach(run: Callable[[], torch.Tensor], before: torch.Tensor, module: nn.Module) -> float | None:
    """How many times its length a step of a module's output goes in the layer's; None: it comes out as another one."""
    generator = torch.Generator().manual_seed(0)
    step = torch.randn(before.shape, generator=generator).to(before.device)
    step = step / step.norm(dim=-1, keepdim=True) * before.norm(dim=-1, keepdim=True)

    def move(module, args, output):
        if isinstance(output, torch.Tensor) and output.numel() == step.numel():
            return output + step.view(output.shape).to(output.dtype)
        return output

    handle = module.register_forward_hook(move)
    try:
        moved = hidden_of(run()).float() - before
    finally:
        handle.remove()
    scale = ((moved * step).sum() / step.square().sum()).item()
    rounding = ROUNDING if module.weight.dtype == torch.float32 else ROUNDING_16
    is_whole = (moved - scale * step).norm() <= rounding * step.norm()  # false where anything is not finite
    return scale if is_whole and abs(scale) > rounding else None
