"""What trimming costs and saves at the size that people use: random weights, one GPU, under 12 minutes.

    python benchmarks/large.py --output large.csv                      # Llama-2-7B's geometry
    python benchmarks/large.py --geometry qwen3-8b --output large.csv
    python benchmarks/large.py --geometry thin --output large.csv      # on a CPU, to see that it runs

Seconds of an optimizer step and peak memory of training at full and at half depth, all parameters, a quarter of the layers,
LoRA and QLoRA; seconds and peak memory of a scan of every layer, of a drop with the layer in front taking over, and of one
without; decoding and prefill at full, half and (as in the paper) three eighths of the depth. Values of weights do not matter
for any of it. Every figure comes from a process of its own, one after the other, each with a time limit; a row is written as
soon as it is there, so a run that is cut off leaves what it had. A row that failed says why.
"""

import argparse
import datetime
import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
import transformers
from csv_file import add_row
from datasets import Dataset
from peft import LoraConfig
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    LlamaConfig,
    PreTrainedTokenizerFast,
    Qwen3Config,
    TrainerCallback,
)

from trim_trainer import TrimConfig, TrimTrainer, drop_layers, score_layers
from trim_trainer.data.tokens import tokenize_examples
from trim_trainer.evaluation.quiet import quiet_libraries
from trim_trainer.recovery.compensation import compensated
from trim_trainer.scoring.speed import (
    device_name,
    measure_prefill_tokens_per_second,
    measure_tokens_per_second,
    peak_memory_bytes,
)
from trim_trainer.training.sparse_update import freeze_all_but

GEOMETRIES = {
    "llama-7b": LlamaConfig(),
    "qwen3-8b": Qwen3Config(
        hidden_size=4096, intermediate_size=12288, num_hidden_layers=36, num_attention_heads=32, num_key_value_heads=8,
        head_dim=128, vocab_size=151936,
    ),
    "thin": LlamaConfig(
        hidden_size=64, intermediate_size=172, num_hidden_layers=32, num_attention_heads=4, num_key_value_heads=4,
        vocab_size=2000,
    ),
}  # fmt: skip
NUM_STEPS, BATCH_SIZE, LENGTH = 6, 4, 256  # of training; the first two steps warm up
NUM_CALIBRATION, NUM_COMPENSATION = 24, 64
LORA = {"r": 16, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}
NAMES = (
    "date",
    "device",
    "versions",
    "geometry",
    "what",
    "depth",
    "seconds",
    "peak_bytes",
    "tokens_per_second",
    "failed",
)
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def make_tokenizer(vocab_size: int) -> PreTrainedTokenizerFast:
    """Tokens are numbers: texts of any length in tokens, and nothing to download."""
    backend = Tokenizer(models.WordLevel({str(number): number for number in range(vocab_size)}, unk_token="0"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="0", eos_token="1", unk_token="0")


def draw_examples(number: int, vocab_size: int, length: int) -> list[dict]:
    """Questions of random tokens with four answers."""
    rng = random.Random(0)

    def words(count: int) -> str:
        return " ".join(str(rng.randrange(2, vocab_size)) for _ in range(count))

    rows = [(words(length - 4), [f" {words(4)}" for _ in range(4)], rng.randrange(4)) for _ in range(number)]
    return [
        {"prompt": prompt, "completion": choices[answer], "choices": choices, "answer": answer}
        for prompt, choices, answer in rows
    ]


def make_model(geometry: str, depth: int, is_quantized: bool = False):
    """A model of this geometry with its first layers only, in bf16 on a GPU."""
    config = GEOMETRIES[geometry]
    config.num_hidden_layers = depth
    if hasattr(config, "layer_types") and config.layer_types is not None:
        config.layer_types = config.layer_types[:depth]
    torch.manual_seed(0)
    dtype = torch.bfloat16 if DEVICE == "cuda" else torch.float32
    with torch.device(DEVICE):
        torch.set_default_dtype(dtype)
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
        torch.set_default_dtype(torch.float32)
    if not is_quantized:
        return model.eval()
    # Weights of four bits are made while a checkpoint is loaded.
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        del model
        torch.cuda.empty_cache()
        rounding = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16
        )
        return AutoModelForCausalLM.from_pretrained(
            folder, quantization_config=rounding, dtype=dtype, device_map={"": DEVICE}
        )


def forget_peak() -> None:
    """Let the peak of the GPU's memory be that of what comes now."""
    if DEVICE == "cuda":
        torch.cuda.reset_peak_memory_stats()


def wait() -> None:
    """Until the device has done what it was given."""
    if DEVICE == "cuda":
        torch.cuda.synchronize()


class Clock(TrainerCallback):
    """Seconds of each step."""

    def __init__(self):
        self.ends = []

    def on_step_end(self, *args, **kwargs):
        """Note the time, once the device has done what it was given."""
        wait()
        self.ends.append(time.perf_counter())


