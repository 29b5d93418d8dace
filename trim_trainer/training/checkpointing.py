"""What a trimming run saves, and how it comes back to it: checkpoints, resuming, the best model, the card."""

import logging
import shutil
from collections.abc import Iterable
from concurrent.futures import Future
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from accelerate.utils import is_peft_model
from huggingface_hub import HfApi
from transformers import PreTrainedModel
from transformers.trainer import TRAINING_ARGS_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, HubStrategy
from transformers.utils import PushInProgress
from trl import SFTTrainer

from ..architectures.modules import find_layers
from ..checkpoints.adapted import save_adapted
from ..checkpoints.verification import verify_checkpoint, verify_tensors
from ..hub.publishing import failed_pushes, publish
from ..hub.staging import PUBLISHED
from ..records.history import TrimHistory
from ..recovery.distillation import Teacher
from ..recovery.quality_floor import QualityFloor
from ..surgery.backup import LayerBackup
from ..surgery.drop import drop_layers
from .card_files import collect_facts, write_card

logger = logging.getLogger(__name__)


class CheckpointingTrainer(SFTTrainer):
    """An SFTTrainer whose model may have lost layers when it is saved, and has to lose them again when it is resumed."""

    history: TrimHistory | None = None  # None: this run drops nothing
    recipe: dict[str, Any] | None = None  # what `recipe.yaml` says; None: the settings that are not default
    _floor: QualityFloor
    _teacher: Teacher | None = None
    _untrimmed: LayerBackup | None = None  # None: no need to go back

    def __init__(self, *args, **kwargs):
        self._pushes: list[Future] = []  # in the background
        super().__init__(*args, **kwargs)

    @property
    def causal_lm(self) -> PreTrainedModel:
        """The model whose layers are dropped: inside adapters, and without what distributed training wraps it in."""
        model = self.accelerator.unwrap_model(self.model, keep_torch_compile=False)
        return model.get_base_model() if is_peft_model(model) else model

    def _keep_untrimmed(self) -> None:
        """Keep the layers that will be dropped, on the CPU, where a checkpoint that has them may be the best one."""
        self._untrimmed = LayerBackup(self.model) if self.args.load_best_model_at_end else None

    def _take_out(self, dropped: Iterable[int]) -> None:
        """Drop layers (numbers of the model as it is now)."""
        layers = find_layers(self.causal_lm)
        gone = [layers[layer] for layer in dropped]
        drop_layers(self.model, dropped)
        if self._untrimmed is not None:
            for layer in gone:
                layer.zero_grad()
                layer.to("cpu")

    def _resume(self, checkpoint: str) -> None:
        """Give the untrimmed model the depth of a checkpoint, whose weights are loaded into it later."""
        history = TrimHistory.load(checkpoint)
        if history.num_layers != self.history.num_layers:
            raise ValueError(
                f"`resume_from_checkpoint` {checkpoint!r} began with {history.num_layers} layers, the model has "
                f"{self.history.num_layers}. Pass the untrimmed model that the run began with."
            )
        self._floor.resume(checkpoint, history, self._bring_to)
        if self._teacher is not None:
            self._teacher.resume(checkpoint)
        self._bring_to(history)
        self.history = replace(history, target_layers=self.history.target_layers)

    def _bring_to(self, history: TrimHistory) -> PreTrainedModel:
        """Give the model the layers of a history, of which it has all or more, and return it."""
        self._take_out([i for i, layer in enumerate(self.history.kept) if layer not in history.kept])
        self.history = history
        return self.model

    def _load_best_model(self) -> None:
        if self.history is not None:
            best = TrimHistory.load(self.state.best_model_checkpoint)
            if best.depth > self.history.depth:
                logger.warning(
                    "The best checkpoint has %d layers, the last one %d. To choose among those at the target only, set "
                    "`eval_delay` to when it is reached.",
                    best.depth,
                    self.history.depth,
                )
            self._untrimmed.restore()
            self.history = replace(best, rounds=())
            self._bring_to(best)
            self.model.to(self.args.device)
        super()._load_best_model()

    def create_model_card(self, model_name: str | None = None, dataset_name=None, tags=None) -> None:
        """Write the model card of the run so far into `output_dir`; without a target, TRL's."""
        if self.history is None:
            super().create_model_card(model_name, dataset_name, tags)
        elif self.is_world_process_zero():
            write_card(self.args.output_dir, self.history, collect_facts(self, model_name, dataset_name, tags))

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        folder = Path(output_dir or self.args.output_dir)
        is_checkpoint = folder.name.startswith(PREFIX_CHECKPOINT_DIR)
        is_adapted = self.history is not None and not is_checkpoint and is_peft_model(self.model)
        whole = None if state_dict is None else dict(state_dict)  # saving empties it
        if not is_adapted:
            super()._save(output_dir, state_dict)
        if self.history is None or not self.args.should_save:
            return
        if is_checkpoint:
            self._floor.save(folder)
            if self._teacher is not None:
                self._teacher.save(folder)
        elif is_adapted:
            save_adapted(self.model, folder, self.args.merge_adapter)
            self.processing_class.save_pretrained(folder)
        facts = collect_facts(self)
        self.history = replace(self.history, card=facts.to_plain())
        if not is_checkpoint:
            write_card(folder, self.history, facts)
        if whole is not None:
            verify_tensors(folder, self.causal_lm, whole)
        elif not is_peft_model(self.model):
            verify_checkpoint(folder, self.model)
        self.history.save(folder)

    def _save_checkpoint(self, model, trial) -> None:
        if self.history is not None:
            # What is left of an older checkpoint of this number would make a half-written one look whole.
            if self.args.should_save:
                folder = f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
                shutil.rmtree(Path(self.args.output_dir) / folder, ignore_errors=True)
            self.accelerator.wait_for_everyone()
        super()._save_checkpoint(model, trial)

    def push_to_hub(
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **kwargs,
    ):
        """Save the model and publish it with its depths, see [`publish`]; without a target, as SFTTrainer does.

        Returns:
            What is on the Hub now, per depth; None in all but the main process.

        Raises:
            StagingError, PublishError: see [`publish`]. The checkpoint is saved in any case.
        """
        if self.history is None:
            return super().push_to_hub(commit_message, blocking, token, revision, private, **kwargs)
        if not blocking or revision or self.args.hub_revision:
            raise ValueError(
                "With a target, `push_to_hub` publishes the branches `main` and `depth-N` and waits for them: leave "
                "`blocking`, `revision` and `hub_revision` out."
            )
        self.save_model(_internal_call=True)
        if not self.is_world_process_zero():
            return None
        self._finish_current_push()
        private = self.args.hub_private_repo if private is None else private
        return publish(
            self.args.output_dir,
            self.hub_model_id or self.args.hub_model_id or Path(self.args.output_dir).name,
            private=private,
            token=token or self.args.hub_token,
            commit_message=commit_message,
        )

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """Push a checkpoint while training goes on: what can be loaded, and not what lies beside it."""
        if self.history is None:
            super()._push_from_checkpoint(checkpoint_folder)
            return
        strategy, args = self.args.hub_strategy, self.args
        if not self.is_world_process_zero() or strategy == HubStrategy.END:
            return
        if not args.hub_always_push and self.push_in_progress is not None and not self.push_in_progress.is_done():
            return
        upload = partial(
            HfApi(token=args.hub_token).upload_folder,
            repo_id=self.hub_model_id,
            folder_path=checkpoint_folder,
            commit_message=f"Training in progress, step {self.state.global_step}",
            run_as_future=True,
        )
        jobs = [upload(allow_patterns=PUBLISHED)]
        if strategy in (HubStrategy.CHECKPOINT, HubStrategy.ALL_CHECKPOINTS):
            # Asked for so that another machine can resume, which needs the optimizer.
            name = "last-checkpoint" if strategy == HubStrategy.CHECKPOINT else Path(checkpoint_folder).name
            jobs.append(upload(path_in_repo=name, ignore_patterns=[TRAINING_ARGS_NAME]))
        self._pushes.extend(jobs)
        self.push_in_progress = PushInProgress(jobs)

    def _finish_current_push(self) -> None:
        super()._finish_current_push()
        for reason in failed_pushes(self._pushes):
            logger.warning(
                "A push during training failed: %s. The checkpoints in %r are safe; `push_to_hub` publishes the result.",
                reason,
                self.args.output_dir,
            )
        self._pushes.clear()
