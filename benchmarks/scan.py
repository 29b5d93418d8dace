"""Calibration, plain against staggered against racing: seconds, scores, memory, and how they grow.

    python benchmarks/scan.py

50 multiple-choice examples with 4 choices on SmolLM2-135M-Instruct and on a Qwen3 of like size with random weights,
float32. Plain: the model's own forward pass, a row per choice, once per layer that is left out. Every measurement runs in
a process of its own, one after the other, so that its peak memory is its own; the time is that of the calibration alone,
after a short one to warm up. Takes about half an hour on 2 cores.
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

from trim_trainer.calibration import scored_by, tokenize_examples
from trim_trainer.importance import Settings, calibrate, choose_layers
from trim_trainer.quickstart import draw_icd10_examples, prepare_smollm2
from trim_trainer.scan import PLAIN, choose_layout, scan_layers
from trim_trainer.surgery import drop_layers

QWEN3 = {
    "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 28, "num_attention_heads": 9,
    "num_key_value_heads": 3, "head_dim": 64, "vocab_size": 49152, "tie_word_embeddings": True,
}  # fmt: skip
NUM_EXAMPLES, CONFIDENCE = 50, 0.95


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


def measure(mode: str, name: str, metric: str, num_examples: int, num_layers: int | None, output: str) -> None:
    """Calibrate once and write what was found; runs in a process of its own."""
    logging.set_verbosity_error()
    model = load(name, num_layers)
    tokenizer = AutoTokenizer.from_pretrained(prepare_smollm2())
    examples = scored_by(metric, tokenize_examples(draw_icd10_examples()["test"][:num_examples], tokenizer))
    layout = PLAIN if mode == "plain" else choose_layout(model, examples)
    confidence = CONFIDENCE if mode == "race" else None
    settings = Settings(metric, layout, racing_confidence=confidence)
    if mode != "plain":
        scan_layers(model, examples[:8], layout)
    loaded = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if mode == "race":
        started = time.perf_counter()
        scored = calibrate(model, examples, "sensitivity", settings)
        seconds, log_probs = time.perf_counter() - started, None
    else:
        started = time.perf_counter()
        log_probs = scan_layers(model, examples, layout).log_probs
        seconds = time.perf_counter() - started
        values = measure_scores(log_probs, examples, metric)
        scored = values
    depth = model.config.num_hidden_layers
    scores = scored.scores if mode == "race" else scored.tolist()
    (chosen,) = (
        choose_layers(scored, "sensitivity", 1, lambda chosen: set(range(depth)) - set(chosen))
        if mode == "race"
        else [min(range(depth), key=lambda layer: scores[layer])]
    )
    torch.save(
        {
            "seconds": seconds,
            "chosen": chosen,
            "scores": scores,
            "log_probs": log_probs,
            "peak_bytes": 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss),
            "loaded_bytes": 1024 * loaded,
            "layout": str(layout),
            "tokens": sum(example.num_tokens for example in examples),
        },
        output,
    )


def measure_scores(log_probs: torch.Tensor, examples, metric: str) -> torch.Tensor:
    """How much worse the metric gets without each layer."""
    from trim_trainer.calibration import measure as metric_of

    values = metric_of(log_probs, examples, metric)
    return values[0] - values[1:] if metric == "accuracy" else values[1:] - values[0]


def in_process(mode: str, name: str, metric: str, num_examples=NUM_EXAMPLES, num_layers=None) -> dict:
    """Run one measurement in a fresh process."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "result.pt"
        task = [mode, name, metric, num_examples, num_layers, str(output)]
        subprocess.run([sys.executable, __file__, "--task", json.dumps(task)], check=True)
        return torch.load(output)


def compare(name: str, metric: str) -> None:
    """Print the three ways next to each other."""
    plain, fast, raced = (in_process(mode, name, metric) for mode in ("plain", "staggered", "race"))
    error = (plain["log_probs"] - fast["log_probs"]).abs().max().item()
    print(
        f"\n{name}, {metric}, {NUM_EXAMPLES} examples, {plain['tokens']} tokens in prompts and choices; {fast['layout']}"
    )
    for mode, result in (("plain", plain), ("staggered", fast), ("race", raced)):
        print(
            f"  {mode:10} {result['seconds']:7.1f} s  {plain['seconds'] / result['seconds']:5.1f}×  layer {result['chosen']:2}"
            f"  peak {result['peak_bytes'] / 2**20:6.0f} MiB",
            flush=True,
        )
    print(f"  largest difference of a summed log-probability, staggered and plain: {error:.1e} nats")


def growth(name: str) -> None:
    """Print how the staggered scan grows with examples and with layers."""
    print(f"\n{name}, staggered, 4 choices")
    for num_examples in (25, 50, 100, 200):
        result = in_process("staggered", name, "accuracy", num_examples)
        print(
            f"  {num_examples:4} examples, all layers: {result['seconds']:6.1f} s, peak {result['peak_bytes'] / 2**20:6.0f} MiB",
            flush=True,
        )
    for num_layers in (10, 20, 30):
        result = in_process("staggered", name, "accuracy", NUM_EXAMPLES, num_layers)
        print(f"  {NUM_EXAMPLES:4} examples, {num_layers} layers: {result['seconds']:6.1f} s", flush=True)


def main() -> None:
    """Run everything, or the one measurement of a child process."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", help=argparse.SUPPRESS)
    parser.add_argument("--only", choices=("compare", "growth"), help="half of it")
    options = parser.parse_args()
    if options.task:
        measure(*json.loads(options.task))
        return
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}, float32")
    if options.only != "growth":
        for name in ("smollm2", "qwen3"):
            for metric in ("accuracy", "loss"):
                compare(name, metric)
    if options.only != "compare":
        growth("smollm2")


if __name__ == "__main__":
    main()
