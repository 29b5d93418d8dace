"""What the layer in front of a dropped one takes over, while the model is scored as if it had been dropped."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn


@dataclass(frozen=True)
class Takeover:
    """What a linear map of a layer returns in addition, in place of the layer behind it.

    Attributes:
        module: The linear map.
        weight: (inputs, hidden).
        bias: (hidden,), or None.
        joined: The layer that a seam leaves, in which the map is; None: a whole layer goes.
    """

    module: nn.Module
    weight: torch.Tensor
    bias: torch.Tensor | None = None
    joined: nn.Module | None = None

    @contextmanager
    def watched(self) -> Iterator["Watched"]:
        """See within what the linear map is given."""
        watched = Watched(self)
        handle = self.module.register_forward_pre_hook(watched.see)
        try:
            yield watched
        finally:
            handle.remove()


class Watched:
    """A `Takeover` whose map has run, or will."""

    def __init__(self, takeover: Takeover):
        self._takeover = takeover
        self._inputs: torch.Tensor | None = None

    def see(self, module: nn.Module, args: tuple) -> None:
        """Keep what the map is given."""
        self._inputs = args[0]

    def added(self, like: torch.Tensor) -> torch.Tensor:
        """Return (rows, seq, hidden), what is added to a hidden state: that of the first rows which the map was given."""
        rows, length, _ = like.shape
        inputs, self._inputs = self._inputs, None
        first = inputs.reshape(-1, rows, length, inputs.shape[-1])[0]  # some maps see (rows · seq, size)
        added = first @ self._takeover.weight.to(first.dtype)
        return added if self._takeover.bias is None else added + self._takeover.bias.to(added.dtype)
