"""What a run measures of its model: before training, at each depth that it keeps, and at the end."""

from dataclasses import replace

from ..records.measurement import Measurement, SpeedRatio
from ..scoring.measuring import measure_model
from ..scoring.processes import from_main
from ..scoring.speed import measure_in_turns
from ..surgery.full_depth import full_depth_twin


def measure_run(trainer, **facts) -> Measurement:
    """Measure the model of a `TrimTrainer` as it is now.

    Args:
        trainer: The run.
        facts: Fields that are known already. Decoding is timed here unless it is among them.
    """
    with trainer.scoring():
        measured = measure_model(
            trainer.causal_lm,
            trainer.evaluation_sets.examples,
            trainer.trimming.layout,
            **facts,
        )
    return from_main(measured)


def measure_trimmed(trainer) -> None:
    """Measure the model at its depth, and time the untrimmed one again beside it."""
    trimming = trainer.trimming
    facts = {}
    if timed := _time_both(trainer):
        before, now, ratio = timed
        untrimmed = replace(trimming.history.untrimmed, decode_tokens_per_second=before)
        trimming.history = replace(trimming.history, untrimmed=untrimmed)
        facts = {"decode_tokens_per_second": now, "decode_ratio": ratio}
    trimming.history = trimming.history.add(measure_run(trainer, **facts))


def _time_both(trainer) -> tuple[float, float, SpeedRatio] | None:
    """Tokens per second of the untrimmed depth and of this one, and their ratio: a machine is rarely as idle as before.

    None: there is no full depth to be had beside it.
    """
    if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
        return None
    twin = full_depth_twin(trainer.causal_lm, trainer.untrimmed_config, trainer.history.kept)
    if twin is None:
        return None
    return from_main(measure_in_turns(twin, trainer.causal_lm))
