"""Which checkpoints of a run are whole: one that a crash cut short is never resumed."""

import json
import logging
from pathlib import Path

from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from ..records.files import HISTORY_NAME

logger = logging.getLogger(__name__)


class CheckpointError(ValueError):
    """There is nothing to resume; the message says what was found and what to do."""


def read_switch(value: str | bool | None) -> str | bool | None:
    """A folder or a switch: the command line says `true` in letters, where a folder could be named."""
    switches = {"true": True, "false": None}
    return value if value is None or Path(str(value)).exists() else switches.get(str(value).lower(), value)


def find_checkpoint(output_dir: str | Path, resume_from_checkpoint: str | bool) -> str:
    """Return the folder to resume from: the one that is named, or for True the last whole one in `output_dir`.

    Raises:
        CheckpointError: the named one was cut short, or is of a run without a target, or there is none.
    """
    if resume_from_checkpoint is not True:
        if not Path(resume_from_checkpoint).is_dir():
            raise CheckpointError(
                f"`resume_from_checkpoint` {str(resume_from_checkpoint)!r} is no folder. Name a checkpoint, or pass True to "
                "take the last whole one."
            )
        missing = missing_parts(resume_from_checkpoint)
        if missing:
            raise CheckpointError(
                f"`resume_from_checkpoint` {str(resume_from_checkpoint)!r} cannot be resumed: {missing}. Name another "
                "checkpoint, or pass True to take the last whole one."
            )
        return str(resume_from_checkpoint)
    found = sorted(Path(output_dir).glob(f"{PREFIX_CHECKPOINT_DIR}-*"), key=_step, reverse=True)
    for folder in found:
        missing = missing_parts(folder)
        if not missing:
            return str(folder)
        logger.warning("%s is passed over: %s.", folder, missing)
    raise CheckpointError(
        f"`resume_from_checkpoint` is True, but `output_dir` {str(output_dir)!r} holds no whole checkpoint. Begin again: "
        "leave `resume_from_checkpoint` out and "
        + ("name another `output_dir`." if any(map(_is_of_other_run, found)) else "set `overwrite_output_dir`.")
    )


def missing_parts(folder: str | Path) -> str | None:
    """Say what a checkpoint lacks; None: it is whole.

    The Trainer writes the state last, behind weights, optimizer and random states, and an older checkpoint of the same
    number is removed before: if the state can be read, everything else is there.
    """
    for name in (TRAINER_STATE_NAME, HISTORY_NAME):
        path = Path(folder) / name
        if _is_of_other_run(Path(folder)):
            return (
                f"a run without a target wrote it. To drop layers of that model, load it as the model of a new run, "
                f"`model={str(folder)!r}`"
            )
        if not path.is_file():
            return f"{name} is missing, it was not written to the end"
        try:
            json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            return f"{name} ends in the middle"
    return None


def _is_of_other_run(checkpoint: Path) -> bool:
    """Whether a run without a target wrote it: one with a target writes its history, and then the state."""
    return (checkpoint / TRAINER_STATE_NAME).is_file() and not (checkpoint / HISTORY_NAME).is_file()


def _step(folder: Path) -> int:
    number = folder.name.rpartition("-")[2]
    return int(number) if number.isdigit() else -1
