"""Members of a family: each depth on the way trains the rest of the schedule, from where the run left it."""

import copy
import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import is_peft_model
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_callback import ExportableState, TrainerState
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, SaveStrategy

from ..checkpoints.whole import find_checkpoint
from ..records.files import HISTORY_NAME
from ..records.history import TrimHistory
from ..records.measurement import Measurement
from ..records.settings import changed_settings
from .measuring import measure_trimmed

logger = logging.getLogger(__name__)

# A member trains in a folder of its own, to its end, and is neither pushed on the way nor has members itself.
ALONE = {
    "save_depths": None,
    "push_to_hub": False,
    "save_only_model": False,
    "overwrite_output_dir": False,
    "resume_from_checkpoint": None,
    "restore_callback_states_from_checkpoint": False,  # it makes callbacks anew, by arguments that only its own kinds take
}


def has_members(trainer) -> bool:
    """Whether depths on the way train on after the run; where weights are spread over processes none can come back."""
    return _wants_members(trainer.args) and not trainer.is_sharded


def is_kept(folder: Path) -> bool:
    """Whether a depth's folder holds its model, or a checkpoint to train on from."""
    return (folder / HISTORY_NAME).is_file() or bool(_checkpoints_in(folder))


def is_of_depth(checkpoint: str, depth: int) -> bool:
    """Whether the best checkpoint of a member has its depth: the best of the run before it was left may be deeper."""
    best = TrimHistory.load(checkpoint).depth
    if best != depth:
        logger.warning(
            "Depth %d: the best checkpoint has %d layers and is passed over; the last step stays.", depth, best
        )
    return best == depth


def say_members(trainer, total: float) -> None:
    """Say before a run of `total` steps or epochs what its members will cost."""
    args = trainer.args
    if _wants_members(args) and trainer.is_sharded:
        logger.warning(
            "`save_depths` %s stay as they are when the next layers go: FSDP and DeepSpeed cannot bring back a depth to "
            "train on. For members that are healed to the end run once per depth, each as `target_layers`.",
            sorted(args.save_depths, reverse=True),
        )
    if has_members(trainer):
        share = trainer.schedule.members_cost(args.save_depths, total)
        logger.warning(
            "After the run each of `save_depths` %s trains the rest of its steps at its depth: %.1f times the run's own "
            "training on top. `heal_depths=False` keeps them as they are when the next layers go.",
            sorted(args.save_depths, reverse=True),
            share,
        )


def keep_depth(trainer) -> None:
    """Keep the model as it is now, at its depth, if `save_depths` asks for it: to train on, or as it is."""
    if trainer.history.depth not in (trainer.args.save_depths or ()):
        return
    if has_members(trainer):
        keep_beginning(trainer)
    else:
        measure_trimmed(trainer)
        trainer.save_model(str(trainer.folder_of(trainer.history.depth)), _internal_call=True)


def keep_beginning(trainer) -> None:
    """Keep a whole checkpoint of the depth that a run is about to leave, to train on from there."""
    folder = trainer.folder_of(trainer.history.depth)
    if trainer.args.should_save:
        _remove_checkpoints(folder)  # of an earlier beginning
    with _changed(trainer.args, ALONE | {"output_dir": str(folder)}):
        trainer.write_checkpoint()


def keep_end(trainer) -> None:
    """Keep a checkpoint of the last step while members train, to resume behind the run if that is broken off."""
    if _waiting(trainer) and not _end_of(trainer).exists():
        with _changed(trainer.args, {"push_to_hub": False, "save_only_model": False}):
            trainer.write_checkpoint()


def heal_members(trainer) -> None:
    """Train each depth that a run has kept to the end of its schedule, save it in its folder, and return to the run.

    A member is what a run with this target would have given that dropped the same layers at the same steps: it resumes
    the checkpoint that `keep_beginning` wrote. What has been trained is kept if it is broken off: a resumed run goes on
    with the members that are left.
    """
    waiting = _waiting(trainer)
    if not waiting:
        return
    measured = []
    handler = trainer.callback_handler
    with _coming_back(trainer), _changed(handler, {"callbacks": _quiet(handler.callbacks)}):
        for depth in waiting:
            logger.info("Depth %d trains on, in %s.", depth, trainer.folder_of(depth))
            measured.append(_heal(trainer, depth))
    for each in measured:
        if (
            each.depth != trainer.history.depth
        ):  # the best checkpoint of the run may be of a member's depth: they are two models
            trainer.trimming.history = trainer.history.add(each)
    if trainer.args.should_save and trainer.args.save_strategy == SaveStrategy.NO:
        shutil.rmtree(_end_of(trainer), ignore_errors=True)


