"""A resumed run does what it is asked: what can be honoured is, the rest is refused with both values, before it trains."""

import logging
from dataclasses import replace
from pathlib import Path

import torch
from transformers.trainer import OPTIMIZER_NAME
from transformers.trainer_utils import get_last_checkpoint

from ..architectures.configs import num_layers
from ..architectures.modules import find_layers
from ..checkpoints.precision import is_fast
from ..checkpoints.whole import find_checkpoint, read_switch
from ..records.files import DEPTH_DIR, HISTORY_NAME
from ..records.history import TrimHistory, name_dropped
from ..records.run_record import RunRecord
from ..surgery.drop import is_quantized
from . import fingerprints
from .asked import EXPLAINING, KEPT, PLANNED, STOPPING, TEACHING, adapter_of, asked_of, different_settings, known_of
from .checks import check_output_dir
from .measuring import measure_run
from .members import is_kept
from .schedule import Start

logger = logging.getLogger(__name__)


def find_resumed(trainer, resume_from_checkpoint: str | bool | None) -> str | None:
    """The checkpoint that a `TrimTrainer` is to resume from; None: it begins. What cannot be is refused here.

    Raises:
        FileExistsError: `output_dir` holds another run, and neither resuming nor overwriting is asked for.
        CheckpointError: there is no whole checkpoint.
    """
    args = trainer.args
    if resume_from_checkpoint is None and trainer.state.global_step == 0:
        resume_from_checkpoint = args.resume_from_checkpoint
    resumed = read_switch(resume_from_checkpoint)
    trainer.base_weights  # noqa: B018  of the model that every run begins with, resumed or not
    if trainer.is_world_process_zero():
        check_output_dir(args.output_dir, resumed, args.overwrite_output_dir)
    trainer.accelerator.wait_for_everyone()
    if not trainer.is_fsdp_enabled:
        trainer.trimming.layout  # noqa: B018  found on it, too
        trainer.compensation  # noqa: B018  on which it is tried whether that is possible
    return find_checkpoint(args.output_dir, resumed) if resumed else None


def resume(trainer, checkpoint: str) -> RunRecord:
    """Give the untrimmed model of a `TrimTrainer` the depth of a checkpoint, after a look at what is asked of it.

    Returns:
        What the run was asked for that wrote the checkpoint, as far as that is known.

    Raises:
        ValueError: names a setting that cannot be honoured, its value now and then, and the way out.
    """
    history = TrimHistory.load(checkpoint)
    asked, trimming = asked_of(trainer), trainer.trimming
    record = RunRecord.load(checkpoint) or known_of(history, checkpoint, asked)
    check_resumed(trainer, checkpoint, history, record)
    if _has_other_evaluation(trainer, record) or _has_other_precision(trainer, history):
        # What was measured before training says nothing beside what will be measured on other examples, or in another
        # precision.
        history = replace(history, untrimmed=measure_run(trainer), measurements=())
    is_over = history.stopped is not None if record.is_over is None else record.is_over
    trimming.resume(checkpoint, history, is_over and not different_settings(record, asked, STOPPING))
    if trainer.teacher is not None and not different_settings(record, asked, TEACHING):
        trainer.teacher.resume(checkpoint)
    if not any(Path(checkpoint).glob(f"{Path(OPTIMIZER_NAME).stem}*")) and not trainer.is_deepspeed_enabled:
        logger.warning(
            "The checkpoint %r was saved with `save_only_model`: the optimizer and the learning rate begin anew.",
            checkpoint,
        )
    return record


def find_start(trainer, record: RunRecord | None, max_steps: int) -> Start:
    """From where the drops are planned: where they were, if nothing about it is another, else from here on."""
    state, history = trainer.state, trainer.history
    if (
        record is not None
        and record.num_steps == max_steps
        and not different_settings(record, asked_of(trainer), PLANNED)
    ):
        goes_on_dropping = record.is_over and not trainer.trimming.is_over  # which the plan did not foresee
        if not goes_on_dropping:
            return Start(history.num_layers) if record.start is None else Start(**record.start)
    return Start(history.depth, state.global_step, state.epoch or 0)


