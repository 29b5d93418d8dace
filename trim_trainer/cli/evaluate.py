"""`trim-trainer evaluate`: checkpoints side by side."""

import json
from pathlib import Path

from ..evaluation.quiet import quiet_libraries
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
    parser.add_argument("--lm-eval", action="store_true", help="the accuracy by lm-evaluation-harness too")
    parser.add_argument("--output", help="JSON file for the numbers")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--python", help="interpreter of an environment that runs what `trim-trainer export` wrote")
    parser.add_argument("--trust-remote-code", action="store_true", help="run code that comes with a model")
    options = parser.parse_args(arguments)
    from ..evaluation.tasks import read_task
    from ..exporting.measuring import evaluate_models

    quiet_libraries()
    if options.output is not None:
        check_file("--output", options.output)
        Path(options.output).parent.mkdir(parents=True, exist_ok=True)
    found = evaluate_models(
        options.models,
        [read_task(path, options.limit) for path in options.task],
        python=options.python,
        dtype=options.dtype,
        batch_tokens=options.batch_tokens,
        has_lm_eval=options.lm_eval,
        trust_remote_code=options.trust_remote_code,
    )
    reports = list(found)
    numbers = json.dumps([report.to_plain() for report in reports], indent=1)
    if options.output is not None:
        Path(options.output).write_text(numbers + "\n", encoding="utf-8")
    if options.json:
        print(numbers)
    else:
        tables.print_checkpoints(reports)
    return 0
