"""Results of `trim-trainer compare` as CSV, one line per cell.

    python benchmarks/results_csv.py FOLDER... > docs/results.csv

FOLDER: where `compare` wrote (`--output_dir`); cells of several are put together.
"""

import csv
import json
import sys
from pathlib import Path

SETTINGS = (
    "dataset_name", "max_train_samples", "num_train_epochs", "per_device_train_batch_size", "importance", "layers_per_trim",
    "trim_steps", "trim_delay", "protected_layers", "calibration_size", "compensation_size", "distill_from",
)  # fmt: skip
MEASURED = (
    "train_seconds", "calibration_seconds", "num_train_tokens", "train_peak_bytes", "num_bytes", "decode_tokens_per_second",
    "prefill_tokens_per_second", "device",
)  # fmt: skip
QUALITY = ("num_examples", "accuracy", "macro_f1", "loss")


def to_line(result: dict) -> dict:
    """One cell as a flat dictionary."""
    settings = {name: result["settings"].get(name) for name in SETTINGS}
    for name in ("dataset_name", "distill_from"):
        settings[name] = settings[name] and Path(settings[name]).name
    line = {**result["cell"], **settings, "dropped": result["dropped"]}
    line |= {name: result["quality"]["recipe"][name] for name in QUALITY}
    for task, quality in result["quality"].items():
        if task != "recipe":
            line |= {f"{task}_accuracy": quality["accuracy"], f"{task}_perplexity": quality["perplexity"]}
    line |= {name: result[name] for name in MEASURED}
    return {name: _show(value) for name, value in line.items()}


def _show(value) -> str:
    if value is None:
        return ""
    if isinstance(value, list):
        return " ".join(str(entry) for entry in value)
    return f"{value:.5g}" if isinstance(value, float) else str(value)


def main(folders: list[str]) -> None:
    """Print the lines of all cells under the folders, each once."""
    paths = [path for folder in folders for path in sorted(Path(folder).glob("*/depth-*/lr-*/seed-*/result.json"))]
    lines = [to_line(json.loads(path.read_text(encoding="utf-8"))) for path in paths]
    writer = csv.DictWriter(sys.stdout, list(dict.fromkeys(name for line in lines for name in line)), restval="")
    writer.writeheader()
    writer.writerows({tuple(line.items()): line for line in lines}.values())


if __name__ == "__main__":
    main(sys.argv[1:])