def check_resumed(trainer, checkpoint: str, history: TrimHistory, record: RunRecord) -> None:
    """Refuse what a checkpoint of a trimming run cannot go on with.

    Raises:
        ValueError: names a setting, its value now and then, and the way out.
    """
    where = f"the checkpoint {str(checkpoint)!r}"
    _check_model(trainer, where, history, record)
    _check_depths(trainer, where, checkpoint, history)
    asked = asked_of(trainer)
    for name, why in KEPT.items():
        if name in record.settings and record.settings[name] != asked[name]:
            raise ValueError(
                f"`{name}` is {asked[name]!r}, but {where} is of a run with {record.settings[name]!r}: {why}. Set it to "
                f"{record.settings[name]!r} again, or begin a new run in another `output_dir`."
            )
    if record.calibration not in (None, fingerprints.of_examples(trainer.trimming.examples)):
        others = [
            f"`{name}` is {asked[name]!r}, it was {record.settings[name]!r}"
            for name in different_settings(record, asked, EXPLAINING)
        ]
        raise ValueError(
            f"The calibration set has {asked['calibration_size']} examples that are not those of {where}"
            f"{f' ({others[0]})' if others else ''}: layers would be scored on others, perhaps on some that the model has "
            "trained on. Pass `seed`, `calibration_size`, the data sets and the tokenizer that the run began with, or begin a "
            "new run in another `output_dir`."
        )
    if trainer.is_fsdp_enabled and _has_other_evaluation(trainer, record):
        raise ValueError(
            f"`eval_dataset` has other examples than that of {where}, on which the model was measured before training, and "
            "with FSDP it cannot be measured anew. Pass the `eval_dataset` that the run began with."
        )


def check_restarted(trainer, record: RunRecord | None, first_depth: int) -> None:
    """Refuse to begin with a model that an error has left in the middle, as `auto_find_batch_size` would.

    Raises:
        RuntimeError: says what was dropped meanwhile, and the way out.
    """
    found, depth = len(find_layers(trainer.causal_lm)), trainer.history.depth
    if found != depth:
        raise RuntimeError(
            f"The model has {found} layers and its history {depth}: an error stopped a drop in the middle. Make a new trainer, "
            "with the untrimmed model, and resume a checkpoint or begin again."
        )
    if record is not None and depth != first_depth:
        raise RuntimeError(
            f"`auto_find_batch_size` begins again at the checkpoint, which has {first_depth} layers, but the model has {depth} "
            "by now. Set `per_device_train_batch_size` to a smaller value, and resume with a new trainer."
        )


def check_plain_resumed(trainer, resume_from_checkpoint: str | bool | None) -> None:
    """Refuse a checkpoint whose layers are not those of the model, where a run has no target.

    Raises:
        ValueError: names both depths and the ways out.
    """
    if resume_from_checkpoint is True:
        resume_from_checkpoint = get_last_checkpoint(trainer.args.output_dir)
    if not resume_from_checkpoint or not (Path(resume_from_checkpoint) / HISTORY_NAME).is_file():
        return
    history, depth = TrimHistory.load(resume_from_checkpoint), num_layers(trainer.causal_lm.config)
    if history.depth != depth:
        raise ValueError(
            f"`resume_from_checkpoint` {str(resume_from_checkpoint)!r} has {history.depth} of {history.num_layers} layers, the "
            f"model has {depth}, and neither `target_layers` nor `target_ratio` is set. To go on with that run pass a "
            f"`TrimConfig` with its `target_layers` ({history.target_layers}); to train without dropping further, load the "
            f"checkpoint as the model: `model={str(resume_from_checkpoint)!r}`."
        )


