"""The quickstart next to its controls: untrained, and full depth fine-tuned on the same examples.

    python benchmarks/quickstart_controls.py [--output_dir out/controls] [--only TEXT] [--field value ...]

Every other option goes to each run. A run whose folder holds `result.json` is not run again.
"""

import argparse
import json
import sys
import time
from pathlib import Path

from trim_trainer.data.tokens import tokenize_examples
from trim_trainer.evaluation.quiet import quiet_libraries
from trim_trainer.recipe import build_trainer, load_splits, parse_recipe
from trim_trainer.scoring.measuring import measure_model
from trim_trainer.scoring.trial import choose_layout

RECIPE = str(Path(__file__).parent.parent / "recipes" / "quickstart.yaml")
# Full depth is the baseline to beat, so its learning rate is tuned too. All of its parameters train.
FULL_DEPTH = ["--target_layers", "none", "--learning_rate"]
RUNS = {
    "untrained": [*FULL_DEPTH, "0"],
    "full depth, lr 1e-4": [*FULL_DEPTH, "1e-4"],
    "full depth, lr 2e-4": [*FULL_DEPTH, "2e-4"],
    "full depth, lr 5e-4": [*FULL_DEPTH, "5e-4"],
    "trimmed (recipe)": [],
    "trimmed, sparse update": ["--sparse_update_ratio", "0.25", "--learning_rate", "5e-4"],
}


def run(name: str, options: list[str], folder: Path) -> dict:
    result_path = folder / "result.json"
    if result_path.exists():
        return json.loads(result_path.read_text())
    recipe = parse_recipe(["--config", RECIPE, *options, "--output_dir", str(folder), "--overwrite_output_dir"])
    trainer = build_trainer(recipe)
    test = load_splits(recipe.script_args, needs_test=True)[recipe.script_args.dataset_test_split]
    examples = tokenize_examples(test, trainer.processing_class)
    started = time.perf_counter()
    if name != "untrained":
        trainer.train()
    seconds = time.perf_counter() - started
    layout = choose_layout(trainer.model, examples)
    with trainer.accelerator.autocast():
        measured = measure_model(name, trainer.model, examples, layout)
    result = {
        "name": name,
        "depth": measured.depth,
        "num_examples": measured.num_examples,
        "majority_accuracy": measured.majority_accuracy,
        "accuracy": measured.accuracy,
        "loss": measured.loss,
        "seconds": seconds,
    }
    folder.mkdir(parents=True, exist_ok=True)
    result_path.write_text(json.dumps(result, indent=1))
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", default="out/controls", type=Path)
    parser.add_argument("--only", default="", help="run only the controls whose name contains this")
    arguments, options = parser.parse_known_args()
    quiet_libraries()
    for name, changes in RUNS.items():
        if arguments.only not in name:
            continue
        slug = name.replace(" ", "_").replace(",", "").replace("(", "").replace(")", "")
        result = run(name, [*options, *changes], arguments.output_dir / slug)
        print(
            f"{name:22} {result['depth']} layers  accuracy {result['accuracy']:.3f}  loss {result['loss']:.4f}  "
            f"{result['seconds']:4.0f} s  (n = {result['num_examples']}, most frequent answer "
            f"{result['majority_accuracy']:.3f})",
            flush=True,
        )


if __name__ == "__main__":
    sys.exit(main())