def train(
    geometry: str, depth: int, folder: str, adapts: bool = False, is_quantized: bool = False, ratio=None
) -> dict:
    """Seconds of a step: the median of those after the second."""
    model = make_model(geometry, depth, is_quantized)
    size = model.config.vocab_size
    forget_peak()
    clock, rows = Clock(), draw_examples(NUM_STEPS * BATCH_SIZE, size, LENGTH)
    args = TrimConfig(
        output_dir=folder, max_steps=NUM_STEPS, per_device_train_batch_size=BATCH_SIZE, report_to="none", save_strategy="no",
        use_cpu=DEVICE == "cpu", bf16=DEVICE == "cuda" and (adapts or is_quantized), gradient_checkpointing=True,
        optim="adamw_torch_fused" if DEVICE == "cuda" else "adamw_torch", logging_steps=NUM_STEPS, disable_tqdm=True,
    )  # fmt: skip
    trainer = TrimTrainer(
        model, args, train_dataset=Dataset.from_list([{key: row[key] for key in ("prompt", "completion")} for row in rows]),
        processing_class=make_tokenizer(size), callbacks=[clock], peft_config=LoraConfig(**LORA) if adapts else None,
    )  # fmt: skip
    if ratio is not None:
        freeze_all_but(model, range(depth - round(ratio * depth), depth))
    trainer.train()
    steps = sorted(after - before for before, after in zip(clock.ends[1:], clock.ends[2:], strict=False))
    return {"seconds": steps[len(steps) // 2]}


def scan(geometry: str, depth: int, folder: str) -> dict:
    """Seconds of scoring every layer by leaving it out."""
    model = make_model(geometry, depth)
    size = model.config.vocab_size
    rows, tokenizer = draw_examples(NUM_CALIBRATION, size, 96), make_tokenizer(size)
    score_layers(model, tokenizer, rows[:2], criterion="sensitivity")  # warms up
    forget_peak()
    return timed(lambda: score_layers(model, tokenizer, rows, criterion="sensitivity"))


def drop(geometry: str, depth: int, folder: str, takes_over: bool) -> dict:
    """Seconds of dropping half of the layers, with the layer in front taking over or not."""
    model = make_model(geometry, depth)
    size = model.config.vocab_size
    rows = draw_examples(NUM_COMPENSATION if takes_over else 0, size, 96)
    examples = tokenize_examples(rows, make_tokenizer(size)) if rows else []
    layers = list(range(depth // 2, depth))
    forget_peak()

    def run():
        with compensated(model, layers, examples):
            drop_layers(model, layers)

    return timed(run)


def timed(run) -> dict:
    """Seconds of one run."""
    started = time.perf_counter()
    run()
    wait()
    return {"seconds": time.perf_counter() - started}


def decode(geometry: str, depth: int, folder: str) -> dict:
    """Tokens per second of one greedy stream."""
    return {"tokens_per_second": measure_tokens_per_second(make_model(geometry, depth))}


def prefill(geometry: str, depth: int, folder: str) -> dict:
    """Tokens per second of reading prompts."""
    return {"tokens_per_second": measure_prefill_tokens_per_second(make_model(geometry, depth))}


# What stands in the table -> function, shares of the depth, further arguments, whether it needs a GPU.
WORK = {
    "train, all parameters": (train, (1, 1 / 2), {}, False),
    "train, a quarter of the layers": (train, (1,), {"ratio": 0.25}, False),
    "train, LoRA": (train, (1, 1 / 2), {"adapts": True}, False),
    "train, QLoRA": (train, (1, 1 / 2), {"adapts": True, "is_quantized": True}, True),
    "scan": (scan, (1,), {}, False),
    "drop half": (drop, (1,), {"takes_over": False}, False),
    "drop half, the layer in front takes over": (drop, (1,), {"takes_over": True}, False),
    "decode": (decode, (1, 1 / 2, 3 / 8), {}, False),
    "prefill": (prefill, (1, 1 / 2, 3 / 8), {}, False),
}


def run_alone(what: str, geometry: str, depth: int, limit: float) -> dict:
    """Measure in a fresh process; what went wrong is part of the answer."""
    command = [sys.executable, __file__, "--geometry", geometry, "--one", json.dumps([what, depth])]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit)
    except subprocess.TimeoutExpired:
        return {"failed": f"not done after {limit:.0f} s"}
    if done.returncode:
        return {"failed": (done.stderr.strip().splitlines() or ["killed"])[-1][:200]}
    return json.loads(done.stdout.strip().splitlines()[-1])


def measure_one(what: str, geometry: str, depth: int) -> None:
    """Print one figure as JSON; runs in a process of its own."""
    quiet_libraries()
    function, _, options, _ = WORK[what]
    with tempfile.TemporaryDirectory() as folder:
        found = function(geometry, depth, folder, **options)
    print(json.dumps(found | {"peak_bytes": peak_memory_bytes(torch.device(DEVICE))}))


def main() -> None:
    """Measure everything that fits into the time, and write a row for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--geometry", choices=GEOMETRIES, default="llama-7b")
    parser.add_argument("--output", type=Path, help="CSV, to which rows are added")
    parser.add_argument(
        "--minutes", type=float, default=12, help="after which nothing new begins, and what runs is cut off"
    )
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        what, depth = json.loads(options.one)
        measure_one(what, options.geometry, depth)
        return
    end, whole = time.monotonic() + 60 * options.minutes, GEOMETRIES[options.geometry].num_hidden_layers
    shared = {
        "date": datetime.date.today().isoformat(), "device": device_name(torch.device(DEVICE)), "geometry": options.geometry,
        "versions": f"torch {torch.__version__}, transformers {transformers.__version__}",
    }  # fmt: skip
    for what, (_, shares, _, needs_gpu) in WORK.items():
        for depth in (round(share * whole) for share in shares):
            if needs_gpu and DEVICE == "cpu":
                found = {"failed": "needs a GPU"}
            elif (left := end - time.monotonic()) < 5:
                found = {"failed": "no time was left"}
            else:
                found = run_alone(what, options.geometry, depth, min(left, 180))
            add_row(shared | {"what": what, "depth": depth} | found, NAMES, options.output)
            print(f"{what}, {depth} layers: {found}", flush=True)


if __name__ == "__main__":
    main()
