"""Which parameters train: the sparse update."""

import math
from collections.abc import Iterable

from torch import nn
from torch.utils.weak import WeakTensorKeyDictionary
from transformers import PreTrainedModel

from ..architectures.modules import find_layers
from ..surgery.wrapping import hold_shards


def choose_trained_layers(
    scores: tuple[float, ...], ratio: float, num_layers: int, still_trained: Iterable[int] = ()
) -> tuple[int, ...]:
    """Choose the layers of the sparse update: those most likely to be kept (TrimLLM, arXiv 2412.11242).

    A layer that trains goes on training while it is there, so its optimizer state is not thrown away at each round;
    the places of dropped ones go to the highest scores.

    Args:
        scores: One per layer of the model as it is now, higher = keep.
        ratio: Share of the layers that trains, in (0, 1].
        num_layers: Depth of the untrimmed model, of which `ratio` is the share.
        still_trained: Numbers of layers that train already.

    Returns:
        Their numbers, in rising order.
    """
    number = min(max(1, math.ceil(ratio * num_layers)), len(scores))
    trained = list(still_trained)[:number]
    # Of two equal scores the later layer: its gradient costs less of the backward pass.
    by_score = sorted(range(len(scores)), key=lambda layer: (scores[layer], layer), reverse=True)
    trained += [layer for layer in by_score if layer not in trained][: number - len(trained)]
    return tuple(sorted(trained))


def freeze_all_but(
    model: PreTrainedModel, trained_layers: Iterable[int], wanted: "WantedTraining | None" = None
) -> None:
    """Let the parameters of these layers train and nothing else: no embedding, head, final norm or other layer.

    Args:
        model: It may have lost layers.
        trained_layers: Their numbers, as the model is now.
        wanted: What the script wanted to train; None: everything.
    """
    hold_shards(model)
    layers = find_layers(model)
    trained = {parameter for number in trained_layers for parameter in layers[number].parameters()}
    for parameter in model.parameters():
        trains = parameter in trained and (wanted is None or wanted.trains(parameter))
        parameter.requires_grad_(trains)
        if not trains:
            parameter.grad = None


class WantedTraining:
    """Which parameters a script lets train, before a sparse update freezes more; also of layers that are gone since."""

    def __init__(self, model: nn.Module):
        self._trains: WeakTensorKeyDictionary = WeakTensorKeyDictionary()
        for parameter in model.parameters():
            self._trains[parameter] = parameter.requires_grad

    def trains(self, parameter: nn.Parameter) -> bool:
        """Whether it does; one that is not known, as a shard that FSDP made of it, does."""
        return self._trains.get(parameter, True)

    def bring_back(self) -> None:
        """Let train again what did, in place."""
        for parameter, trains in self._trains.items():
            parameter.requires_grad_(trains)
