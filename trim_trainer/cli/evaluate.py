"""`trim-trainer evaluate`: checkpoints side by side."""

import json
from pathlib import Path

from ..evaluation.quiet import quiet_libraries
from ..records.measurement import MEMORY_SIZES, SEQUENCE_LENGTH, memory_beside
from . import tables
from .options import DTYPES, Parser, at_least, check_file


def evaluate(arguments: list[str]) -> int:
    """Measure checkpoints and print them side by side, or as JSON."""
    parser = Parser(
        prog="trim-trainer evaluate", description="Quality, speed, memory and load time of checkpoints, side by side."
    )
    parser.add_argument(
        "models", nargs="+", help="Hub ids (name@revision for a branch or tag), folders, or exported ones"
    )
    parser.add_argument("--task", nargs="+", default=[], help="recipes, or YAML files with the data of one alone")
    parser.add_argument("--limit", type=at_least(1), help="examples, or windows of running text, per task")
    parser.add_argument(
        "--dtype", default="auto", choices=DTYPES, help="auto (as stored), float32, bfloat16 or float16"
    )
    parser.add_argument("--batch-tokens", type=at_least(1), help="tokens of one pass; default: what is fast")
    parser.add_argument(
        "--sequence-length",
        type=at_least(1),
        default=SEQUENCE_LENGTH,
        help=f"tokens of a sequence whose KV cache is counted; default: {SEQUENCE_LENGTH:,}",
    )
    parser.add_argument(
        "--memory", type=at_least(1), metavar="GB",
        help="how many such sequences fit beside the weights in so many GB; default: that of the GPU, or "
        f"{MEMORY_SIZES[0]} or more where there is none",
    )  # fmt: skip
    parser.add_argument("--lm-eval", action="store_true", help="the accuracy by lm-evaluation-harness too")
    parser.add_argument("--output", help="JSON file for the numbers")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--python", help="interpreter of an environment that runs what `trim-trainer export` wrote")
    parser.add_argument("--trust-remote-code", action="store_true", help="run code that comes with a model")
    options = parser.parse_args(arguments)
    from ..evaluation.tasks import read_tasks
    from ..exporting.measuring import evaluate_models

    quiet_libraries()
    if options.output is not None:
        check_file("--output", options.output)
        Path(options.output).parent.mkdir(parents=True, exist_ok=True)
    reports = evaluate_models(
        options.models,
        read_tasks(options.task, options.limit),
        python=options.python,
        dtype=options.dtype,
        batch_tokens=options.batch_tokens,
        has_lm_eval=options.lm_eval,
        trust_remote_code=options.trust_remote_code,
    )
    memory = options.memory or _memory_of_gpu() or memory_beside([report.measured for report in reports])
    numbers = json.dumps([_with_serving(report, options.sequence_length, memory) for report in reports], indent=1)
    if options.output is not None:
        Path(options.output).write_text(numbers + "\n", encoding="utf-8")
    if options.json:
        print(numbers)
    else:
        tables.print_checkpoints(reports, options.sequence_length, memory)
    return 0


def _memory_of_gpu() -> int | None:
    """Of the first one, GB; None: there is none."""
    import torch

    return torch.cuda.get_device_properties(0).total_memory // 10**9 if torch.cuda.is_available() else None


def _with_serving(report, sequence_length: int, memory: int) -> dict:
    """The numbers, with what stands in the table beside them."""
    measured = report.measured
    return report.to_plain() | {
        "sequence_length": sequence_length,
        "cache_bytes_per_sequence": measured.cache and measured.cache.num_bytes(sequence_length),
        "memory_gb": memory,
        "num_sequences": measured.num_sequences(sequence_length, memory * 10**9),
    }
