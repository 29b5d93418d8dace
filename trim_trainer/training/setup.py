"""From a `TrimConfig` to the algorithm: what is scored, by what, how, and from where on it stops."""

from accelerate.utils import is_peft_model

from ..data.examples import ScoredExample
from ..data.metrics import choose_metric, scored_by
from ..importance.criteria import CriterionLike, criterion_name
from ..records.history import TrimHistory
from ..recovery.quality_floor import QualityFloor
from .drop_log import log_drop
from .trimming import Trimming, TrimSettings


def make_trimming(
    trainer, examples: list[ScoredExample], criterion: CriterionLike, num_layers: int, target: int
) -> Trimming:
    """Make the algorithm for a `TrimTrainer`, as its config says.

    Args:
        trainer: The run.
        examples: The calibration set.
        criterion: A name in `CRITERIA`, or a function of the user's.
        num_layers: Depth of the model.
        target: Depth to reach.
    """
    args, metric = trainer.args, choose_metric(trainer.args.calibration_metric, examples)
    examples = scored_by(metric, examples)
    history = TrimHistory(
        num_layers=num_layers,
        target_layers=target,
        importance=criterion_name(criterion),
        calibration_metric=metric,
        calibration_size=len(examples),
        compensation_size=args.compensation_size,
    )
    trimming = Trimming(
        trainer,
        history,
        criterion,
        examples,
        TrimSettings(
            seed=args.seed,
            scan_batch_tokens=args.scan_batch_tokens,
            layers_per_trim=args.layers_per_trim,
            racing_confidence=args.racing_confidence,
            sparse_update_ratio=None if is_peft_model(trainer.model) else args.sparse_update_ratio,
            protected_layers=tuple(args.protected_layers or ()),
        ),
        QualityFloor(args.max_metric_drop, metric),
        other_examples=trainer.evaluation_examples,
        on_round=lambda a_round: log_drop(trainer, a_round),
        before_drop=trainer.keep_depth,
    )
    if args.load_best_model_at_end:
        trimming.keep_untrimmed()
    return trimming
