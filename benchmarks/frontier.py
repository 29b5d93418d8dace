"""Accuracy, bytes and decode speed of checkpoints of one task, each exported with 32, 8 and 4 bits: what a user chooses from.

    python benchmarks/frontier.py out/full out/l15 out/l12 out/l15v --task task.yaml --output docs/frontier.csv

The first checkpoint is the whole model. All are held at once, each in a process of its own, and decode 32 tokens of one
stream round by round, the order turning around; ratios are those of one round to the whole model with 32 bits, as the
median with its 95 % interval. Accuracy is that of the task's test split in the same runtime.
"""

import argparse
import csv
import datetime
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch
from inference import WORK, measure

from trim_trainer import export
from trim_trainer.checkpoints.loading import Source
from trim_trainer.evaluation.tasks import read_task
from trim_trainer.exporting.environments import find_interpreter
from trim_trainer.exporting.session import Session
from trim_trainer.exporting.targets import TARGETS
from trim_trainer.exporting.verification import measure_exported
from trim_trainer.records.statistics import median_interval, wilson_interval
from trim_trainer.scoring.speed import device_name

TARGET, WEIGHTS, DECODING = "openvino", ("fp32", "int8", "int4"), "decode, 1 stream"
NAMES = (
    "date", "device", "versions", "task", "model", "depth", "vocab_size", "weights", "num_bytes", "num_examples",
    "accuracy", "accuracy_low", "accuracy_high", "loss", "tokens_per_second", "to_whole", "to_whole_low", "to_whole_high",
)  # fmt: skip


@dataclass(frozen=True)
class Exported:
    """A checkpoint in the runtime, and what was measured of it."""

    folder: Path
    facts: dict


def export_and_score(checkpoint: str, weights: str, folder: Path, task, interpreter: Path) -> Exported:
    """Export, which compares it with the checkpoint, and score the examples of the task."""
    report = export(checkpoint, TARGET, folder, weights=weights, task="none")
    source = Source.of(checkpoint)
    with Session(interpreter, TARGET, folder) as session:
        quality = measure_exported(session, task.examples(source.load_tokenizer()))
    low, high = wilson_interval(quality.accuracy, quality.num_examples)
    facts = {
        "model": Path(checkpoint).name, "depth": report.num_layers, "vocab_size": source.load_config().vocab_size,
        "weights": weights, "num_bytes": report.num_bytes, "num_examples": quality.num_examples, "loss": quality.loss,
        "accuracy": quality.accuracy, "accuracy_low": low, "accuracy_high": high,
    }  # fmt: skip
    print(f"{checkpoint}, {weights}: accuracy {quality.accuracy:.3f}, {report.num_bytes / 1e6:.0f} MB", flush=True)
    return Exported(folder, facts)


def main() -> None:
    """Export, score, time, and write a CSV."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoints", nargs="+", help="folders, the whole model first")
    parser.add_argument("--task", required=True, help="recipe, or YAML with the data of one")
    parser.add_argument("--limit", type=int, help="examples of the task; default: all")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--output", type=Path, required=True, help="CSV")
    options = parser.parse_args()
    task, interpreter = read_task(options.task, options.limit), find_interpreter(TARGETS[TARGET].environment)
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        made = [
            export_and_score(checkpoint, weights, Path(name) / f"{number}-{weights}", task, interpreter)
            for number, checkpoint in enumerate(options.checkpoints)
            for weights in WEIGHTS
        ]
        sessions = {each.folder.name: stack.enter_context(Session(interpreter, TARGET, each.folder)) for each in made}
        seconds = measure(sessions, DECODING, options.rounds)
        versions = ", ".join(f"{name} {version}" for name, version in sessions[made[0].folder.name].versions.items())
        shared = {
            "date": datetime.date.today().isoformat(), "device": device_name(torch.device("cpu")), "versions": versions,
            "task": task.name,
        }  # fmt: skip
        with options.output.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, NAMES)
            writer.writeheader()
            for each in made:
                own, whole = seconds[each.folder.name], seconds[made[0].folder.name]
                ratios = [one / other for one, other in zip(whole, own, strict=True)]
                speeds = dict(zip(("to_whole", "to_whole_low", "to_whole_high"), median_interval(ratios), strict=True))
                speeds["tokens_per_second"] = WORK[DECODING][1] / sorted(own)[len(own) // 2]
                writer.writerow(shared | each.facts | speeds)
                print(each.facts["model"], each.facts["weights"], speeds, flush=True)


if __name__ == "__main__":
    main()
