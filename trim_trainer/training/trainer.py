"""TrimTrainer: SFTTrainer that scores, chooses and drops decoder layers between its own steps."""

import copy
import logging
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import torch
from accelerate.utils import is_peft_model
from datasets import Dataset, IterableDataset
from transformers import PreTrainedModel, Trainer

from ..architectures.droppable import droppable_layers
from ..architectures.runtimes import runtime_caveats
from ..checkpoints.whole import find_checkpoint
from ..data.examples import ScoredExample
from ..data.metrics import choose_metric, measure, scored_by
from ..data.tokens import draw_examples, tokenize_examples
from ..importance.calibration import Settings
from ..importance.choice import choose_layers
from ..importance.criteria import CriterionLike, criterion_name
from ..importance.scores import LayerScores, calibrate
from ..records.history import Round, TrimHistory
from ..recovery.compensation import compensated
from ..recovery.distillation import Teacher
from ..recovery.projection import check_compensation
from ..recovery.quality_floor import QualityFloor
from ..scoring.layout import Layout
from ..scoring.measuring import measure_model
from ..scoring.processes import from_main
from ..scoring.scan import score_choices
from ..scoring.scored_positions import scored_positions_only, scores_every_position
from ..scoring.speed import measure_in_turns, measure_tokens_per_second
from ..scoring.trial import choose_layout
from ..surgery.drop import is_quantized
from ..surgery.full_depth import full_depth_twin
from ..surgery.optimizer import sync_optimizer
from ..surgery.wrapping import rewrap
from ..surgery.zero import rebuild_engine
from .checkpointing import CheckpointingTrainer
from .checks import check_compensated_settings, check_distillation, check_model, check_output_dir, split_calibration
from .config import TrimConfig
from .drop_log import log_drop
from .schedule import TrimSchedule, plan_schedule
from .sparse_update import choose_trained_layers, freeze_all_but

logger = logging.getLogger(__name__)

NUM_RUNS_AT_DROPS = 1  # of timed decoding: a curve for the card, not the figure that it states


