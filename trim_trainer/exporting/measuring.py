"""Exported models beside checkpoints: the same facts, measured in the runtime that serves them."""

from pathlib import Path

from ..checkpoints.loading import Source
from ..evaluation.checkpoints import CheckpointReport, evaluate_checkpoints
from ..evaluation.tasks import Task
from ..records.export_report import ExportReport
from ..records.files import EXPORT_NAME
from ..records.measurement import Measurement
from ..scoring.speed import NUM_TIMED_RUNS, NUM_TIMED_TOKENS, PREFILL_SHAPE, cpu_name
from .environments import find_interpreter
from .session import Session
from .targets import TARGETS
from .verification import measure_exported


def evaluate_models(
    models: list[str], tasks: list[Task], *, python: str | None = None, **options
) -> list[CheckpointReport]:
    """Measure checkpoints, then exported models, one after the other, each in a process of its own.

    Args:
        models: As for `evaluate_checkpoints`, or folders that `export` wrote.
        tasks: What to evaluate on.
        python: Interpreter of an environment that has what runs the exported ones; None: as for `export`.
        options: Of `evaluate_checkpoints`, for checkpoints.

    Raises:
        ExportError: there is no environment that runs an exported model, or it cannot be run.
        ValueError: unusable data.
        OSError: no such model.
    """
    found = {model: ExportReport.load(Path(model)) for model in models if (Path(model) / EXPORT_NAME).is_file()}
    interpreters = {model: find_interpreter(TARGETS[each.target].environment, python) for model, each in found.items()}
    checkpoints = iter(evaluate_checkpoints([model for model in models if model not in found], tasks, **options))
    return [
        _measure(model, found[model], interpreters[model], tasks) if model in found else next(checkpoints)
        for model in models
    ]


def _measure(model: str, report: ExportReport, interpreter: Path, tasks: list[Task]) -> CheckpointReport:
    tokenizer = Source.of(model).load_tokenizer() if tasks else None
    with Session(interpreter, report.target, Path(model)) as session:
        decoding = session.ask("decode", num_streams=1, num_tokens=NUM_TIMED_TOKENS, num_runs=NUM_TIMED_RUNS)
        num_prompts, num_tokens = PREFILL_SHAPE
        prefill = session.ask("prefill", num_streams=num_prompts, num_tokens=num_tokens, num_runs=NUM_TIMED_RUNS)
        peak = session.ask("memory")
        quality = {task.name: measure_exported(session, task.examples(tokenizer)) for task in tasks}
    measured = Measurement(
        depth=report.num_layers,
        num_parameters=report.num_parameters,
        num_bytes=report.num_bytes,
        peak_memory_bytes=peak,
        load_seconds=session.load_seconds,
        decode_tokens_per_second=NUM_TIMED_TOKENS / min(decoding),
        prefill_tokens_per_second=num_prompts * num_tokens / min(prefill),
        device=cpu_name(),
        dtype=f"{TARGETS[report.target].title} {report.weights}",
        precision=report.weights,
        quality=quality,
    )
    return CheckpointReport(model, measured)
