"""The private parts of TRL's and Transformers' trainers that a trimming run hangs on: all of them, and nothing else.

But for one: the preparation of data, which runs without a trainer too (`data/preparation.py`).

Each is named here once and handed on under a public name. `tests/training/test_hooks.py` holds their signatures in the
installed versions; `setup.cfg` bounds the versions to those that were tested. Where a callback runs at the same moment, it
is a callback: layers drop in `on_step_end` and `on_epoch_end` (`TrimCallback`), right before logging, evaluating and saving,
so that what is evaluated and saved at a step is the model after that step's drop.
"""

import argparse
import inspect
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase, TrainerCallback, TrainingArguments
from transformers.trainer_utils import has_length
from transformers.utils import PushInProgress
from trl import SFTTrainer

from ..data.preparation import prepare

NUM_BEFORE = 6  # arguments of SFTTrainer, up to `processing_class`


class HookedTrainer(SFTTrainer):
    """An SFTTrainer with public names for the moments at which a trimming run acts; it does nothing at them itself."""

    is_writing_checkpoint = False  # one to resume from; else what is written is the model

    # Moments of the training loop.

    def goes_on(self, max_steps: int) -> bool:
        """Whether a resumed run of that length has a step left to train; the Trainer trains one in any case."""
        return True

    def before_preparing(self, max_steps: int, num_epochs: float) -> None:
        """Optimizer and wrappers are not made yet; the length of the run is known."""

    def after_preparing(self) -> None:
        """Optimizer and wrappers are made; a checkpoint that is resumed is loaded."""

    def before_finalizing(self) -> None:
        """The last step is done; the best model is not loaded yet."""

    def takes_best_model(self) -> bool:
        """The weights of `state.best_model_checkpoint` are about to be loaded; False: they are not to be."""
        return True

    def _init_training_state(
        self, max_steps, num_update_steps_per_epoch, num_train_epochs, resume_from_checkpoint, trial
    ):
        epochs_trained, steps_trained = super()._init_training_state(
            max_steps, num_update_steps_per_epoch, num_train_epochs, resume_from_checkpoint, trial
        )
        return (epochs_trained if self.goes_on(max_steps) else num_train_epochs), steps_trained

    def _prepare_for_training(self, max_steps, train_dataloader, resume_from_checkpoint):
        self.before_preparing(max_steps, self.length_in_epochs(max_steps, train_dataloader))
        prepared = super()._prepare_for_training(max_steps, train_dataloader, resume_from_checkpoint)
        self.after_preparing()
        return prepared

    def length_in_epochs(self, max_steps: int, train_dataloader) -> float:
        """Epochs of the run, the last of which may be a part; of a stream as many as the Trainer says."""
        if not has_length(train_dataloader):
            return self.state.num_train_epochs
        num_steps_per_epoch = self.set_initial_training_values(self.args, train_dataloader)[1]
        return max_steps / num_steps_per_epoch

    def _finalize_training(self, trial, num_train_samples, start_time):
        self.before_finalizing()
        return super()._finalize_training(trial, num_train_samples, start_time)

    def _load_best_model(self) -> None:
        if self.takes_best_model():
            super()._load_best_model()

    # Files and pushes.

    def write_model(self, folder: Path | None, state_dict: dict[str, torch.Tensor] | None) -> None:
        """Write model and tokenizer as the Trainer does; None: into `output_dir`."""
        super()._save(None if folder is None else str(folder), state_dict)

    def write_checkpoint(self) -> None:
        """Write a whole checkpoint of this step into `args.output_dir`."""
        self._save_checkpoint(self.model, trial=None)

    def before_checkpoint(self) -> None:
        """A checkpoint of this step is about to be written."""

    def push_checkpoint(self, folder: str) -> None:
        """Push a checkpoint while training goes on, as the Trainer does."""
        super()._push_from_checkpoint(folder)

    def after_pushes(self) -> None:
        """No push is on its way any more."""

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        self.write_model(None if output_dir is None else Path(output_dir), state_dict)

    def _save_checkpoint(self, model, trial) -> None:
        self.before_checkpoint()
        with self._writing_checkpoint():
            super()._save_checkpoint(model, trial)

    def _tune_save_checkpoint(self, checkpoint_dir: str) -> None:
        with self._writing_checkpoint():
            super()._tune_save_checkpoint(checkpoint_dir)

    @contextmanager
    def _writing_checkpoint(self) -> Iterator[None]:
        self.is_writing_checkpoint = True
        try:
            yield
        finally:
            self.is_writing_checkpoint = False

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        self.push_checkpoint(checkpoint_folder)

    def _finish_current_push(self) -> None:
        super()._finish_current_push()
        self.after_pushes()

    def finish_pushes(self) -> None:
        """Wait for the pushes that are on their way."""
        self._finish_current_push()

    def follow_pushes(self, jobs: list[Future]) -> None:
        """Let the Trainer wait for these at the end."""
        self.push_in_progress = PushInProgress(jobs)

    # Data.

    @property
    def text_tokenizer(self) -> PreTrainedTokenizerBase:
        """The text tokenizer, inside a processor where there is one."""
        return self._tokenizer

    def prepare_rows(self, rows: list[dict]) -> list[dict | None]:
        """Rows as SFTTrainer prepares and labels the evaluation set; None: no token is left that counts."""
        if self._skip_prepare_dataset and all("input_ids" in row for row in rows):
            return rows
        return prepare(self, rows, self.processing_class, self.args, self._formatting_func)

    @property
    def num_train_tokens(self) -> int:
        """Tokens that were trained on."""
        return int(self._total_train_tokens)


def name_arguments(behind: tuple, named: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of SFTTrainer behind `processing_class` by name, of which some may have come by position.

    Raises:
        TypeError: there are too many, or one came twice.
    """
    found = inspect.signature(SFTTrainer).bind(*[None] * NUM_BEFORE, *behind, **named)
    return dict(list(found.arguments.items())[NUM_BEFORE:])


class TrimCallback(TrainerCallback):
    """Calls a function after each optimizer step and at the end of each epoch."""

    def __init__(self, act):
        self._act = act

    def on_step_end(self, args, state, control, **kwargs) -> None:
        """Before logging, evaluating and saving of that step."""
        self._act(state.global_step, state.epoch)

    def on_epoch_end(self, args, state, control, **kwargs) -> None:
        """Before logging, evaluating and saving of that epoch."""
        self._act(state.global_step, state.epoch)


def use_one_gpu(args: TrainingArguments) -> None:
    """Let a run of one process use one GPU, as the Trainer says it to itself where `nn.DataParallel` is not for the model."""
    args._n_gpu = min(args.n_gpu, 1)


def actions_of(parser: argparse.ArgumentParser) -> list[argparse.Action]:
    """All arguments of a parser."""
    return parser._actions


def options_of(parser: argparse.ArgumentParser) -> set[str]:
    """Names of all arguments of a parser."""
    return {action.dest for action in actions_of(parser)}


def spellings_of(parser: argparse.ArgumentParser) -> set[str]:
    """The options of a parser, in each spelling."""
    return {spelling for action in actions_of(parser) for spelling in action.option_strings}
