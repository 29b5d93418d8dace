"""The quickstart next to its controls: majority, untrained, and full depth fine-tuned on the same examples.

    python benchmarks/quickstart_controls.py [--output_dir out/controls] [--field value ...]

Every option goes to each run. A run whose folder holds `result.json` is not run again.
"""

import argparse
import json
import sys
import time
from pathlib import Path

from trim_trainer.calibration import tokenize_examples
from trim_trainer.cli import quiet_libraries
from trim_trainer.evaluation import measure_model
from trim_trainer.recipe import build_trainer, load_splits, parse_recipe
from trim_trainer.scan import choose_layout

RECIPE = str(Path(__file__).parent.parent / "recipes" / "quickstart.yaml")
# Full depth is the best honest baseline, so it is tuned too: all parameters, at three learning rates.
FULL_DEPTH = ["--target_layers", "none", "--sparse_update_ratio", "none", "--learning_rate"]
RUNS = {
    "trimmed (recipe)": [],
    "full depth, lr 2e-5": [*FULL_DEPTH, "2e-5"],
    "full depth, lr 5e-5": [*FULL_DEPTH, "5e-5"],
    "full depth, lr 1e-4": [*FULL_DEPTH, "1e-4"],
    "full depth, lr 2e-4": [*FULL_DEPTH, "2e-4"],
}


def run(name: str, options: list[str], folder: Path) -> dict:
    result_path = folder / "result.json"
    if result_path.exists():
        return json.loads(result_path.read_text())
    recipe = parse_recipe(["--config", RECIPE, *options, "--output_dir", str(folder), "--overwrite_output_dir"])
    trainer = build_trainer(recipe)
    test = load_splits(recipe.script_args)[recipe.script_args.dataset_test_split]
    examples = tokenize_examples(test, trainer.processing_class)
    layout = choose_layout(trainer.model, examples)
    with trainer.accelerator.autocast():
        before = measure_model("before", trainer.model, examples, layout)
        started = time.perf_counter()
        trainer.train()
        seconds = time.perf_counter() - started
        after = measure_model("after", trainer.model, examples, layout)
    result = {
        "name": name,
        "depth": after.depth,
        "num_examples": after.num_examples,
        "majority": after.majority_accuracy,
        "untrained": before.accuracy,
        "accuracy": after.accuracy,
        "seconds": seconds,
        "tokens_per_second": after.tokens_per_second,
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
            f"{name:24} {result['depth']:3d} layers  accuracy {result['accuracy']:.3f} (untrained "
            f"{result['untrained']:.3f}, majority {result['majority']:.3f}, n = {result['num_examples']})  "
            f"{result['seconds']:5.0f} s  {result['tokens_per_second']:5.1f} tokens/s",
            flush=True,
        )


if __name__ == "__main__":
    sys.exit(main())
