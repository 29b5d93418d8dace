"""Calibration, plain against staggered against racing: seconds, scores, memory, and how they grow.

    python benchmarks/scan.py

50 multiple-choice examples with 4 choices on SmolLM2-135M-Instruct and on a Qwen3 of like size with random weights,
float32. Plain: the model's own forward pass, a row per choice in batches, once per layer that is left out; one row: the
same without batches, as evaluation loops mostly do it. `--shots 5` puts the same five solved examples in front of each
question, as few-shot evaluation does. Every measurement runs in a process of its own, one after the other,
so that its peak memory is its own; the time is that of the calibration alone. Takes an hour on 2 cores.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen3Config
from transformers.utils import logging

from trim_trainer.data.metrics import measure as metric_of
from trim_trainer.data.metrics import scored_by
from trim_trainer.data.quickstart import draw_icd10_examples, prepare_smollm2
from trim_trainer.data.tokens import tokenize_examples
from trim_trainer.importance.calibration import Settings
from trim_trainer.importance.choice import choose_layers
from trim_trainer.importance.scores import LayerScores, calibrate
from trim_trainer.scoring.layout import ONE_BY_ONE, PLAIN
from trim_trainer.scoring.scan import scan_layers
from trim_trainer.scoring.trial import choose_layout
from trim_trainer.surgery.drop import drop_layers

QWEN3 = {
    "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 28, "num_attention_heads": 9,
    "num_key_value_heads": 3, "head_dim": 64, "vocab_size": 49152, "tie_word_embeddings": True,
}  # fmt: skip
NUM_EXAMPLES, CONFIDENCE = 50, 0.95
# None: the fastest that is exact.
WAYS = {"one row": ONE_BY_ONE, "plain": PLAIN, "staggered": None, "race": None}


def load(name: str, num_layers: int | None):
    """The model, with only its first layers where a number is given."""
    if name == "smollm2":
        model = AutoModelForCausalLM.from_pretrained(prepare_smollm2(), dtype=torch.float32)
    else:
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(Qwen3Config(**QWEN3))
    if num_layers is not None:
        drop_layers(model, range(num_layers, model.config.num_hidden_layers))
    return model.eval()


def draw_examples(num_examples: int, num_shots: int) -> list[dict]:
    """ICD-10 questions, behind the same solved examples each."""
    splits = draw_icd10_examples()
    shots = [f"{shot['prompt']}{shot['completion']}\n\n" for shot in list(splits["train"])[:num_shots]]
    return [{**row, "prompt": "".join(shots) + row["prompt"]} for row in list(splits["test"])[:num_examples]]


def measure(
    mode: str, name: str, metric: str, num_shots: int, num_examples: int, num_layers: int | None, output: str
) -> None:
    """Calibrate once and write what was found; runs in a process of its own."""
    logging.set_verbosity_error()
    model = load(name, num_layers)
    tokenizer = AutoTokenizer.from_pretrained(prepare_smollm2())
    examples = scored_by(metric, tokenize_examples(draw_examples(num_examples, num_shots), tokenizer))
    layout = WAYS[mode] or choose_layout(model, examples)
    scan_layers(model, examples[:2], layout, candidates=[0])  # warms up
    started = time.perf_counter()
    if mode == "race":
        scored = calibrate(model, examples, "sensitivity", Settings(metric, layout, racing_confidence=CONFIDENCE))
        seconds, log_probs = time.perf_counter() - started, None
    else:
        scan = scan_layers(model, examples, layout)
        seconds, log_probs = time.perf_counter() - started, scan.log_probs
        values = metric_of(log_probs, examples, metric)
        harms = values[0] - values[1:] if metric == "accuracy" else values[1:] - values[0]
        norms = None if scan.activation_norms is None else tuple(scan.activation_norms.tolist())
        scored = LayerScores(tuple(harms.tolist()), norms, values[0].item())
    every_layer = set(range(model.config.num_hidden_layers))
    torch.save(
        {
            "seconds": seconds,
            "chosen": choose_layers(scored, "sensitivity", 1, lambda chosen: every_layer - set(chosen))[0],
            "log_probs": log_probs,
            "peak_bytes": 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
            "layout": str(layout),
            "tokens": sum(example.num_tokens for example in examples),
        },
        output,
    )


def in_process(mode: str, name: str, metric: str, num_shots=0, num_examples=NUM_EXAMPLES, num_layers=None) -> dict:
    """Run one measurement in a fresh process."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "result.pt"
        task = [mode, name, metric, num_shots, num_examples, num_layers, str(output)]
        subprocess.run([sys.executable, __file__, "--task", json.dumps(task)], check=True)
        return torch.load(output)


def compare(name: str, metric: str, num_shots: int, ways: list[str]) -> None:
    """Print the ways next to each other."""
    results = {}
    for mode in ways:
        results[mode] = result = in_process(mode, name, metric, num_shots)
        if len(results) == 1:
            print(
                f"\n{name}, {metric}, {num_shots} shots, {NUM_EXAMPLES} examples, {result['tokens']} tokens, each once"
            )
        ratios = [
            f"{results[other]['seconds'] / result['seconds']:5.1f}× {other}" for other in ways[:2] if other in results
        ]
        print(
            f"  {mode:10} {result['seconds']:7.1f} s  drops layer {result['chosen']:2}"
            f"  peak {result['peak_bytes'] / 2**20:6.0f} MiB  {'  '.join(ratios)}",
            flush=True,
        )
    for mode in ways[:2]:
        if mode in ("one row", "plain") and "staggered" in results:
            errors = (results[mode]["log_probs"] - results["staggered"]["log_probs"]).abs().amax(1)
            worst = errors.argmax().item()
            print(
                f"  largest difference of a summed log-probability, staggered and {mode}: {errors[worst]:.1e} nats (without"
                f" layer {worst - 1}); second {errors.sort().values[-2]:.1e}; {results['staggered']['layout']}",
                flush=True,
            )


def growth(name: str) -> None:
    """Print how the staggered scan grows with examples and with layers."""
    print(f"\n{name}, staggered, 4 choices")
    for num_examples in (25, 50, 100):
        result = in_process("staggered", name, "accuracy", 0, num_examples)
        print(
            f"  {num_examples:4} examples, all layers: {result['seconds']:6.1f} s, peak {result['peak_bytes'] / 2**20:6.0f} MiB",
            flush=True,
        )
    for num_layers in (10, 20):
        result = in_process("staggered", name, "accuracy", 0, NUM_EXAMPLES, num_layers)
        print(f"  {NUM_EXAMPLES:4} examples, {num_layers} layers: {result['seconds']:6.1f} s", flush=True)


def main() -> None:
    """Run everything, or the one measurement of a child process."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", help=argparse.SUPPRESS)
    parser.add_argument("--only", choices=("compare", "growth"), help="half of it")
    parser.add_argument("--models", nargs="+", default=["smollm2", "qwen3"], choices=("smollm2", "qwen3"))
    parser.add_argument("--metrics", nargs="+", default=["accuracy", "loss"], choices=("accuracy", "loss"))
    parser.add_argument("--shots", type=int, default=0, help="solved examples in front of each question")
    parser.add_argument("--ways", nargs="+", default=[*WAYS], choices=[*WAYS])
    options = parser.parse_args()
    if options.task:
        measure(*json.loads(options.task))
        return
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}, float32")
    if options.only != "growth":
        for name in options.models:
            for metric in options.metrics:
                compare(name, metric, options.shots, options.ways)
    if options.only != "compare":
        growth("smollm2")


if __name__ == "__main__":
    main()
