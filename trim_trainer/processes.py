"""Work that several processes share: each takes every n-th piece, sums are over all, one decides for all."""

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import TypeVar

import torch
from accelerate.utils import broadcast_object_list
from torch import distributed

Piece = TypeVar("Piece")
Value = TypeVar("Value")


def num_processes() -> int:
    """Number of processes that run this code together: 1 without `torch.distributed`."""
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def share(pieces: Iterable[Piece]) -> Iterator[Piece]:
    """Yield the pieces of this process: all of them where there is only one."""
    rank = distributed.get_rank() if num_processes() > 1 else 0
    return islice(pieces, rank, None, num_processes())


def sum_over_processes(*tensors: torch.Tensor, device: torch.device) -> tuple[torch.Tensor, ...]:
    """Sum each tensor over all processes. They travel on `device`, and come back on the CPU."""
    if num_processes() == 1:
        return tensors
    moved = [tensor.to(device) for tensor in tensors]
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