class TrimTrainer(CheckpointingTrainer):
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
            [`~importance.Calibration`] and returns one number per layer, higher = keep.

    Raises:
        ValueError: a setting, a data set or the model cannot be trimmed; before anything is trained.
    """

    is_compared = False  # with trimming runs: without a target, computes as they do, not bit for bit as SFTTrainer

    def __init__(
        self,
        model: "str | PreTrainedModel",
        args: TrimConfig | None = None,
        data_collator=None,
        train_dataset: Dataset | IterableDataset | None = None,
        eval_dataset=None,
        *others,
        calibration_dataset: Iterable[dict] | None = None,
        importance: CriterionLike | None = None,
        **kwargs,
    ):
        is_trimming = isinstance(args, TrimConfig) and args.is_trimming
        if is_trimming:
            num_layers, target = check_model(model, args, kwargs.get("peft_config"))
            train_dataset, calibration_dataset = split_calibration(
                train_dataset, eval_dataset, calibration_dataset, args
            )
        super().__init__(model, args, data_collator, train_dataset, eval_dataset, *others, **kwargs)
        if getattr(args, "distill_from", None) is not None:
            check_distillation(self)
            self._teacher = Teacher.load(
                args.distill_from, args.distill_temperature, self.causal_lm, trust_remote_code=args.trust_remote_code
            )
        if not is_trimming:
            return
        if args.compensation_size:
            check_compensated_settings(self)
        calibration_examples = self._tokenize_examples(calibration_dataset)
        self._evaluation_examples = self._tokenize_examples(eval_dataset) if isinstance(eval_dataset, Dataset) else []
        self._criterion = importance or args.importance
        metric = choose_metric(args.calibration_metric, calibration_examples)
        self._calibration_examples = scored_by(metric, calibration_examples)
        self._floor = QualityFloor(args.max_metric_drop, metric)
        self._keep_untrimmed()
        self._untrimmed_config = copy.deepcopy(self.causal_lm.config)
        self.history = TrimHistory(
            num_layers=num_layers,
            target_layers=target,
            importance=criterion_name(self._criterion),
            calibration_metric=metric,
            calibration_size=len(self._calibration_examples),
            compensation_size=args.compensation_size,
        )

    # The algorithm.

    def _trim(self, depth: int) -> None:
        """Drop layers until `depth` of them are left; stop at the quality floor."""
        while self.history.depth > depth and self.history.stopped is None:
            scored = self._calibrate()
            if self._floor.is_crossed(scored.metric):
                self._roll_back(scored.metric)
                return
            self._save_depth()
            self._floor.keep(scored.metric, self.model, self.optimizer, self.history)
            number = min(self.args.layers_per_trim, self.history.depth - depth)
            dropped = from_main(choose_layers(scored, self._criterion, number, self._droppable))
            if not dropped:
                self._stop("no layer that is left can be dropped")
                return
            trained = self._drop(dropped, scored)
            self._record(scored, dropped, trained)

    def _droppable(self, chosen: tuple[int, ...] = ()) -> set[int]:
        """Layers (numbers of the model as it is now) that can go in addition to `chosen`."""
        protected = {self.history.kept.index(layer) for layer in self.args.protected_layers or ()}
        return set(droppable_layers(self.causal_lm, chosen)) - protected

    def _calibrate(self) -> LayerScores:
        """Score every layer that is left: how good is the model on the calibration set without it?"""
        settings = Settings(
            self.history.calibration_metric,
            self.layout,
            self.args.scan_batch_tokens,
            self.args.layers_per_trim,
            self.args.racing_confidence,
            self.args.seed + self.state.global_step,
        )
        with self._scoring():
            examples = self._calibration_examples
            return from_main(calibrate(self.causal_lm, examples, self._criterion, settings, self._droppable()))

    def _drop(self, dropped: tuple[int, ...], scored: LayerScores) -> tuple[int, ...] | None:
        """Drop layers (numbers of the model as it is now), choose which of the others train, tell the optimizer.

        Returns:
            Numbers, before the drop, of the layers that train from now on; None: all parameters do.
        """
        kept, trained = self.history.kept, self.history.trained_layers
        left = [layer for layer in range(len(kept)) if layer not in dropped]
        with self.compensated(dropped):
            self._take_out(dropped)
        if trained is not None:
            still_trained = [new for new, old in enumerate(left) if kept[old] in trained]
            scores = tuple(scored.scores[old] for old in left)
            chosen = choose_trained_layers(
                scores, self.args.sparse_update_ratio, self.history.num_layers, still_trained
            )
            freeze_all_but(self.model, chosen)
            trained = tuple(left[new] for new in chosen)
        self._sync()
        return trained

    def compensated(self, dropped: tuple[int, ...]) -> AbstractContextManager[None]:
        """Drop layers within; those in front of them take over what they added, if `compensation_size` asks for it."""
        examples, args = self.compensation_examples, self.args
        return compensated(self.causal_lm, dropped, examples, args.scan_batch_tokens, self.accelerator.autocast)

    @cached_property
    def compensation_examples(self) -> list[ScoredExample]:
        """`compensation_size` examples of the training set, drawn once.

        Raises:
            ValueError: the run cannot compensate.
            UnsupportedArchitectureError: the layers of the model cannot.
        """
        args = self.args
        if args.compensation_size == 0:
            return []
        check_compensated_settings(self)
        options = {"max_length": args.max_length, "text_field": args.dataset_text_field}
        examples = draw_examples(self.train_dataset, args.compensation_size, args.seed, self._tokenizer, **options)
        check_compensation(self.causal_lm, min(examples, key=lambda example: example.num_tokens))
        return examples

    def _record(self, scored: LayerScores, dropped: tuple[int, ...], trained: tuple[int, ...] | None) -> None:
        """Add the round to the history, in the layer numbers of the untrimmed model."""
        kept = self.history.kept
        a_round = Round(
            step=self.state.global_step,
            layers=kept,
            scores=scored.scores,
            metric=scored.metric,
            seconds=scored.seconds,
            activation_norms=scored.activation_norms,
            num_examples=scored.num_examples,
            dropped=tuple(kept[layer] for layer in dropped),
            trained_layers=None if trained is None else tuple(kept[layer] for layer in trained),
        )
        if dropped:
            a_round = replace(
                a_round,
                metric_after=self._calibration_metric(),
                tokens_per_second=from_main(measure_tokens_per_second(self.causal_lm, NUM_RUNS_AT_DROPS)),
            )
        self.history = self.history.add(a_round)
        if dropped:
            log_drop(self, a_round)

    def _roll_back(self, metric: float) -> None:
        """Return to the last depth above the quality floor; the rest of the schedule heals it."""
        self.history = self._floor.restore(metric, self.history, self.model, self.optimizer, self._decayed)
        self._sync()
        self._stop(self.history.stopped)

    def _stop(self, reason: str) -> None:
        """Drop no further layer; the rest of the schedule heals what is left."""
        self.history = replace(self.history, stopped=reason)
        logger.warning("Dropping stops: %s.", reason)

    def _sync(self) -> None:
        """Tell the optimizer and the wrapper of several processes what the model has and what trains."""
        if not self.is_deepspeed_enabled:
            sync_optimizer(self.optimizer, self.model, self._decayed)
            rewrap(self.model_wrapped, self.accelerator)
            return
        rebuild_engine(self.model_wrapped)
        self.optimizer.optimizer = self.model_wrapped.optimizer

    # Where the algorithm meets the Trainer's loop.

    def train(self, resume_from_checkpoint: str | bool | None = None, *args, **kwargs):
        """Train as SFTTrainer does, dropping layers on the way, and measure the result.

        Raises:
            FileExistsError: `output_dir` holds another run, and neither resuming nor overwriting is asked for.
            ValueError: the run is too short to reach the target.
        """
        if self.history is None:
            return super().train(resume_from_checkpoint, *args, **kwargs)
        if self.is_world_process_zero():
            check_output_dir(self.args.output_dir, resume_from_checkpoint, self.args.overwrite_output_dir)
        self.accelerator.wait_for_everyone()
        if not self.is_fsdp_enabled:
            self.layout  # noqa: B018  found on the model that every run begins with, resumed or not
            self.compensation_examples  # noqa: B018  on which it is tried whether that is possible
        if resume_from_checkpoint:
            resume_from_checkpoint = find_checkpoint(self.args.output_dir, resume_from_checkpoint)
            self._resume(resume_from_checkpoint)
        output = super().train(resume_from_checkpoint, *args, **kwargs)
        self._measure("trimmed")
        for caveat in runtime_caveats(self.model.config):
            logger.warning(caveat)
        return output

    def _prepare_for_training(self, max_steps, train_dataloader, resume_from_checkpoint):
        if self.history is not None:
            num_epochs = self.state.num_train_epochs
            self._schedule = self.plan(max_steps, num_epochs)
            if self._schedule.depth_at(max_steps - 1, num_epochs - 1) > self.history.target_layers:
                logger.warning("The last drop comes at the very end, with no step left to heal it. Train for longer.")
            self._freeze()
            if not self.is_fsdp_enabled:
                self._begin()
        prepared = super()._prepare_for_training(max_steps, train_dataloader, resume_from_checkpoint)
        if self.history is not None and self.is_fsdp_enabled:  # only now is the model on its devices
            self._begin()
            self._sync()
        return prepared

    def plan(self, max_steps: int, num_train_epochs: float) -> TrimSchedule:
        """The depths of a run of so many optimizer steps, or epochs where `trim_strategy` is `"epoch"`.

        Raises:
            ValueError: the run is too short to reach the target, or passes over one of `save_depths`.
        """
        args = self.args
        schedule = plan_schedule(
            self.history.num_layers,
            self.history.target_layers,
            total=num_train_epochs if args.trim_strategy == "epoch" else max_steps,
            strategy=args.trim_strategy,
            layers_per_trim=args.layers_per_trim,
            trim_steps=args.trim_steps,
            trim_delay=args.trim_delay,
            save_depths=args.save_depths or (),
        )
        missing = sorted(set(args.save_depths or ()) - set(schedule.depths))
        if missing:
            raise ValueError(f"`save_depths` contains {missing}, but the run has the depths {schedule.depths}.")
        return schedule

    def _begin(self) -> None:
        """Measure the untrimmed model, and choose the layers most likely to be kept, which train in a sparse update."""
        if self.history.measured("untrimmed") is None:
            self._measure("untrimmed")
        if not self.history.rounds and self.args.sparse_update_ratio is not None and not is_peft_model(self.model):
            scored = self._calibrate()
            trained = choose_trained_layers(scored.scores, self.args.sparse_update_ratio, self.history.num_layers)
            self._record(scored, (), trained)
            self._freeze()

    def _freeze(self) -> None:
        """Freeze all but the layers of the sparse update, once they are known."""
        kept, trained = self.history.kept, self.history.trained_layers
        if trained is not None:
            freeze_all_but(self.causal_lm, [kept.index(layer) for layer in trained])

    def _maybe_log_save_evaluate(self, *args, **kwargs):
        # Runs after each optimizer step and at the end of each epoch, before logging, evaluating and saving: what is
        # evaluated and saved at a step is the model after that step's drop.
        if self.history is not None:
            self._trim(self._schedule.depth_at(self.state.global_step, self.state.epoch))
        super()._maybe_log_save_evaluate(*args, **kwargs)

    def _finalize_training(self, *args, **kwargs):
        if self.history is not None and self.history.drops and self.history.stopped is None:
            metric = self._calibration_metric()
            if self._floor.is_crossed(metric):
                self._roll_back(metric)
        return super()._finalize_training(*args, **kwargs)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """As SFTTrainer does; on a CPU the head runs on the positions that count only. A teacher is listened to too."""
        if return_outputs or not self._can_select_positions:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        with scored_positions_only(self.causal_lm, inputs) as (selected, outputs):
            loss = super().compute_loss(model, selected, False, num_items_in_batch)
        if self._teacher is None or not self.model.training:
            return loss
        divergence = self._teacher.divergence(self.causal_lm, outputs[-1], inputs)
        num_tokens = outputs[-1].last_hidden_state.shape[1] if num_items_in_batch is None else num_items_in_batch
        if num_items_in_batch is not None and self.args.average_tokens_across_devices:
            divergence = divergence * (self.accelerator.num_processes // self.get_tp_size())  # as SFTTrainer's loss
        weight = self.args.distill_weight
        return (1 - weight) * loss + weight * divergence / torch.as_tensor(num_tokens).clamp(min=1)

    @cached_property
    def _can_select_positions(self) -> bool:
        is_usual = self.compute_loss_func is None and self.label_smoother is None and not self.args.torch_compile
        is_cheaper = scores_every_position(self.args.device) and (self.history is not None or self.is_compared)
        return self._teacher is not None or (is_usual and is_cheaper)

    # Measuring, logging and saving.

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix: str = "eval") -> dict[str, float]:
        """Evaluate as SFTTrainer does; with choices in the evaluation set, also the accuracy over them."""
        metrics = super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)
        examples = self._evaluation_examples if self.history is not None and eval_dataset is None else []
        if examples and choose_metric(None, examples) == "accuracy":
            accuracy = self._score(examples, "accuracy")
            metrics[f"{metric_key_prefix}_accuracy"] = accuracy
            Trainer.log(self, {f"{metric_key_prefix}_accuracy": accuracy})
        return metrics

    def _save_depth(self) -> None:
        """Keep the model as it is now, healed at its depth, if `save_depths` asks for it."""
        if self.history.depth in (self.args.save_depths or ()):
            history = self.history
            self._measure("trimmed")
            self.save_model(str(Path(self.args.output_dir) / f"depth-{history.depth}"), _internal_call=True)
            self.history = history

    @cached_property
    def layout(self) -> Layout:
        """How examples are laid out for scoring: the fastest way that is exact for this model, tried once."""
        return from_main(choose_layout(self.causal_lm, self._calibration_examples + self._evaluation_examples))

    @contextmanager
    def _scoring(self) -> Iterator[None]:
        """The model scores as it evaluates: in the precision of training, with the optimizer's averaged weights."""
        evaluating = getattr(self.optimizer, "eval", None)
        if callable(evaluating):  # schedule-free; the next training step turns it back
            evaluating()
        with self.accelerator.autocast():
            yield
        if is_quantized(self.causal_lm) and self.args.device.type == "cpu":
            self.causal_lm.state_dict()  # undoes bitsandbytes' order of weights for CPU kernels without gradients

    def _measure(self, name: str) -> None:
        speed = self._time_both() if name == "trimmed" else None
        with self._scoring():
            measured = measure_model(name, self.causal_lm, self._evaluation_examples, self.layout, speed)
        self.history = self.history.add(from_main(measured))

    def _time_both(self) -> float | None:
        """Time the untrimmed depth again beside this one: a machine is rarely as idle at the end as at the beginning.

        Returns:
            Tokens per second at the depth as it is now; None: there is no full depth to be had beside it.
        """
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            return None
        twin = full_depth_twin(self.causal_lm, self._untrimmed_config, self.history.kept)
        if twin is None:
            return None
        before, now = from_main(measure_in_turns([twin, self.causal_lm]))
        self.history = self.history.add(replace(self.history.measured("untrimmed"), tokens_per_second=before))
        return now

    def _calibration_metric(self) -> float:
        return self._score(self._calibration_examples, self.history.calibration_metric)

    def _score(self, examples: list[ScoredExample], metric: str) -> float:
        with self._scoring():
            log_probs = score_choices(self.causal_lm, examples, self.layout, self.args.scan_batch_tokens)
        return measure(log_probs, examples, metric).item()

    def _decayed(self) -> list[str]:
        return self.get_decay_parameter_names(self.model)

    def _tokenize_examples(self, dataset: Iterable[dict]) -> list[ScoredExample]:
        """Multiple choice as prompts and choices; anything else as SFTTrainer prepares and labels it."""
        rows = list(dataset)
        if rows and "choices" not in rows[0] and not self._skip_prepare_dataset:
            options = (self.processing_class, self.args, False, self._formatting_func, "calibration")
            rows = self._prepare_dataset(Dataset.from_list(rows), *options)
        return tokenize_examples(rows, self._tokenizer)
