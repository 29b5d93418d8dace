"""TrimTrainer: SFTTrainer that scores, chooses and drops decoder layers between its own steps."""

import copy
import logging
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import replace
from functools import cache, cached_property, partial
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import is_peft_model
from datasets import Dataset, IterableDataset
from transformers import PretrainedConfig, PreTrainedModel
from transformers.trainer_utils import EvalLoopOutput

from ..architectures.runtimes import runtime_caveats
from ..checkpoints.frozen import FrozenWeights
from ..checkpoints.mergeable import check_adapters
from ..checkpoints.precision import dtype_to_save, stored_dtype
from ..checkpoints.whole import read_switch
from ..data.examples import ScoredExample
from ..data.preparation import read_rows
from ..data.tokens import score_rows
from ..hub.card_files import write_card
from ..import_messages import say_import_messages
from ..importance.criteria import CriterionLike, find_criterion
from ..importance.estimates import check_gradients
from ..records.files import DEPTH_DIR
from ..records.history import TrimHistory
from ..records.run_record import RunRecord
from ..recovery.compensation import Compensation
from ..recovery.distillation import Teacher
from ..surgery.cpu_kernels import keep_order
from ..surgery.optimizer import ParameterGroups, sync_optimizer
from ..surgery.wrapping import rewrap
from ..surgery.zero import rebuild_engine
from .asked import base_weights_of
from .card_files import Told, collect_facts, earlier_history, tell_saved
from .checks import (
    check_callbacks,
    check_distillation,
    check_generation,
    check_model,
    check_router_loss,
    check_sharded,
    clear_output_dir,
    split_calibration,
)
from .compensating import choose_compensation_size, draw_compensation_examples, why_none_takes_over
from .config import TrimConfig
from .ending import how_it_ended, under_way
from .evaluation_sets import EvaluationSets
from .hooks import HookedTrainer, TrimCallback, name_arguments
from .learning_rate import choose_scaling, follow_depth
from .loss import can_select_positions, selected_loss
from .measuring import measure_run, measure_trimmed
from .members import heal_members, is_of_depth, keep_end, say_members
from .pushing import check_push, publish_run, report_failures, start_pushes
from .resuming import check_plain_resumed, check_restarted, find_resumed, find_start, resume
from .saving import clear_checkpoint, save_trimmed
from .schedule import Start, TrimSchedule, plan_run
from .setup import frozen_weights_of, make_trimming
from .trimming import Trimming
from .vocabulary import CALIBRATION, load_with_vocabulary, loaded_already

logger = logging.getLogger(__name__)


