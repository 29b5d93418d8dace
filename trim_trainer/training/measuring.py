"""What a run measures of its model: before training, at each depth that it keeps, and at the end."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch

from ..checkpoints.precision import as_stored, is_fast, num_bytes_in
from ..records.measurement import Measurement, SpeedRatio
from ..scoring.cache import measure_cache
from ..scoring.hooks import plain_forward
from ..scoring.measuring import measure_model
from ..scoring.processes import from_main
from ..scoring.speed import measure_in_turns
from ..surgery.drop import is_quantized
from ..surgery.full_depth import full_depth_twin


def measure_run(trainer, **facts) -> Measurement:
    """Measure the model of a `TrimTrainer` as it would be saved now.

    Args:
        trainer: The run.
        facts: Fields that are known already. Decoding is timed here unless it is among them.
    """
    is_as_saved = not trainer.is_sharded and is_fast(trainer.dtype_to_save, trainer.causal_lm.device)
    if not is_as_saved and not is_quantized(trainer.causal_lm):
        facts["num_bytes"] = num_bytes_in(trainer.causal_lm, trainer.dtype_to_save)
        facts["cache"] = measure_cache(trainer.causal_lm, trainer.dtype_to_save)
    with trainer.scoring(), _as_saved(trainer):
        measured = measure_model(
            trainer.causal_lm,
            trainer.evaluation_sets.examples,
            trainer.trimming.layout,
            is_merged=trainer.args.merge_adapter,
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


@contextmanager
def _as_saved(trainer) -> Iterator[None]:
    """The model computes as who loads the saved one has it. Sharded weights cannot: it computes as it evaluates."""
    model = trainer.causal_lm
    if trainer.is_sharded:
        yield
        return
    with (
        as_stored(model, trainer.dtype_to_save),
        plain_forward(model),
        torch.autocast(model.device.type, enabled=False),
    ):
        yield


def _time_both(trainer) -> tuple[float, float, SpeedRatio] | None:
    """Tokens per second of the untrimmed depth and of this one, and their ratio: a machine is rarely as idle as before.

    None: there is no full depth to be had beside it.
    """
    if trainer.is_sharded:
        return None
    with _as_saved(trainer):
        twin = full_depth_twin(trainer.causal_lm, trainer.untrimmed_config, trainer.history.kept)
        return None if twin is None else from_main(measure_in_turns(twin, trainer.causal_lm))
