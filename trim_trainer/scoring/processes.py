"""Work that several processes share: each takes every n-th piece, sums are over all, one decides for all."""

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import TypeVar

import torch
from accelerate.utils import broadcast_object_list
from torch import distributed, nn
from torch.distributed.fsdp import FSDPModule

Piece = TypeVar("Piece")
Value = TypeVar("Value")


def num_processes() -> int:
    """Number of processes that run this code together: 1 without `torch.distributed`."""
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def _can_share(model: nn.Module) -> bool:
    # Where every layer is spread over all processes, all of them have to run the same batches.
    return num_processes() > 1 and not isinstance(model, FSDPModule)


def share(pieces: Iterable[Piece], model: nn.Module) -> Iterator[Piece]:
    """Yield the pieces of this process: all of them where there is only one, or where `model` is sharded."""
    if not _can_share(model):
        return iter(pieces)
    return islice(pieces, distributed.get_rank(), None, num_processes())


def sum_over_processes(*tensors: torch.Tensor, model: nn.Module) -> tuple[torch.Tensor, ...]:
    """Sum what `share` spread over the processes. Tensors travel on the device of `model`, and come back on the CPU."""
    if not _can_share(model):
        return tensors
    moved = [tensor.to(model.device) for tensor in tensors]
    for tensor in moved:
        distributed.all_reduce(tensor)
    return tuple(tensor.cpu() for tensor in moved)


def from_main(value: Value) -> Value:
    """Return what the main process has, so that a decision is the same in all of them."""
    if num_processes() == 1:
        return value
    values = [value]
    broadcast_object_list(values)
    return values[0]
