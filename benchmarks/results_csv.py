"""Results of `trim-trainer compare` as CSV, one line per cell.

    python benchmarks/results_csv.py FOLDER... --into docs/results.csv [--beside 16]

FOLDER: where `compare` wrote (`--output_dir`). Lines of the file are kept, cells that are among them already are not
added again. Settings that a method does not use are left empty, and `trim_steps` of an automatic schedule is written
out, if `max_train_samples` says how long the run was. With `--beside` so many runs shared a GPU: the line says so and has
no seconds.
"""

import argparse
import csv
import json
import math
from pathlib import Path

from trim_trainer.comparison.methods import METHODS
from trim_trainer.training.schedule import plan_schedule

SETTINGS = (
    "dataset_name", "max_train_samples", "num_train_epochs", "per_device_train_batch_size", "importance", "layers_per_trim",
    "trim_steps", "trim_delay", "protected_layers", "calibration_size", "compensation_size",
    "scale_learning_rate", "distill_from", "vocab_size", "use_peft",
)  # fmt: skip
MEASURED = (
    "train_seconds", "calibration_seconds", "num_train_tokens", "train_peak_bytes", "num_bytes", "decode_tokens_per_second",
    "prefill_tokens_per_second", "device",
)  # fmt: skip
QUALITY = ("num_examples", "accuracy", "macro_f1", "loss")
TIMED = ("train_seconds", "calibration_seconds", "decode_tokens_per_second", "prefill_tokens_per_second")
BATCH_SIZE = 8  # of `TrainingArguments`, where a recipe has none


def to_line(result: dict, beside: int | None = None) -> dict[str, str]:
    """One cell as a flat dictionary."""
    line = {**result["cell"], **_used_settings(result), "dropped": result["dropped"]}
    line |= {name: result["quality"]["recipe"][name] for name in QUALITY}
    for task, quality in result["quality"].items():
        if task != "recipe":
            line |= {f"{task}_accuracy": quality["accuracy"], f"{task}_perplexity": quality["perplexity"]}
    line |= {name: result[name] for name in MEASURED}
    if beside:
        line |= {"device": f"{line['device']}, {beside} runs at a time"} | dict.fromkeys(TIMED)
    return {name: _show(value) for name, value in line.items()}


def _used_settings(result: dict) -> dict:
    found = result["settings"] | (result.get("chosen") or {})
    settings = {name: found.get(name) for name in SETTINGS}
    for name in ("dataset_name", "distill_from"):
        settings[name] = settings[name] and Path(settings[name]).name
    method, unused = METHODS[result["cell"]["method"]], []
    if method.drops != "while":
        unused += ["layers_per_trim", "trim_steps", "trim_delay"]
        if method.drops == "never" or method.criterion is not None:
            unused.append("protected_layers")
    elif settings["trim_steps"] is None and settings["max_train_samples"] is not None:
        settings["trim_steps"] = _automatic_interval(settings, result)
    if not method.compensates or not settings["compensation_size"]:
        unused.append("compensation_size")
    if not settings["scale_learning_rate"]:  # as where it did not exist
        unused.append("scale_learning_rate")
    return settings | dict.fromkeys(unused)


def _automatic_interval(settings: dict, result: dict) -> int:
    """Steps between two drops."""
    batch_size = settings["per_device_train_batch_size"] or BATCH_SIZE
    steps = (
        result["cell"].get("num_steps")
        or math.ceil(settings["max_train_samples"] / batch_size) * settings["num_train_epochs"]
    )
    num_layers, delay = result["depth"] + len(result["dropped"]), settings["trim_delay"] or 0
    plan = plan_schedule(
        num_layers, result["depth"], total=steps, layers_per_trim=settings["layers_per_trim"] or 1, trim_delay=delay
    )
    return int(plan.points[0][0] - delay)


def _show(value) -> str:
    if value is None:
        return ""
    if isinstance(value, list):
        return " ".join("|".join(map(str, entry)) if isinstance(entry, list) else str(entry) for entry in value)
    return f"{value:.5g}" if isinstance(value, float) else str(value)


def _order(line: dict[str, str]) -> tuple:
    names = ("dataset_name", "num_train_epochs", "method", "trim_steps", "protected_layers")
    data, epochs, method, steps, protected = (line.get(name) or "" for name in names)
    return data, float(epochs or 0), method != "full", method, steps, protected, int(line["seed"])


def main(arguments: list[str] | None = None) -> None:
    """Add the cells under the folders to the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER")
    parser.add_argument("--into", type=Path, required=True, metavar="FILE")
    parser.add_argument("--beside", type=int, metavar="NUMBER")
    args = parser.parse_args(arguments)
    lines = []
    if args.into.is_file():
        with args.into.open(encoding="utf-8", newline="") as file:
            lines = list(csv.DictReader(file))
    paths = [path for folder in args.folders for path in sorted(folder.glob("*/depth-*/lr-*/seed-*/result.json"))]
    lines += [to_line(json.loads(path.read_text(encoding="utf-8")), args.beside) for path in paths]
    found = dict.fromkeys(name for line in lines for name in line)
    names = [name for name in found if any(line.get(name) for line in lines)]
    lines = list({tuple(line.get(name) or "" for name in names): line for line in lines}.values())
    with args.into.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, names, restval="", extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(sorted(lines, key=_order))


if __name__ == "__main__":
    main()
