"""Hold an exported model in a process of its own, and answer what is asked of it, a line of JSON each.

    python hold.py RUNTIME FOLDER HOW

HOW is `usual`, `exact` for single precision, or with Transformers `bfloat16`, `int8` or `nf4` (bitsandbytes).

The first line out says what was loaded. Then, for each line in, one line out:

- `{"do": "continue", "prompts": [[id]], "num_tokens": n}`: `{"tokens": [[id]]}`, the likeliest ones behind each prompt;
- `{"do": "score", "texts": [[[id], first]]}`: `{"log_probs": [[nats]]}`, of the tokens of each text from number `first` on;
- `{"do": "decode", "num_streams": s, "num_tokens": n, "num_runs": r}`: `{"seconds": [s]}`, of each run, behind one that is
  not timed unless `"is_warm"`;
- `{"do": "prefill", "num_streams": s, "num_tokens": n, "num_runs": r}`: likewise;
- `{"do": "memory"}`: `{"bytes": b}`, the most that the process has held.
"""

import json
import os
import platform
import resource
import sys
import time
from importlib import metadata
from itertools import groupby

import torch

NUM_PROMPT_TOKENS = 8  # in front of those that are timed
MAX_TEXTS = 16  # of a pass, all equally long: nothing is padded


class _Generating:
    """What has the interface of Transformers."""

    device = "cpu"

    def generate(self, ids: list[list[int]], num_tokens: int) -> list[list[int]]:
        """The likeliest tokens behind each prompt, all equally long; none ends a text."""
        prompts = torch.tensor(ids, device=self.device)
        made = self.model.generate(
            input_ids=prompts, attention_mask=torch.ones_like(prompts), max_new_tokens=num_tokens, do_sample=False
        )
        return made[:, prompts.shape[1] :].tolist()

    def logits(self, ids: list[list[int]]) -> torch.Tensor:
        """Of each token, [texts, tokens, vocabulary]."""
        texts = torch.tensor(ids, device=self.device)
        return self.model(input_ids=texts, attention_mask=torch.ones_like(texts)).logits.cpu()

    def prefill(self, ids: list[list[int]]) -> None:
        """Read prompts, up to the first token behind them."""
        self.generate(ids, 1)

    def _forget_generation_config(self) -> None:
        from transformers import GenerationConfig

        self.model.generation_config = GenerationConfig(pad_token_id=0)