def _check_model(trainer, where: str, history: TrimHistory, record: RunRecord) -> None:
    if history.num_layers != trainer.history.num_layers:
        raise ValueError(
            f"`resume_from_checkpoint`: {where} began with {history.num_layers} layers, the model has "
            f"{trainer.history.num_layers}. Pass the untrimmed model that the run began with."
        )
    now, then = trainer.history.vocabulary, history.vocabulary
    if (now and now.kept) != (then and then.kept):
        had = "with the whole vocabulary" if then is None else f"with {then.num_tokens:,} tokens"
        raise ValueError(
            f"`vocab_size` is {trainer.args.vocab_size}, but {where} was trained {had}{', others' if now and then else ''}. Pass "
            "the `vocab_size`, `vocab_corpus`, data sets and `calibration_size` that the run began with."
        )
    if record.model is not None:
        asked = fingerprints.plain_config(trainer.untrimmed_config)
        for name, (now, then) in fingerprints.different_fields(asked, record.model).items():
            raise ValueError(
                f"`model` is another one: `{name}` of its config is {now!r}, but {where} began with {then!r}. Pass the "
                "untrimmed model that the run began with."
            )
    adapter = adapter_of(trainer.model)
    if record.adapter not in (None, adapter):
        raise ValueError(
            f"`peft_config` makes an adapter of kind {adapter!r}, but {where} holds {record.adapter!r}. Pass the "
            "`peft_config` that the run began with."
        )
    now, then = trainer.base_weights, record.base_weights
    if None not in (now, then) and now.split()[0] == then.split()[0] and now != then:
        raise ValueError(
            f"`model` has other weights than the one that {where} was trained on, which holds an adapter only. Pass the "
            "untrimmed model that the run began with."
        )


def _check_depths(trainer, where: str, checkpoint: str, history: TrimHistory) -> None:
    """What would need layers back that are gone."""
    args, target = trainer.args, trainer.history.target_layers
    if target > history.depth:
        asked = f"`target_layers` is {target}"
        if args.target_layers is None:
            asked = f"`target_ratio` is {args.target_ratio}, a target of {target} layers"
        raise ValueError(
            f"{asked}, but {where} has only {history.depth} layers left, of a run with a target of "
            f"{history.target_layers}. Resume an earlier checkpoint, with at least {target} layers, or set "
            f"`target_layers` to {history.depth} or less."
        )
    whole = {layer for layer, mlp in history.halves if layer == mlp}
    gone = sorted(set(args.protected_layers or ()) - whole)
    if gone:
        raise ValueError(
            f"`protected_layers` is {args.protected_layers}, but {where} has dropped {gone} of them already; it has "
            f"dropped {name_dropped(history.dropped)}. Leave them out, or resume an earlier checkpoint."
        )
    folders = (Path(args.output_dir), Path(checkpoint).parent)
    passed = [
        depth
        for depth in sorted(args.save_depths or ())
        if history.depth < depth <= history.num_layers
        and not any(is_kept(folder / f"{DEPTH_DIR}{depth}") for folder in folders)
    ]
    if passed:
        raise ValueError(
            f"`save_depths` is {args.save_depths}, but {where} has {history.depth} layers and has passed {passed}, which "
            "was not kept. Leave it out, or resume an earlier checkpoint."
        )


def _has_other_precision(trainer, history: TrimHistory) -> bool:
    if history.untrimmed is None or trainer.is_sharded or is_quantized(trainer.causal_lm):
        return False
    dtype, device = trainer.dtype_to_save, trainer.causal_lm.device
    computed = dtype if is_fast(dtype, device) else torch.float32
    return history.untrimmed.dtype not in (None, str(computed).removeprefix("torch."))


def _has_other_evaluation(trainer, record: RunRecord) -> bool:
    return record.evaluation not in (None, fingerprints.of_examples(trainer.evaluation_examples))
