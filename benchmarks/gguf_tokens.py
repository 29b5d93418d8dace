"""Check that a trimmed checkpoint gives the same greedy tokens in llama.cpp as in Transformers.

Drops decoder layers, saves the model, converts it to GGUF in float32 with llama.cpp's own converter, and decodes a few
prompts greedily in both runtimes. The untouched checkpoint goes through the same steps as a control. Both runtimes get
the token ids of the Hugging Face tokenizer, hold weights and cache in float32, and run on the CPU, so that only the
model is compared. Exits with 1 on any difference.
Measured: 5 prompts × 32 tokens equal, trimmed and untouched (2026-11-24).

    pip download --no-deps --no-binary llama-cpp-python llama-cpp-python==0.3.36
    tar xzf llama_cpp_python-0.3.36.tar.gz
    pip install ./llama_cpp_python-0.3.36.tar.gz gguf sentencepiece
    python benchmarks/gguf_tokens.py --converter llama_cpp_python-0.3.36/vendor/llama.cpp/convert_hf_to_gguf.py

The converter needs the folders beside it (`conversion/`, `gguf-py/`). It can also come from llama.cpp's repository.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from trim_trainer import drop_layers

PROMPTS = [
    "The capital of France is",
    "Water boils at a temperature of",
    "def fibonacci(n):\n    if n < 2:",
    "Diagnosis: Typhoid fever, unspecified\nICD-10-CM chapter:",
    "Once upon a time, in a small village by the sea, there lived a fisherman who",
]


def main() -> int:
    """Compare both checkpoints, print a table, and return the exit code."""
    args = parse_args()
    torch.set_num_threads(args.threads)
    source = args.model or quickstart_model()
    tokenizer = AutoTokenizer.from_pretrained(source)
    prompts = [tokenizer(prompt)["input_ids"] for prompt in PROMPTS]
    failed = False
    print(
        f"{'checkpoint':<10} {'layers':>6} {'block_count':>11} {'prompt':>6} {'equal tokens':>12} {'max |dlogprob|':>14}"
    )
    for name, layers in {"untouched": [], "trimmed": args.drop_layers}.items():
        with tempfile.TemporaryDirectory() as folder:
            model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
            if layers:
                drop_layers(model, layers)
            model.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
            model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
            gguf_file = convert(args.converter, folder)
            depth, blocks = model.config.get_text_config().num_hidden_layers, block_count(gguf_file)
            failed |= blocks != depth
            expected = [decode_transformers(model, prompt, args.max_new_tokens) for prompt in prompts]
            del model
            actual = decode_llama_cpp(gguf_file, prompts, args.max_new_tokens, args.threads)
        for number, results in enumerate(zip(expected, actual, strict=True), start=1):
            equal, difference = compare(*results)
            failed |= equal < args.max_new_tokens or difference > args.tolerance
            score = f"{equal}/{args.max_new_tokens}"
            print(f"{name:<10} {depth:>6} {blocks:>11} {number:>6} {score:>12} {difference:>14.1e}", flush=True)
    print("DIFFERENT" if failed else "equal")
    return int(failed)


def parse_args() -> argparse.Namespace:
    """Return the parsed command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--converter", required=True, type=Path, help="path of llama.cpp's convert_hf_to_gguf.py")
    parser.add_argument("--model", help="checkpoint with tokenizer; default: the SmolLM2-135M of the quickstart")
    parser.add_argument("--drop-layers", type=int, nargs="+", default=[3, 11, 17, 22, 26], help="indices to drop")
    parser.add_argument("--max-new-tokens", type=int, default=32)
    # Gemma differs by some 4e-3, the untouched model too.
    parser.add_argument("--tolerance", type=float, default=1e-3, help="largest difference of log-probabilities")
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


def quickstart_model() -> str:
    """Return the folder of the quickstart's checkpoint, which is prepared on first use."""
    from trim_trainer.data.quickstart import prepare_smollm2

    return prepare_smollm2()


def convert(converter: Path, folder: str) -> Path:
    """Convert the checkpoint in `folder` to a float32 GGUF file, and return its path."""
    gguf_file = Path(folder) / "model.gguf"
    command = [sys.executable, str(converter), folder, "--outtype", "f32", "--outfile", str(gguf_file)]
    run = subprocess.run(command, capture_output=True, text=True)
    if run.returncode:
        raise SystemExit(f"{converter} failed:\n{run.stderr[-2000:]}")
    return gguf_file


def block_count(gguf_file: Path) -> int:
    """Return the number of layers that the GGUF file states."""
    from gguf import GGUFReader

    fields = GGUFReader(gguf_file).fields
    return fields[f"{fields['general.architecture'].contents()}.block_count"].contents()


@torch.inference_mode()
def decode_transformers(model, prompt: list[int], max_new_tokens: int) -> tuple[list[int], torch.Tensor]:
    """Return the greedy tokens, past any end-of-text token, and the log-probabilities of the vocabulary at each."""
    tokens, logprobs, cache = [], [], None
    inputs = torch.tensor([prompt])
    for _ in range(max_new_tokens):
        output = model(inputs, past_key_values=cache, use_cache=True)
        cache = output.past_key_values
        logprobs.append(output.logits[0, -1].log_softmax(-1))
        tokens.append(int(logprobs[-1].argmax()))
        inputs = torch.tensor([tokens[-1:]])
    return tokens, torch.stack(logprobs)


def decode_llama_cpp(gguf_file: Path, prompts: list[list[int]], max_new_tokens: int, threads: int) -> list[tuple]:
    """Return for each prompt what `decode_transformers` returns."""
    import llama_cpp

    llama = llama_cpp.Llama(
        str(gguf_file),
        n_ctx=max(map(len, prompts)) + max_new_tokens,
        n_batch=max(map(len, prompts)),
        n_threads=threads,
        n_threads_batch=threads,
        n_gpu_layers=0,
        logits_all=True,
        flash_attn=False,
        type_k=llama_cpp.GGML_TYPE_F32,  # the default is float16
        type_v=llama_cpp.GGML_TYPE_F32,
        verbose=False,
    )
    results = []
    for prompt in prompts:
        tokens, logprobs = [], []
        llama.reset()
        llama.eval(prompt)  # token ids are taken as they are: no BOS is added
        for _ in range(max_new_tokens):
            logits = torch.tensor(llama.scores[llama.n_tokens - 1])
            logprobs.append(logits.log_softmax(-1))
            tokens.append(int(logits.argmax()))
            llama.eval(tokens[-1:])
        results.append((tokens, torch.stack(logprobs)))
    llama.close()
    return results


def compare(expected: tuple, actual: tuple) -> tuple[int, float]:
    """Return how many tokens are equal before the first difference, and the largest difference of log-probabilities.

    Log-probabilities are compared up to and including the step of the first difference, where contexts are still equal.
    """
    equal = 0
    for token, other in zip(expected[0], actual[0], strict=True):
        if token != other:
            break
        equal += 1
    difference = (expected[1] - actual[1])[: equal + 1].abs().max()
    return equal, float(difference)


if __name__ == "__main__":
    sys.exit(main())
