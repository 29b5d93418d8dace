"""A process of its own for each measurement, so that none finds what another left in memory."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

import torch

Result = TypeVar("Result")


def run_alone(function: Callable[..., Result], *arguments) -> Result:
    """Call a function of a module in a new process, with as many threads as here, and return its result.

    The process ends when this one does, however that ends.

    Where there is an accelerator, the process starts anew: libraries initialize a GPU when they are imported
    (bitsandbytes 0.50 does), and a process that is forked behind that cannot use it. Elsewhere it is forked, where the
    system can, from a server that has imported the package and done nothing else, and does not wait for imports.

    Raises:
        ChildProcessError: the process was killed, as the system does where memory runs out.
    """
    context = multiprocessing.get_context(_start_method())
    context.set_forkserver_preload([function.__module__])
    with ProcessPoolExecutor(1, mp_context=context) as process:
        try:
            return process.submit(_with_threads, torch.get_num_threads(), function, arguments).result()
        except BrokenProcessPool:
            raise ChildProcessError(
                "The process that trains or measures was killed from outside, as the system does where memory runs out (its log "
                "says so: `dmesg`). Run less beside it, or let it need less: smaller batches, `scan_batch_tokens`."
            ) from None


def _start_method() -> str:
    if torch.accelerator.is_available() or "forkserver" not in multiprocessing.get_all_start_methods():
        return "spawn"
    return "forkserver"


def _with_threads(num_threads: int, function: Callable[..., Result], arguments: tuple) -> Result:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # the parent says that it was interrupted, once
    torch.set_num_threads(num_threads)
    return function(*arguments)


def _end_with_parent() -> None:
    """A killed parent stops nothing by itself: a training run would go on for hours, unseen."""
    multiprocessing.parent_process().join()
    os._exit(1)
