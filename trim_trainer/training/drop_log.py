"""What TensorBoard, Trackio and the others are told about a drop."""

from transformers import Trainer
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

from ..records.history import Round, place_of


def log_drop(trainer: Trainer, a_round: Round) -> None:
    """Log a drop everywhere; the importance of every layer only where it becomes a curve, not on the console."""
    should_log = trainer.control.should_log
    logs = {
        "trim_depth": a_round.depth_after,
        "trim_score": a_round.score_of(a_round.dropped[0]),
        f"trim_{trainer.history.calibration_metric}": a_round.metric_after,
    }
    if a_round.decode_tokens_per_second is not None:
        logs["trim_tokens_per_second"] = a_round.decode_tokens_per_second
    # Reporters plot numbers only: what goes together is logged one by one, a seam as the place between its layers.
    for place, each in enumerate(a_round.dropped, start=1):
        logs["trim_layer" if place == 1 else f"trim_layer_{place}"] = place_of(each)
    Trainer.log(trainer, logs)
    trainer.control.should_log = should_log  # this step's loss is still to be logged
    importance = {
        f"importance/layer_{layer:02}": score for layer, score in zip(a_round.layers, a_round.scores, strict=True)
    }
    for callback in trainer.callback_handler.callbacks:
        if isinstance(callback, tuple(INTEGRATION_TO_CALLBACK.values())):
            callback.on_log(trainer.args, trainer.state, trainer.control, logs=importance, model=trainer.model)