class TrimTrainer(HookedTrainer):
    """Fine-tunes a causal LM and drops decoder layers while it trains (TrimLLM, arXiv 2412.11242).

    Takes the arguments of [`trl.SFTTrainer`], and `calibration_dataset`. With an [`SFTConfig`], or a [`TrimConfig`]
    without a target, it is SFTTrainer.

    Args:
        model: As for SFTTrainer: a name, a path or a model.
        args: A [`TrimConfig`].
        calibration_dataset: Examples on which layers are scored, disjoint from `eval_dataset`. Multiple choice has the
            columns `choices` and `answer` beside `prompt` and `completion`. None: `calibration_size` examples are held
            out of the training set.
        importance: A criterion of your own in place of `args.importance`: a function that takes a
            [`~trim_trainer.Calibration`] and returns one number per layer, higher = keep.

    Raises:
        ValueError: a setting, a data set or the model cannot be trimmed; before anything is trained.
    """

    is_compared = False  # with trimming runs: without a target, computes as they do, not bit for bit as SFTTrainer
    recipe: dict[str, Any] | None = None  # what `recipe.yaml` says; None: the settings that are not default
    trimming: Trimming | None = None  # None: this run drops nothing
    teacher: Teacher | None = None
    compensation_size = 0  # training examples on which layers in front of dropped ones take over
    scales_learning_rate = False  # the rate rises as layers go
    frozen: FrozenWeights | None = None  # what a quantized base model was when the run began
    schedule: TrimSchedule | None = None  # None: nothing is planned yet
    told_to_card = Told()
    reached_depth: int | None = None  # by the last step, of which the best checkpoint may be behind
    is_member = False  # a depth on the way that trains on behind the run
    _has_trained = False
    _replaces = False  # another run in `output_dir`, once this one is accepted
    has_begun = False  # to train: the plan is made, and was not refused

    def __init__(
        self,
        model: "str | PreTrainedModel",
        args: TrimConfig | None = None,
        data_collator=None,
        train_dataset: Dataset | IterableDataset | None = None,
        eval_dataset=None,
        processing_class=None,
        *others,
        calibration_dataset: Iterable[dict] | None = None,
        importance: CriterionLike | None = None,
        **kwargs,
    ):
        self._pushes: list[Future] = []  # in the background
        kwargs = name_arguments(others, kwargs)
        is_trimming = isinstance(args, TrimConfig) and args.is_trimming
        if is_trimming:
            num_layers, target = check_model(model, args, kwargs.get("peft_config"), processing_class is not None)
            self.earlier_history = earlier_history(model)
            train_dataset, calibration_dataset = split_calibration(
                train_dataset, eval_dataset, calibration_dataset, args, kwargs.get("formatting_func")
            )
        smaller = None
        if is_trimming and args.vocab_size is not None:
            sets = {"train_dataset": train_dataset, CALIBRATION: calibration_dataset}
            smaller = load_with_vocabulary(model, args, sets, eval_dataset, processing_class, data_collator, kwargs)
            model, processing_class = smaller.model, smaller.processing_class
        with loaded_already(args, smaller):
            super().__init__(model, args, data_collator, train_dataset, eval_dataset, processing_class, **kwargs)
        say_import_messages(self.causal_lm)
        if getattr(args, "distill_from", None) is not None:
            check_distillation(self)
            self.teacher = Teacher.load(
                args.distill_from, args.distill_temperature, self.causal_lm, args.trust_remote_code,
                None if smaller is None else smaller.ids,
            )  # fmt: skip
        if not is_trimming:
            return
        check_generation(self)
        check_router_loss(self)
        if is_peft_model(self.model):
            check_adapters(self.model, args.merge_adapter)
        if find_criterion(importance or args.importance).needs_gradients:
            check_gradients(self.causal_lm)
        examples = self.tokenize_examples(calibration_dataset)
        keep_order(self.model)
        look = cache(partial(why_none_takes_over, self, examples))
        self.compensation_size = choose_compensation_size(self, look)
        self.scales_learning_rate = choose_scaling(args.scale_learning_rate, look)
        self.evaluation_sets = EvaluationSets(self, eval_dataset)
        self.untrimmed_config: PretrainedConfig = copy.deepcopy(self.causal_lm.config)
        self._stored_dtype = stored_dtype(self.untrimmed_config, (args.model_init_kwargs or {}).get("cache_dir"))
        self.frozen = frozen_weights_of(self)
        vocabulary = None if smaller is None else smaller.record
        self.trimming = make_trimming(self, examples, importance or args.importance, (num_layers, target), vocabulary)
        self.parameter_groups = ParameterGroups(lambda: self.get_decay_parameter_names(self.model))
        if self.optimizer is not None:  # the script's own
            self.parameter_groups.leave_out(self.optimizer, self.model)
        self.start = Start(num_layers)  # from where drops are planned
        self._resumed: RunRecord | None = None  # what the checkpoint says that this run goes on with
        self.add_callback(TrimCallback(self._trim))

    @property
    def history(self) -> TrimHistory | None:
        """What was dropped and measured so far; None: this run drops nothing."""
        return None if self.trimming is None else self.trimming.history

    @cached_property
    def base_weights(self) -> str | None:
        """Fingerprint of the untrimmed layers, of which checkpoints hold an adapter only; None: they hold the layers."""
        return base_weights_of(self)

    @property
    def evaluation_examples(self) -> list[ScoredExample]:
        """Those of all evaluation sets, one after the other."""
        return [example for examples in self.evaluation_sets.examples.values() for example in examples]

    @property
    def causal_lm(self) -> PreTrainedModel:
        """The model whose layers are dropped: inside adapters, and without what distributed training wraps it in."""
        model = self.accelerator.unwrap_model(self.model, keep_torch_compile=False)
        return model.get_base_model() if is_peft_model(model) else model

    @property
    def is_sharded(self) -> bool:
        """Whether FSDP or DeepSpeed hold weights or what is computed of them."""
        return self.is_fsdp_enabled or self.is_deepspeed_enabled

    @property
    def dtype_to_save(self) -> torch.dtype:
        """In which the weights are stored that `save_model` writes."""
        return dtype_to_save(self.causal_lm, self.args.save_dtype, self._stored_dtype)

    # Where the algorithm meets the Trainer's loop.

    def train(self, resume_from_checkpoint: str | bool | None = None, *args, **kwargs):
        """Train as SFTTrainer does, dropping layers on the way; measure the result, and heal `save_depths`.

        Raises:
            FileExistsError: `output_dir` holds another run, and neither resuming nor overwriting is asked for.
            ValueError: the run is too short to reach the target.
            DivergedError: a layer is to go and the model returns NaN; it is a ValueError.
        """
        if self.trimming is None:
            resume_from_checkpoint = read_switch(resume_from_checkpoint)
            check_plain_resumed(self, resume_from_checkpoint)
            return super().train(resume_from_checkpoint, *args, **kwargs)
        output = self.train_to_target(resume_from_checkpoint, *args, **kwargs)
        heal_members(self)
        for caveat in runtime_caveats(self.model.config):
            logger.warning(caveat)
        return output

    def train_to_target(self, resume_from_checkpoint: str | bool | None = None, *args, **kwargs):
        """Train, dropping layers on the way, and measure the result; depths on the way stay where they were left."""
        check_callbacks(self)
        checkpoint = find_resumed(self, resume_from_checkpoint)
        self.reached_depth = None
        self._replaces = checkpoint is None and self.args.overwrite_output_dir
        self._resumed = resume(self, checkpoint) if checkpoint else None
        self._first_depth = self.history.depth
        with under_way(self):
            output = super().train(checkpoint, *args, **kwargs)
        self._has_trained = True
        measure_trimmed(self)
        return output

    def goes_on(self, max_steps: int) -> bool:
        """A checkpoint of the last step is the result: a step more would be one too many."""
        return self.trimming is None or self.state.global_step < max_steps

    def before_preparing(self, max_steps: int, num_epochs: float) -> None:
        """Plan the drops, and freeze what does not train before the optimizer is made."""
        if self.trimming is None:
            return
        check_restarted(self, self._resumed, self._first_depth)
        self.start = find_start(self, self._resumed, max_steps)
        if not self.trimming.is_over:
            self.schedule = self.plan(max_steps, num_epochs)
            if not self.schedule.leaves_time_to_heal(max_steps, num_epochs):
                logger.warning("The last drop comes at the very end, with no step left to heal it. Train for longer.")
            say_members(self, num_epochs if self.args.trim_strategy == "epoch" else max_steps)
        self.trimming.freeze()
        if (self.history.rounds or self._has_trained) and not self.is_deepspeed_enabled:
            self.sync_parameters()  # an optimizer that was there before this run knows those of an earlier one
        if not self.is_fsdp_enabled:
            self.begin()
        if self._replaces and self.is_world_process_zero():
            clear_output_dir(self.args.output_dir)  # by a run that was accepted

    def after_preparing(self) -> None:
        """Begin here where only now the model is on its devices."""
        if self.trimming is None:
            return
        if self.is_fsdp_enabled:
            check_sharded(self.causal_lm)
            self.begin()
            self.sync_parameters()
        elif not self.is_deepspeed_enabled:
            self.parameter_groups.leave_out(self.optimizer, self.model)  # what a `create_optimizer` has left out

    def begin(self) -> None:
        """Measure the untrimmed model, and choose the layers most likely to be kept, which train in a sparse update."""
        self.has_begun = True
        if self.history.untrimmed is None:
            self.trimming.history = replace(self.history, untrimmed=measure_run(self))
        self.trimming.choose_trained()

    def create_scheduler(self, num_training_steps: int, optimizer=None):
        """Make that of SFTTrainer, whose rate follows the depth if it is to; not one that the script brought."""
        is_own = self.lr_scheduler is None
        scheduler = super().create_scheduler(num_training_steps, optimizer)
        if is_own and self.scales_learning_rate:
            follow_depth(scheduler, lambda: self.history.num_layers / self.history.depth)
        return scheduler

    def plan(self, max_steps: int, num_train_epochs: float) -> TrimSchedule:
        """The depths of a run of so many optimizer steps, or epochs where `trim_strategy` is `"epoch"`.

        A resumed run has those that it had, unless it is asked for others: then they are planned from where it is.

        Raises:
            ValueError: the run is too short to reach the target, or passes over one of `save_depths`.
        """
        return plan_run(self.args, self.history, max_steps, num_train_epochs, self.start)

    def _trim(self, step: int, epoch: float) -> None:
        if not self.trimming.is_over:
            self.trimming.trim_to(self.schedule.depth_at(step, epoch))

    def before_finalizing(self) -> None:
        """Look at the quality floor a last time, and record why the run ends where that is above its target."""
        if self.trimming is not None:
            keep_end(self)
            self.trimming.check_floor()
            self.reached_depth = self.history.depth
            self.trimming.end(how_it_ended(self))

    def takes_best_model(self) -> bool:
        """Give the model the depth that the best checkpoint has; a member, which has its own, takes no other."""
        if self.trimming is None:
            return True
        if self.is_member and not is_of_depth(self.state.best_model_checkpoint, self.history.depth):
            return False
        self.trimming.return_to(self.state.best_model_checkpoint)
        self.model.to(self.args.device)
        return True

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """As SFTTrainer does; on a CPU the head runs on the positions that count only. A teacher is listened to too."""
        if return_outputs or not self._can_select_positions:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        usual = partial(super().compute_loss, model, return_outputs=False, num_items_in_batch=num_items_in_batch)
        return selected_loss(self, usual, inputs, num_items_in_batch)

    @cached_property
    def _can_select_positions(self) -> bool:
        return can_select_positions(self)

    # What the algorithm asks of the run.

    @property
    def global_step(self) -> int:
        """Optimizer steps that are done."""
        return self.state.global_step

    @contextmanager
    def scoring(self) -> Iterator[None]:
        """The model scores as it evaluates: in the precision of training, with the optimizer's averaged weights."""
        evaluating = getattr(self.optimizer, "eval", None)
        if callable(evaluating):  # schedule-free; the next training step turns it back
            evaluating()
        with self.accelerator.autocast():
            yield

    @cached_property
    def compensation(self) -> Compensation | None:
        """How layers in front of dropped ones take over what they added; None: nothing does."""
        if self.compensation_size == 0:
            return None
        examples = draw_compensation_examples(self)
        return Compensation(examples, self.args.scan_batch_tokens, self.accelerator.autocast)

    def sync_parameters(self) -> None:
        """Tell the optimizer and the wrapper of several processes what the model has and what trains."""
        if self.optimizer is None:  # nothing is made yet that would have to know
            return
        if not self.is_deepspeed_enabled:
            sync_optimizer(self.optimizer, self.model, self.parameter_groups)
            rewrap(self.model_wrapped, self.accelerator)
            return
        rebuild_engine(self.model_wrapped)
        self.optimizer.optimizer = self.model_wrapped.optimizer

    def tokenize_examples(self, dataset: Iterable[dict]) -> list[ScoredExample]:
        """Examples as SFTTrainer prepares and labels them; of multiple choice, each choice as if it were the right one.

        Raises:
            CalibrationError: none has a token to score, or a choice cannot be told from its prompt.
        """
        return score_rows(read_rows(dataset), self.prepare_rows, self.args.max_length)

    # Measuring and saving.

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix: str = "eval") -> dict[str, float]:
        """Evaluate as SFTTrainer does; each set of multiple choice also by its accuracy, `eval_accuracy`, over the choices.

        Raises:
            CalibrationError: a choice without one right answer.
        """
        if self.trimming is None:
            return super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)
        usual = partial(super().evaluate, ignore_keys=ignore_keys)
        return self.evaluation_sets.evaluate(usual, eval_dataset, metric_key_prefix)

    def evaluation_loop(
        self, dataloader, description, prediction_loss_only=None, ignore_keys=None, metric_key_prefix: str = "eval"
    ) -> EvalLoopOutput:
        """As SFTTrainer's; what is added to the metrics here is there for the log, callbacks and the best model."""
        output = super().evaluation_loop(dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix)
        accuracy = None if self.trimming is None else self.evaluation_sets.accuracy()
        if accuracy is not None:
            output.metrics.setdefault(f"{metric_key_prefix}_accuracy", accuracy)  # `compute_metrics` may have said it
        return output

    def folder_of(self, depth: int) -> Path:
        """Where a depth on the way is kept."""
        return Path(self.args.output_dir) / f"{DEPTH_DIR}{depth}"

    def write_model(self, folder: Path | None, state_dict: dict[str, torch.Tensor] | None) -> None:
        """Write model and tokenizer; with a target, history and card too, all loaded back and compared."""
        if self.trimming is None:
            super().write_model(folder, state_dict)
        else:
            save_trimmed(self, folder, state_dict, super().write_model)

    def before_checkpoint(self) -> None:
        """Make room for a whole checkpoint."""
        if self.trimming is not None:
            clear_checkpoint(self)

    def create_model_card(self, model_name: str | None = None, dataset_name=None, tags=None) -> None:
        """Write the model card of the run so far into `output_dir`; without a target, TRL's."""
        if self.trimming is None:
            super().create_model_card(model_name, dataset_name, tags)
            return
        # SFTTrainer writes one beside each checkpoint, and says neither.
        told = {name: value for name, value in {"dataset_name": dataset_name, "tags": tags}.items() if value}
        self.told_to_card = replace(self.told_to_card, **told)
        if self.is_world_process_zero():
            facts = collect_facts(self, model_name)
            write_card(self.args.output_dir, self.history, facts)
            if told:
                tell_saved(self.args.output_dir, facts)

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
            ValueError: `blocking`, `revision` or `hub_revision`, which branches leave no room for; behind the saving.
            TypeError: an argument that the card does not know; it knows `model_name`, `dataset_name` and `tags`.
        """
        if self.trimming is None:
            return super().push_to_hub(commit_message, blocking, token, revision, private, **kwargs)
        known = {name: value for name, value in kwargs.items() if hasattr(self.told_to_card, name)}
        self.told_to_card = replace(self.told_to_card, **known)
        self.save_model(_internal_call=True)  # first of all: what was trained is not lost to a wrong argument
        check_push(self.args, blocking, revision, kwargs.keys() - known.keys())
        if not self.is_world_process_zero():
            return None
        self.finish_pushes()
        return publish_run(self, commit_message, token, private)

    def push_checkpoint(self, folder: str) -> None:
        """Push a checkpoint while training goes on: what can be loaded, and not what lies beside it."""
        if self.trimming is None:
            super().push_checkpoint(folder)
        elif jobs := start_pushes(self, folder):
            self._pushes.extend(jobs)
            self.follow_pushes(jobs)

    def after_pushes(self) -> None:
        """Say which pushes failed."""
        report_failures(self._pushes, self.args.output_dir)
        self._pushes.clear()
