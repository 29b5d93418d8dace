"""What a trimming run saves, and how it comes back to it: checkpoints, resuming, the best model, the card."""

import logging
import shutil
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from accelerate.utils import is_peft_model
from transformers import PreTrainedModel
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from trl import SFTTrainer

from .architectures import find_layers
from .card import collect_facts, write_card
from .history import TrimHistory
from .rollback import QualityFloor
from .saving import save_adapted
from .surgery import LayerBackup, drop_layers
from .verification import verify_checkpoint, verify_tensors

logger = logging.getLogger(__name__)


class CheckpointingTrainer(SFTTrainer):
    """An SFTTrainer whose model may have lost layers when it is saved, and has to lose them again when it is resumed."""

    history: TrimHistory | None = None  # None: this run drops nothing
    recipe: dict[str, Any] | None = None  # what `recipe.yaml` says; None: the settings that are not default
    _floor: QualityFloor
    _untrimmed: LayerBackup | None = None  # None: no need to go back

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
        elif is_adapted:
            save_adapted(self.model, folder, self.args.merge_adapter)
            self.processing_class.save_pretrained(folder)
        if not is_checkpoint:
            write_card(folder, self.history, collect_facts(self))
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
