"""From a `TrimConfig` to the algorithm: what is scored, by what, how, from where on it stops, and what must not change."""

from functools import partial

from accelerate.utils import is_peft_model

from ..checkpoints.frozen import FrozenWeights
from ..data.examples import ScoredExample
from ..data.metrics import choose_metric, scored_by
from ..importance.criteria import CriterionLike, criterion_name
from ..importance.unit import SUBLAYER
from ..records.history import TrimHistory
from ..records.vocabulary import VocabularyRecord
from ..recovery.quality_floor import QualityFloor
from ..surgery.drop import is_quantized
from .drop_log import log_drop
from .members import has_members, keep_depth
from .protection import choose_protected_layers
from .schedule import choose_layers_per_trim
from .trimming import Trimming, TrimSettings


def make_trimming(
    trainer,
    examples: list[ScoredExample],
    criterion: CriterionLike,
    depths: tuple[int, int],
    vocabulary: VocabularyRecord | None = None,
) -> Trimming:
    """Make the algorithm for a `TrimTrainer`, as its config says.

    Args:
        trainer: The run.
        examples: The calibration set.
        criterion: A name in `CRITERIA`, or a function of the user's.
        depths: Of the model, and to reach.
        vocabulary: What a smaller one kept; None: it is the whole one.
    """
    num_layers, target = depths
    args, metric = trainer.args, choose_metric(trainer.args.calibration_metric, examples)
    examples = scored_by(metric, examples)
    history = TrimHistory(
        num_layers=num_layers,
        target_layers=target,
        importance=criterion_name(criterion),
        calibration_metric=metric,
        calibration_size=len(examples),
        compensation_size=trainer.compensation_size,
        vocabulary=vocabulary,
    )
    trimming = Trimming(
        trainer,
        history,
        criterion,
        examples,
        TrimSettings(
            seed=args.seed,
            scan_batch_tokens=args.scan_batch_tokens,
            layers_per_trim=choose_layers_per_trim(args.layers_per_trim, num_layers),
            racing_confidence=args.racing_confidence,
            sparse_update_ratio=None if is_peft_model(trainer.model) else args.sparse_update_ratio,
            protected_layers=choose_protected_layers(
                args.protected_layers, criterion, trainer.causal_lm, num_layers, target
            ),
            with_seams=args.trim_unit == SUBLAYER,
        ),
        QualityFloor(args.max_metric_drop, metric),
        other_examples=trainer.evaluation_examples,
        on_round=lambda a_round: log_drop(trainer, a_round),
        before_drop=partial(keep_depth, trainer),
    )
    if args.load_best_model_at_end or has_members(trainer):
        trimming.keep_untrimmed()
    return trimming


def frozen_weights_of(trainer) -> FrozenWeights | None:
    """What a quantized base model is when the run begins; None: it is not quantized, or spread over processes."""
    if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled or not is_quantized(trainer.causal_lm):
        return None
    return FrozenWeights.take(trainer.causal_lm)