class Transformers(_Generating):
    """A checkpoint."""

    packages = ("transformers", "torch")

    def __init__(self, folder: str, how: str):
        from transformers import AutoModelForCausalLM, BitsAndBytesConfig

        options = {
            "usual": {},
            "exact": {"dtype": "float32"},
            "bfloat16": {"dtype": "bfloat16"},
            "int8": {"quantization_config": BitsAndBytesConfig(load_in_8bit=True)},
            "nf4": {"quantization_config": BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")},
        }
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        model = AutoModelForCausalLM.from_pretrained(folder, device_map=self.device, **options[how])
        self.model = model.eval()
        self._forget_generation_config()


class GPTQ(Transformers):
    """A checkpoint with quantized weights."""

    packages = ("gptqmodel", "optimum", "transformers", "torch")


class OpenVINO(_Generating):
    """What optimum-intel wrote."""

    packages = ("optimum-intel", "openvino", "nncf", "transformers")
    exact = {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f32"}

    def __init__(self, folder: str, how: str):
        from optimum.intel import OVModelForCausalLM

        self.model = OVModelForCausalLM.from_pretrained(folder, ov_config=self.exact if how == "exact" else {})
        self._forget_generation_config()


class ONNX:
    """What the builder of ONNX Runtime GenAI wrote."""

    packages = ("onnxruntime-genai", "onnxruntime")

    def __init__(self, folder: str, how: str):
        import onnxruntime_genai

        self.library, self.model = onnxruntime_genai, onnxruntime_genai.Model(folder)

    def _generator(self, ids: list[list[int]], num_tokens: int):
        params, length = self.library.GeneratorParams(self.model), len(ids[0]) + num_tokens
        params.set_search_options(max_length=length, min_length=length, do_sample=False, batch_size=len(ids))
        generator = self.library.Generator(self.model, params)
        generator.append_tokens(torch.tensor(ids, dtype=torch.int32).numpy())
        return generator

    def generate(self, ids, num_tokens):
        """As above; the tokens are chosen here, since the generator takes none that ends a text."""
        generator, made = self._generator(ids, num_tokens), []
        for number in range(num_tokens):
            made.append(torch.from_numpy(generator.get_logits())[:, -1].argmax(-1))
            if number < num_tokens - 1:
                generator.append_tokens(made[-1][:, None].to(torch.int32).numpy())
        return torch.stack(made, dim=1).tolist()

    def logits(self, ids):
        """As above."""
        return torch.from_numpy(self._generator(ids, 1).get_output("logits"))

    def decode(self, ids: list[list[int]], num_tokens: int) -> None:
        """Generate, as its users do."""
        generator = self._generator(ids, num_tokens)
        while not generator.is_done():
            generator.generate_next_token()

    def prefill(self, ids):
        """As above."""
        self.decode(ids, 1)


RUNTIMES = {"transformers": Transformers, "gptq": GPTQ, "openvino": OpenVINO, "onnx": ONNX}


def score(runtime, texts: list[tuple[list[int], int]]) -> list[list[float]]:
    """Log-probabilities of the tokens of each text from a number on, in nats."""
    found: list = [None] * len(texts)
    by_length = sorted(range(len(texts)), key=lambda number: len(texts[number][0]))
    for _, group in groupby(by_length, key=lambda number: len(texts[number][0])):
        numbers = list(group)
        for start in range(0, len(numbers), MAX_TEXTS):
            part = numbers[start : start + MAX_TEXTS]
            ids = [texts[number][0] for number in part]
            log_probs = runtime.logits(ids)[:, :-1].float().log_softmax(-1)
            chosen = log_probs.gather(-1, torch.tensor(ids)[:, 1:, None])[..., 0]
            for number, row in zip(part, chosen, strict=True):
                found[number] = row[texts[number][1] - 1 :].tolist()
    return found


def time_runs(run, prompts: list[list[int]], num_tokens: int, request: dict) -> list[float]:
    """Seconds of each run, behind one that is not timed unless all is warm."""
    seconds, num_cold = [], 0 if request.get("is_warm") else 1
    for _ in range(num_cold + request["num_runs"]):
        start = time.perf_counter()
        run(prompts, num_tokens)
        seconds.append(time.perf_counter() - start)
    return seconds[num_cold:]


def answer(runtime, request: dict) -> dict:
    """Do what a request says."""
    match request["do"]:
        case "continue":
            return {"tokens": [runtime.generate([prompt], request["num_tokens"])[0] for prompt in request["prompts"]]}
        case "score":
            return {"log_probs": score(runtime, request["texts"])}
        case "decode":
            prompts = [[1] * NUM_PROMPT_TOKENS] * request["num_streams"]
            run = getattr(runtime, "decode", runtime.generate)
            return {"seconds": time_runs(run, prompts, request["num_tokens"], request)}
        case "prefill":
            prompts = [[1] * request["num_tokens"]] * request["num_streams"]
            return {"seconds": time_runs(lambda ids, _: runtime.prefill(ids), prompts, 1, request)}
        case "memory":
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            return {"bytes": peak if platform.system() == "Darwin" else peak * 1024}
    raise ValueError(f"`do` is {request['do']!r}")


@torch.no_grad()
def main(name: str, folder: str, how: str) -> None:
    """Load, then answer until nobody asks any more."""
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")  # libraries print where they like: that goes to stderr
    os.dup2(2, 1)
    start = time.perf_counter()
    runtime = RUNTIMES[name](folder, how)
    versions = {package: metadata.version(package) for package in runtime.packages}
    loaded = {"load_seconds": time.perf_counter() - start, "versions": versions}
    print(json.dumps(loaded), file=out, flush=True)
    for line in sys.stdin:
        print(json.dumps(answer(runtime, json.loads(line))), file=out, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:4])
