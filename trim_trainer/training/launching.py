"""Processes that a recipe asks for by keys of `accelerate launch`, which mean what they mean to `trl sft`."""

import logging
import os
import subprocess
from argparse import ArgumentParser
from collections.abc import Sequence
from functools import cache
from typing import Any

from accelerate.commands.launch import launch_command, launch_command_parser
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from trl.cli.accelerate_config import resolve_accelerate_config_argument

from .hooks import actions_of, options_of

logger = logging.getLogger(__name__)

LAUNCHED_HERE = "TRIM_TRAINER_LAUNCHED"
# Set in processes that were started by this command, by `accelerate launch` or by `torchrun`.
LAUNCHED = (LAUNCHED_HERE, "ACCELERATE_MIXED_PRECISION", "LOCAL_RANK")
PRESET = "accelerate_config"  # a file, or a name of those in `trl/accelerate_configs`
OF_THE_SCRIPT = {"help", "training_script", "training_script_args", "module", "no_python"}


@cache
def _parser() -> ArgumentParser:
    return launch_command_parser()


def launch_keys() -> set[str]:
    """What `accelerate launch` takes as keys of a recipe."""
    return (options_of(_parser()) | {PRESET}) - OF_THE_SCRIPT


def launch_spellings() -> set[str]:
    """What `accelerate launch` takes on a command line, in each spelling."""
    theirs = (action.option_strings for action in actions_of(_parser()) if action.dest not in OF_THE_SCRIPT)
    return {f"--{PRESET}", f"--{PRESET.replace('_', '-')}", *(spelling for each in theirs for spelling in each)}


def launch_words(settings: dict[str, Any], own: set[str]) -> list[str]:
    """The keys of a recipe that are for `accelerate launch`, as it takes them on its command line.

    Args:
        settings: The recipe as YAML has read it.
        own: Fields of the recipe, which go before keys of the same name, as in TRL.
    """
    names = [name for name in settings if name in launch_keys() - own - {"env"}]
    return [word for name in names for word in _as_words(name, settings[name])]


def _as_words(name: str, value: Any) -> list[str]:
    if value is None or value is False:
        return []
    option = next((action for action in actions_of(_parser()) if action.dest == name), None)
    is_flag = option is not None and option.nargs == 0
    return [f"--{name}"] if is_flag else [f"--{name}", str(value)]


def is_launched() -> bool:
    """Whether a launcher has started this process."""
    return any(name in os.environ for name in LAUNCHED)


def warn_of_launch_words(words: Sequence[str]) -> None:
    """Log that words for `accelerate launch` do nothing where processes are not this command's to start."""
    if words and LAUNCHED_HERE not in os.environ:
        logger.warning(
            "%s: for `accelerate launch`, which `trim-trainer train` calls where no launcher has started it. Left out.",
            " ".join(words),
        )


def launch(words: Sequence[str], module: str, arguments: list[str]) -> int:
    """Run `python -m module` under `accelerate launch`, wait for it, and return its exit status.

    Args:
        words: Options of `accelerate launch`, and `--accelerate_config`.
        module: What each process runs.
        arguments: For the module.

    Raises:
        ValueError: the options cannot go together, or `accelerate_config` is neither a file nor a name of TRL's.
    """
    words = [f"--{PRESET}" if word == f"--{PRESET.replace('_', '-')}" else word for word in words]
    parsed = _parser().parse_args([*resolve_accelerate_config_argument(words), "--module", module, *arguments])
    if parsed.training_script != module:
        raise ValueError(f"{parsed.training_script!r} is the value of no option.")
    os.environ[LAUNCHED_HERE] = "1"
    try:
        launch_command(parsed)
    except subprocess.CalledProcessError as error:
        return error.returncode
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        logger.error("Process %d ended with status %d.", rank, failure.exitcode)
        return failure.exitcode
    return 0
