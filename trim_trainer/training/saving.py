"""What a trimming run writes: a checkpoint to resume, or the model with its history and card, loaded back and compared."""

import logging
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from accelerate.utils import is_peft_model
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from ..checkpoints.adapted import mark_trimmed, named_untrimmed, save_adapted
from ..checkpoints.finishing import finish_checkpoint
from ..checkpoints.precision import cast_tensors, say_dtype
from ..checkpoints.verification import verify_checkpoint, verify_tensors
from ..hub.card_files import write_card
from ..hub.weights import weights_digest
from ..scoring.finite import name_not_finite
from ..surgery.ties import say_untied
from .asked import record_of
from .card_files import collect_facts
from .ending import history_beside

logger = logging.getLogger(__name__)

Writer = Callable[[Path | None, dict[str, torch.Tensor] | None], None]


def save_trimmed(trainer, output_dir: Path | None, state_dict: dict[str, torch.Tensor] | None, write: Writer) -> None:
    """Save the model as it is now, and what belongs beside it.

    Args:
        trainer: A `TrimTrainer` with a target.
        output_dir: Where to; None: `args.output_dir`.
        state_dict: The whole tensors of a model that is sharded; None: those of the model.
        write: Writes model and tokenizer as the Trainer does.

    Raises:
        FrozenWeightsError: the quantized base model is not the one that training began with; nothing is written.
        VerificationError: what was written is not the model that was trained.
    """
    folder = output_dir or Path(trainer.args.output_dir)
    is_adapted = is_peft_model(trainer.model)
    if trainer.frozen is not None:
        trainer.frozen.check(trainer.causal_lm)
    whole = None if state_dict is None else dict(state_dict)  # saving empties it
    if not is_adapted:
        if state_dict is None:
            say_untied(trainer.causal_lm)
        _write(
            trainer, output_dir, state_dict, write, None if trainer.is_writing_checkpoint else trainer.dtype_to_save
        )
    elif trainer.is_writing_checkpoint:
        with named_untrimmed(trainer.model):
            write(output_dir, state_dict)
    if not trainer.args.should_save:
        return
    if (name := name_not_finite(trainer.model)) is not None:
        logger.warning(
            "%r of the model is NaN or infinite: training has diverged. It is saved as it is, in %s.", name, folder
        )
    if trainer.is_writing_checkpoint:
        _add_to_checkpoint(trainer, folder)
    elif is_adapted:
        save_adapted(trainer.model, folder, trainer.args.merge_adapter, trainer.dtype_to_save)
        trainer.processing_class.save_pretrained(folder)
    is_resumable = trainer.is_writing_checkpoint
    if not (is_resumable and is_adapted):
        finish_checkpoint(folder, is_apart=is_adapted and not trainer.args.merge_adapter)
    facts = replace(collect_facts(trainer), weights=None if is_resumable else weights_digest(folder))
    trainer.trimming.history = history = replace(trainer.history, card=facts)
    if not is_resumable:
        history = history_beside(trainer, folder)
        write_card(folder, history, facts)
    if whole is not None:
        verify_tensors(folder, trainer.causal_lm, whole)
    elif not is_adapted:
        verify_checkpoint(folder, trainer.model)
    history.save(folder)


def _add_to_checkpoint(trainer, folder: Path) -> None:
    """What a run needs that resumes here, beside weights and optimizer."""
    trainer.trimming.floor.save(folder)
    record_of(trainer).save(folder)
    if trainer.teacher is not None:
        trainer.teacher.save(folder)
    if is_peft_model(trainer.model) and trainer.history.depth < trainer.history.num_layers:
        mark_trimmed(folder, trainer.history.depth)


def _write(trainer, output_dir: Path | None, state_dict, write: Writer, dtype: torch.dtype | None) -> None:
    """Write the model, its weights in `dtype`; None: as they are."""
    if dtype is None or not trainer.args.should_save:
        write(output_dir, state_dict)
        return
    tensors = trainer.causal_lm.state_dict() if state_dict is None else state_dict
    cast = cast_tensors(trainer.causal_lm, tensors, dtype)
    write(output_dir, state_dict if cast is tensors else cast)
    if cast is not tensors:
        say_dtype(output_dir or trainer.args.output_dir, dtype)


def clear_checkpoint(trainer) -> None:
    """Remove an older checkpoint of this step: what is left of it would make a half-written one look whole."""
    if trainer.args.should_save:
        folder = f"{PREFIX_CHECKPOINT_DIR}-{trainer.state.global_step}"
        shutil.rmtree(Path(trainer.args.output_dir) / folder, ignore_errors=True)
    trainer.accelerator.wait_for_everyone()