def _heal(trainer, depth: int) -> Measurement:
    folder, trimming, handler = trainer.folder_of(depth), trainer.trimming, trainer.callback_handler
    trimming.bring_back()
    trimming.history = trimming.history.begun_anew(depth)
    trainer.model.to(trainer.args.device)
    trainer.recipe, trainer.is_member = _recipe_of(trainer, depth), True
    with (
        _changed(trainer.args, ALONE | {"output_dir": str(folder)}),
        _changed(handler, {"callbacks": _as_in(find_checkpoint(folder, True), handler.callbacks)}),
    ):
        trainer.train_to_target(resume_from_checkpoint=True)
        trainer.save_model(str(folder), _internal_call=True)
    if trainer.args.should_save:
        _remove_checkpoints(folder)
    trainer.accelerator.wait_for_everyone()
    return trainer.history.trimmed


def _recipe_of(trainer, depth: int) -> dict[str, Any]:
    """The recipe that repeats a member: the run's own, to this depth, over the same stops, at the same steps."""
    recipe = dict(trainer.recipe or changed_settings(trainer.args))
    recipe.pop("target_ratio", None)
    recipe |= {"target_layers": depth, "save_depths": [other for other in trainer.args.save_depths if other > depth]}
    if not recipe["save_depths"]:
        del recipe["save_depths"]
    if interval := trainer.schedule.interval:
        recipe["trim_steps"] = interval
    return recipe


def _waiting(trainer) -> list[int]:
    """Depths that have a checkpoint to go on from, deepest first: those that are done have none."""
    if not has_members(trainer):
        return []
    reached = trainer.history.depth if trainer.reached_depth is None else trainer.reached_depth
    return [
        depth
        for depth in sorted(trainer.args.save_depths, reverse=True)
        if depth >= reached and _checkpoints_in(trainer.folder_of(depth))
    ]


@contextmanager
def _coming_back(trainer) -> Iterator[None]:
    """Train other depths within; behind it the trainer and its model are what they were."""
    trimming, weights = trainer.trimming, _weights(trainer.model)
    was = [(each, dict(vars(each))) for each in (trainer, trimming)]
    try:
        yield
    finally:
        trimming.bring_back()
        for each, attributes in was:
            for name in vars(each).keys() - attributes.keys():
                if hasattr(type(each), name):  # what the class says was hidden, such as that there is no recipe
                    del vars(each)[name]
            vars(each).update(attributes)
        trimming.take_out_dropped()
        _load(trainer.model, weights)
        trainer.model.to(trainer.args.device)
        if trainer.optimizer is not None:
            trainer.optimizer.state.clear()  # of another depth
        trainer.sync_parameters()


def _weights(model) -> dict[str, torch.Tensor]:
    """What training changes, on the CPU: all weights, of an adapted model those that train."""
    if is_peft_model(model):
        found = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    else:
        found = model.state_dict()
    return {name: weight.detach().to("cpu", copy=True) for name, weight in found.items()}


@torch.no_grad()
def _load(model, weights: dict[str, torch.Tensor]) -> None:
    if not is_peft_model(model):
        model.load_state_dict(weights)
        return
    parameters = dict(model.named_parameters())
    for name, weight in weights.items():
        parameters[name].copy_(weight)


def _quiet(callbacks: list) -> list:
    """Without TensorBoard and the others, which draw one run: the curves of its members would begin anew in the middle of it."""
    return [each for each in callbacks if not isinstance(each, tuple(INTEGRATION_TO_CALLBACK.values()))]


def _as_in(checkpoint: str, callbacks: list) -> list:
    """Callbacks, of which those that keep a state, such as patience, have that of a checkpoint: copies of them do."""
    stored = {
        name: list(states) if isinstance(states, list) else [states]
        for name, states in TrainerState.load_from_json(
            f"{checkpoint}/{TRAINER_STATE_NAME}"
        ).stateful_callbacks.items()
    }
    return [_with_state(each, stored.get(type(each).__name__)) for each in callbacks]


def _with_state(callback, stored: list[dict] | None):
    """A copy with the next of the states that are stored of its kind; itself where there is none."""
    if not stored or not isinstance(callback, ExportableState):
        return callback
    found = copy.copy(callback)
    for name, value in stored.pop(0).get("attributes", {}).items():
        setattr(found, name, value)
    return found


@contextmanager
def _changed(what, values: dict[str, Any]) -> Iterator[None]:
    was = {name: getattr(what, name) for name in values}
    for name, value in values.items():
        setattr(what, name, value)
    try:
        yield
    finally:
        for name, value in was.items():
            setattr(what, name, value)


def _end_of(trainer) -> Path:
    return Path(trainer.args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{trainer.state.global_step}"


def _checkpoints_in(folder: Path) -> list[Path]:
    return list(folder.glob(f"{PREFIX_CHECKPOINT_DIR}-*"))


def _remove_checkpoints(folder: Path) -> None:
    for checkpoint in _checkpoints_in(folder):
        shutil.rmtree(checkpoint)


def _wants_members(args) -> bool:
    return bool(args.save_depths) and args.heal_depths
