"""Seconds, memory and decoding speed of full fine-tuning and of trimming, side by side, on random weights of a known shape.

    python benchmarks/training_time.py --shape llama-3.2-1b --steps 60 --batch 8 --length 512

Weights and texts are random: time and memory do not depend on them, accuracy is no matter here. Every run is a process of
its own. Seconds are those of training with calibration and drops, after a warm-up; ratios are to SFTTrainer, the first row.
"""

import argparse
import random
import sys
import tempfile
import time

import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast
from trl import SFTConfig, SFTTrainer

from trim_trainer import TrimConfig, TrimTrainer, drop_layers
from trim_trainer.comparison.cells import Clock
from trim_trainer.evaluation.isolation import run_alone
from trim_trainer.evaluation.quiet import quiet_libraries
from trim_trainer.scoring.speed import device_name, measure_tokens_per_second, peak_memory_bytes

# Model type, and the sizes of its published config in the order of SIZES.
SIZES = (
    "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim",
    "vocab_size", "tie_word_embeddings",
)  # fmt: skip
SHAPES = {
    "smollm2-135m": ("llama", 576, 1536, 30, 9, 3, 64, 49152, True),
    "qwen3-0.6b": ("qwen3", 1024, 3072, 28, 16, 8, 128, 151936, True),
    "llama-3.2-1b": ("llama", 2048, 8192, 16, 32, 8, 64, 128256, True),
    "llama-3.1-8b": ("llama", 4096, 14336, 32, 32, 8, 128, 128256, False),
}
RUNS = ("SFTTrainer", "full depth", "progressive", "progressive, drops at once", "one-shot, last layers")
NUM_WORDS, NUM_CALIBRATION = 1000, 24


def make_tokenizer() -> PreTrainedTokenizerFast:
    """One token per word."""
    words = ["<pad>", "</s>", "<unk>", *(f"w{number}" for number in range(NUM_WORDS))]
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")


def make_texts(number: int, length: int, seed: int) -> Dataset:
    """Prompts and completions of random words, `length` tokens together, the last one the end of the text."""
    draw = random.Random(seed)

    def words(count):
        return " ".join(f"w{draw.randrange(NUM_WORDS)}" for _ in range(count))

    half = length // 2
    return Dataset.from_list(
        [{"prompt": words(half), "completion": " " + words(length - half - 1)} for _ in range(number)]
    )


def run(name: str, options: argparse.Namespace) -> dict:
    """Train once and return what was measured."""
    quiet_libraries()
    model_type, *values = SHAPES[options.shape]
    sizes = dict(zip(SIZES, values, strict=True))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    config = AutoConfig.for_model(model_type, **sizes, pad_token_id=0, bos_token_id=None, eos_token_id=1)
    torch.manual_seed(0)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, options.dtype))
    depth, target = sizes["num_hidden_layers"], sizes["num_hidden_layers"] // 2
    settings = {
        "output_dir": f"{options.output_dir}/{name}", "max_steps": options.steps, "per_device_train_batch_size": options.batch,
        "max_length": options.length, "bf16": True, "save_strategy": "no", "report_to": "none", "logging_strategy": "no",
        "optim": options.optim, "disable_tqdm": True, "use_cpu": device == "cpu",
        "activation_checkpointing": options.activation_checkpointing,
    }  # fmt: skip
    data = {
        "train_dataset": make_texts(options.steps * options.batch, options.length, 0),
        "processing_class": make_tokenizer(),
        "callbacks": [clock := Clock()],
    }
    if name == "one-shot, last layers":
        drop_layers(model, range(target, depth))
    if name.startswith("progressive"):
        settings |= {"target_layers": target, "layers_per_trim": options.layers_per_trim}
        settings |= {"trim_steps": 1 if name.endswith("at once") else None, "calibration_size": NUM_CALIBRATION}
        data["calibration_dataset"] = make_texts(NUM_CALIBRATION, options.length, 1)
    is_plain = name == "SFTTrainer"
    if is_plain:
        trainer = SFTTrainer(model, args=SFTConfig(**settings), **data)
    else:
        trainer = TrimTrainer(model, args=TrimConfig(**settings), **data)
        trainer.is_compared = True
    warm_up(model, options, device)
    if device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    started = time.perf_counter()
    trainer.train()
    seconds = clock.ended - started
    peak = peak_memory_bytes(model.device)
    history = None if is_plain else trainer.history
    del trainer
    return {
        "layers": model.config.num_hidden_layers,
        "seconds": seconds,
        "calibration": history.calibration_seconds if history else 0.0,
        "peak": peak,
        "bytes": model.get_memory_footprint(),
        "decode": measure_tokens_per_second(model.to(torch.bfloat16)),
        "device": device_name(model.device),
    }


def warm_up(model, options: argparse.Namespace, device: str) -> None:
    """Two passes forward and back, so that what a device does once is not counted."""
    ids = torch.randint(3, NUM_WORDS, (options.batch, options.length), device=device)
    for _ in range(2):
        with torch.autocast(device, torch.bfloat16):
            model(input_ids=ids, labels=ids).loss.backward()
        model.zero_grad(set_to_none=True)


def main() -> None:
    """Run everything and print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=[*SHAPES], default="llama-3.2-1b")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--layers_per_trim", type=int, default=1)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--optim", default="adamw_torch_fused")
    parser.add_argument("--activation_checkpointing", action="store_true")
    parser.add_argument("--runs", nargs="+", choices=RUNS, default=RUNS)
    options = parser.parse_args()
    print("| | layers | training | of it calibration | ratio | peak memory | weights | decoding |")
    print("|---" * 8 + "|")
    first = None
    with tempfile.TemporaryDirectory() as options.output_dir:
        for name in options.runs:
            facts = run_alone(run, name, options)
            first = first or facts
            print(
                f"| {name} | {facts['layers']} | {facts['seconds']:.1f} s | {facts['calibration']:.1f} s | "
                f"{facts['seconds'] / first['seconds']:.2f} | {facts['peak'] / 2**30:.1f} GiB | "
                f"{facts['bytes'] / 2**30:.2f} GiB | {facts['decode']:.1f} tokens/s |",
                flush=True,
            )
    print(f"\n{facts['device']}, torch {torch.__version__}; {' '.join(sys.argv[1:])}")


if __name__ == "__main__":
    main()
