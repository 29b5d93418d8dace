"""Processes that are forked from a server which has imported everything: a fresh one costs no start."""

import multiprocessing
import os
from multiprocessing import forkserver
from pathlib import Path

CONTEXT = multiprocessing.get_context("forkserver")
# The server is one for all tests of a process, and so is this list. Before Python 3.13 it does not get `sys.path`, and
# passes over what it cannot import without a word.
CONTEXT.set_forkserver_preload(
    ["killed_run", "publishing", "trim_trainer.comparison.cells", "trim_trainer.evaluation.checkpoints"]
)
_here, _path = str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")
if _here not in _path:  # else this is the server
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [_here, _path]))
    forkserver.ensure_running()
    os.environ["PYTHONPATH"] = _path
