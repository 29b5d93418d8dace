"""What a run measures of its model: before training, at each depth that it keeps, and at the end."""

from dataclasses import replace

from ..records.measurement import Measurement
from ..scoring.measuring import measure_model
from ..scoring.processes import from_main
from ..scoring.speed import measure_in_turns
from ..surgery.full_depth import full_depth_twin


def measure_run(trainer, decode_tokens_per_second: float | None = None) -> Measurement:
    """Measure the model of a `TrimTrainer` as it is now.

    Args:
        trainer: The run.
        decode_tokens_per_second: Of the model; None: timed here.
    """
    with trainer.scoring():
        measured = measure_model(
            trainer.causal_lm,
            trainer.evaluation_sets.examples,
            trainer.trimming.layout,
            decode_tokens_per_second=decode_tokens_per_second,
        )
    return from_main(measured)


def measure_trimmed(trainer) -> None:
    """Measure the model at its depth, and time the untrimmed one again beside it."""
    trimming = trainer.trimming
    before, now = _time_both(trainer)
    if before is not None:
        untrimmed = replace(trimming.history.untrimmed, decode_tokens_per_second=before)
        trimming.history = replace(trimming.history, untrimmed=untrimmed)
    trimming.history = trimming.history.add(measure_run(trainer, now))


def _time_both(trainer) -> tuple[float | None, float | None]:
    """Tokens per second of the untrimmed depth and of this one: a machine is rarely as idle at the end as before.

    None: there is no full depth to be had beside it.
    """
    if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
        return None, None
    twin = full_depth_twin(trainer.causal_lm, trainer.untrimmed_config, trainer.history.kept)
    if twin is None:
        return None, None
    return tuple(from_main(measure_in_turns([twin, trainer.causal_lm])))
