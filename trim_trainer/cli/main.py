"""The command `trim-trainer`: one file a command, which is imported when it is called."""

import argparse
import sys
from importlib import import_module

from .. import __version__
from .errors import say_errors

# Command -> what `trim-trainer --help` says of it; the function of that name in the file of that name runs it.
COMMANDS = {
    "train": "train from a recipe: --config recipe.yaml [--field value ...]",
    "drop": "drop layers of a checkpoint: MODEL --layers 3,17 --output DIR",
    "scan": "importance of each layer, without training: MODEL --data DATA",
    "evaluate": "checkpoints side by side: MODEL ... --task task.yaml",
    "compare": "trimming next to its controls: --config recipe.yaml",
    "export": "for another runtime or with fewer bits: MODEL --to openvino --output DIR",
    "publish": "put a trimmed model on the Hub: DIR --repo-id me/model",
}


def main(arguments: list[str] | None = None) -> int:
    """Run a subcommand; return the exit status: 0, 2 for what is wrong with what was asked, 130 if it is interrupted."""
    return say_errors(_run, sys.argv[1:] if arguments is None else arguments)


def _run(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="trim-trainer", description="Fine-tune an LLM while its layers are dropped.")
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(dest="command", required=True)
    for name, what in COMMANDS.items():
        commands.add_parser(name, add_help=False, help=what)
    command, rest = parser.parse_known_args(arguments[:1])[0].command, arguments[1:]
    return getattr(import_module(f".{command}", __package__), command)(rest)
