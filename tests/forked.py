"""Processes that are forked from a server which has imported everything: a fresh one costs no start."""

import multiprocessing

CONTEXT = multiprocessing.get_context("forkserver")
# The server is one for all tests of a process, and so is this list.
CONTEXT.set_forkserver_preload(["killed_run", "publishing"])
