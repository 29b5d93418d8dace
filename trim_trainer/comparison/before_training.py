"""Controls that drop all layers at once, before training: the same algorithm, once, on a model that is not trained yet."""

from functools import partial

from transformers import PreTrainedModel

from ..data.metrics import choose_metric, scored_by
from ..importance.criteria import criterion_name
from ..importance.unit import SUBLAYER
from ..records.history import TrimHistory
from ..recovery.quality_floor import QualityFloor
from ..surgery.cpu_kernels import keep_order
from ..training.compensating import choose_compensation_size, why_none_takes_over
from ..training.protection import choose_protected_layers
from ..training.sparse_update import choose_trained_layers, freeze_all_but
from ..training.trainer import TrimTrainer
from ..training.trimming import Trimming, TrimSettings
from .methods import METHODS, Method


def drop_before_training(trainer: TrimTrainer, method: Method, calibration, depth: int) -> Trimming:
    """Score the untrained model once, drop down to `depth` at once, and freeze what does not train.

    Args:
        trainer: Without a target, so that it trains what it is given.
        method: One that drops before training.
        calibration: Examples on which layers are scored.
        depth: To reach, in layers.

    Returns:
        What went, how, and how long the choice took.

    Raises:
        ValueError: too few layers can be dropped.
    """
    args = trainer.args
    criterion, num_layers = (
        method.criterion or args.importance,
        trainer.model.config.get_text_config().num_hidden_layers,
    )
    examples = trainer.tokenize_examples(calibration)
    keep_order(trainer.model)
    if method.compensates:
        trainer.compensation_size = choose_compensation_size(trainer, partial(why_none_takes_over, trainer, examples))
    if method is METHODS["tail_compensated"] and trainer.compensation_size == 0:
        raise ValueError(
            "`--methods` contains tail_compensated, but this run cannot compensate: it would be tail again."
        )
    metric = choose_metric(args.calibration_metric, examples)
    examples = scored_by(metric, examples)
    protected = choose_protected_layers(args.protected_layers, criterion, trainer.causal_lm, num_layers, depth)
    settings = TrimSettings(
        seed=args.seed,
        scan_batch_tokens=args.scan_batch_tokens,
        layers_per_trim=num_layers - depth,
        # Not raced: the layers that go are compared with each other here, not only the best of them.
        racing_confidence=None,
        # What the recipe protects belongs to its own criterion; controls drop what theirs says.
        protected_layers=protected if method.criterion is None else (),
        compensates=method.compensates,
        with_seams=args.trim_unit == SUBLAYER,  # as the method has it
        measures_drops=False,
    )
    history = TrimHistory(num_layers, depth, criterion_name(criterion), metric, len(examples))
    trimming = Trimming(trainer, history, criterion, examples, settings, QualityFloor(None, metric))
    trimming.trim_to(depth)
    left = trimming.history.depth
    if left > depth:
        raise ValueError(
            f"`depths` contains {depth}, but only {num_layers - left} of {num_layers - depth} layers can be dropped: name a "
            "larger depth, or protect fewer layers."
        )
    _freeze(trainer, method, trimming)
    return trimming


def _freeze(trainer: TrimTrainer, method: Method, trimming: Trimming) -> None:
    model, ratio, history = trainer.model, trainer.args.sparse_update_ratio, trimming.history
    if method.num_last_trained is not None:
        freeze_all_but(model, range(max(0, history.depth - method.num_last_trained), history.depth))
        _train_head(model)
    elif ratio is not None:
        scored = history.rounds[-1]
        freeze_all_but(
            model, choose_trained_layers(tuple(map(scored.score_of, history.kept)), ratio, history.num_layers)
        )


def _train_head(model: PreTrainedModel) -> None:
    """Let the head train; where it is tied to the embedding, that is the embedding too."""
    model.get_output_embeddings().requires_grad_(True)
