"""How a run ended, in words: what the history says where that is above the target."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from transformers import EarlyStoppingCallback

from ..records.history import TrimHistory


@contextmanager
def under_way(trainer) -> Iterator[None]:
    """Train within; what is frozen for that trains again behind it.

    An exception that breaks it off is recorded, since the model may be saved all the same.
    """
    trainer.trimming.begin()
    trainer.has_begun = False
    try:
        yield
    finally:
        trainer.trimming.unfreeze()
        if trainer.has_begun and sys.exception() is not None:
            trainer.trimming.end(how_it_broke_off(trainer))


def history_beside(trainer, folder: Path) -> TrimHistory:
    """The history of a model that is saved as it is now; where that is above the target, it says why."""
    history = trainer.history
    is_on_the_way = folder == trainer.folder_of(history.depth) or not history.is_above_target
    if is_on_the_way or history.stopped is not None:
        return history
    return trainer.trimming.history_stopped_by(how_far_it_is(trainer))


def how_it_ended(trainer) -> str:
    """Say how the training of a `TrimTrainer` ended that came to its end by itself."""
    if trainer.state.global_step >= trainer.state.max_steps:
        return f"training was over at {_where(trainer)}, before all drops were due"
    if any(map(_is_out_of_patience, trainer.callback_handler.callbacks)):
        return f"EarlyStoppingCallback ended training at {_where(trainer)}"
    return f"training was ended at {_where(trainer)}, by a callback or for want of data"


def how_it_broke_off(trainer) -> str:
    """Say where the training of a `TrimTrainer` is that an exception leaves, and which."""
    return f"training was broken off at {_where(trainer)} by {type(sys.exception()).__name__}"


def how_far_it_is(trainer) -> str:
    """Say where the training of a `TrimTrainer` is whose model is saved before the end."""
    if trainer.state.global_step == 0:
        return "the model was saved before it was trained"
    return f"the model was saved at {_where(trainer)}, before the end of training"


def _where(trainer) -> str:
    return f"step {trainer.state.global_step} of {trainer.state.max_steps}"


def _is_out_of_patience(callback) -> bool:
    if not isinstance(callback, EarlyStoppingCallback):
        return False
    return callback.early_stopping_patience_counter >= callback.early_stopping_patience
