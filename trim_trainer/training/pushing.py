"""What a run pushes: its result with its depths, and checkpoints on the way, of which it pushes what can be loaded."""

import logging
from collections.abc import Collection
from concurrent.futures import Future
from pathlib import Path

from huggingface_hub import CommitOperationAdd, HfApi
from transformers.trainer import TRAINING_ARGS_NAME
from transformers.trainer_utils import HubStrategy

from ..hub.layout import kind_of
from ..hub.publishing import Published, failed_pushes, publish
from ..hub.staging import LOADED, share_history
from ..records.files import HISTORY_NAME
from ..records.history import TrimHistory
from .config import TrimConfig

logger = logging.getLogger(__name__)


def check_push(args: TrimConfig, blocking: bool, revision: str | None, unknown: Collection[str] = ()) -> None:
    """Raise a ValueError for what publishing branches does not do, a TypeError for what a card does not know."""
    saved = f"The model is saved, in {args.output_dir!r}: `trim-trainer publish` takes it from there."
    if unknown:
        raise TypeError(f"`push_to_hub` knows no `{'`, `'.join(sorted(unknown))}`. {saved}")
    if not blocking or revision or args.hub_revision:
        raise ValueError(
            "With a target, `push_to_hub` publishes the branches `main` and `depth-N` and waits for them: leave "
            f"`blocking`, `revision` and `hub_revision` out. {saved}"
        )


def publish_run(trainer, commit_message: str | None, token: str | None, private: bool | None) -> list[Published]:
    """Publish what a `TrimTrainer` has saved, see `publish`; what is None is as its config says."""
    args = trainer.args
    return publish(
        args.output_dir,
        trainer.hub_model_id or args.hub_model_id or Path(args.output_dir).name,
        private=args.hub_private_repo if private is None else private,
        token=token or args.hub_token,
        commit_message=commit_message,
    )


def start_pushes(trainer, folder: str) -> list[Future]:
    """Begin to push a checkpoint in the background, if the run pushes and nothing is on its way.

    What loaders take is pushed, without history and recipe, which name places of this machine until they are published;
    where `hub_strategy` asks for checkpoints to resume from, all of them is, the history without such places.
    """
    args, strategy = trainer.args, trainer.args.hub_strategy
    if not trainer.is_world_process_zero() or strategy == HubStrategy.END:
        return []
    if not args.hub_always_push and trainer.push_in_progress is not None and not trainer.push_in_progress.is_done():
        return []
    api = HfApi(token=args.hub_token)
    common = {
        "repo_id": trainer.hub_model_id,
        "commit_message": f"Training in progress, step {trainer.state.global_step}",
        "run_as_future": True,
    }
    # An adapter of a checkpoint to resume from loads nowhere but in its run.
    has_weights = any(kind_of(path.name) == "weights" for path in Path(folder).iterdir())
    jobs = [api.upload_folder(folder_path=folder, allow_patterns=LOADED, **common)] if has_weights else []
    if strategy in (HubStrategy.CHECKPOINT, HubStrategy.ALL_CHECKPOINTS):
        # Asked for so that another machine can resume, which needs the optimizer.
        name = "last-checkpoint" if strategy == HubStrategy.CHECKPOINT else Path(folder).name
        jobs.append(api.create_commit(operations=_all_of(Path(folder), name), **common))
    return jobs


def _all_of(checkpoint: Path, name: str) -> list[CommitOperationAdd]:
    """What puts a checkpoint to resume from into a folder of a repository."""
    files: dict[Path, str | bytes] = {
        path: str(path) for path in sorted(checkpoint.rglob("*")) if path.is_file() and path.name != TRAINING_ARGS_NAME
    }
    if (path := checkpoint / HISTORY_NAME) in files:
        files[path] = share_history(TrimHistory.load(checkpoint), checkpoint).to_json().encode()
    return [
        CommitOperationAdd(f"{name}/{path.relative_to(checkpoint).as_posix()}", content)
        for path, content in files.items()
    ]


def report_failures(jobs: list[Future], output_dir: str) -> None:
    """Warn of the pushes that failed; the Trainer does not look."""
    for reason in failed_pushes(jobs):
        logger.warning(
            "A push during training failed: %s. The checkpoints in %r are safe; `push_to_hub` publishes the result.",
            reason,
            output_dir,
        )
