"""Memory, time, and calibration's share of it, of the quickstart: full fine-tuning beside trimming.

    python benchmarks/memory.py

Bytes are those of the parameters, gradients and optimizer state that the process holds right before an optimizer step,
where all three are there; peak over the run. Every run is a process of its own. About 18 minutes on 2 cores.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import torch
from transformers import TrainerCallback

RECIPE = Path(__file__).parents[1] / "recipes" / "quickstart.yaml"
RUNS = {
    "full fine-tuning": {"target_layers": None, "sparse_update_ratio": None},
    "trimming, all parameters": {"sparse_update_ratio": None},
    "trimming, sparse update 0.25": {"sparse_update_ratio": 0.25},
}


class Bytes(TrainerCallback):
    """Counts what the process holds before each optimizer step."""

    def __init__(self):
        self.steps = []

    def on_pre_optimizer_step(self, *args, model=None, optimizer=None, **kwargs):
        """Count before the step, where gradients are there."""
        parameters = list(model.parameters())
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        moments = [value for of_one in optimizer.state.values() for value in of_one.values()]
        kinds = {"parameters": parameters, "gradients": gradients, "optimizer": moments}
        self.steps.append(
            {
                kind: sum(t.untyped_storage().nbytes() for t in tensors if isinstance(t, torch.Tensor))
                for kind, tensors in kinds.items()
            }
        )


def run(name: str) -> None:
    """Train once and print what was counted; runs in a process of its own."""
    from trim_trainer.evaluation.quiet import quiet_libraries
    from trim_trainer.recipe import build_trainer, parse_recipe

    quiet_libraries()
    folder = f"out/memory-{name.replace(' ', '-').replace(',', '')}"
    recipe = parse_recipe(["--config", str(RECIPE), "--output_dir", folder, "--overwrite_output_dir"], prog="memory")
    for key, value in RUNS[name].items():
        setattr(recipe.training_args, key, value)
    counted = Bytes()
    trainer = build_trainer(recipe, callbacks=[counted])
    trainer.is_compared = True
    started = time.perf_counter()
    trainer.train()
    facts = {kind: max(step[kind] for step in counted.steps) for kind in counted.steps[0]}
    facts["together"] = max(sum(step.values()) for step in counted.steps)
    facts["at the end"] = sum(counted.steps[-1].values())
    facts["seconds"] = time.perf_counter() - started
    history = trainer.history
    facts["calibration"] = history.calibration_seconds if history else 0.0
    facts["accuracy"] = history.trimmed.evaluation.accuracy if history else None
    print(json.dumps(facts))


def main() -> None:
    """Run everything and print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", choices=[*RUNS], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.run:
        run(options.run)
        return
    print(
        "| | parameters | gradients | optimizer | together | at the end | seconds | of them calibration | accuracy |"
    )
    print("|---" * 9 + "|")
    for name in RUNS:
        done = subprocess.run([sys.executable, __file__, "--run", name], check=True, stdout=subprocess.PIPE, text=True)
        facts = json.loads(done.stdout.strip().splitlines()[-1])
        seconds, calibration, accuracy = (facts.pop(key) for key in ("seconds", "calibration", "accuracy"))
        cells = [f"{value / 2**20:.0f} MiB" for value in facts.values()]
        cells += [f"{seconds:.0f} s", f"{calibration:.0f} s ({calibration / seconds:.0%})"]
        print(f"| {name} | {' | '.join(cells)} | {'' if accuracy is None else f'{accuracy:.3f}'} |", flush=True)


if __name__ == "__main__":
    main()
