"""How fast a model decodes and reads a prompt, on which device, and what it holds in memory meanwhile."""

import platform
import resource
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
from transformers import PreTrainedModel
from transformers.utils import is_peft_available

from ..records.measurement import SpeedRatio
from ..surgery.drop import is_quantized
from .hooks import plain_forward

# Greedy decoding that is timed: long enough to drown the first token, short enough to run at each drop.
NUM_TIMED_TOKENS = 16
NUM_TIMED_RUNS = 5
NUM_WARM_UP_TOKENS = 2
NUM_PAIRS = (7, 11, 15, 23, 31)  # of runs in turns, after which the ratio is looked at
MAX_SECONDS = 60.0  # no more pairs than the first seven are timed beyond
# One token at a time, whatever the checkpoint's own generation config asks for besides.
GREEDY = {
    "do_sample": False, "num_beams": 1, "num_return_sequences": 1, "stop_strings": None, "pad_token_id": 0, "use_cache": True,
}  # fmt: skip
PREFILL_SHAPE = (8, 128)  # prompts, tokens each


def measure_tokens_per_second(model: PreTrainedModel, num_runs: int = NUM_TIMED_RUNS) -> float:
    """Tokens per second of greedy decoding with the KV cache, batch of one: the best of so many runs.

    The model runs as a reader of the checkpoint runs it, in its stored dtype, without autocast. Other load on the
    machine can only make a run slower, so the best one says most about the model.
    """
    prompt = torch.ones(1, 8, dtype=torch.long, device=model.device)
    mask = torch.ones_like(prompt)

    def decode(num_tokens: int) -> None:
        model.generate(prompt, attention_mask=mask, **GREEDY, min_new_tokens=num_tokens, max_new_tokens=num_tokens)

    warm_up = partial(decode, NUM_WARM_UP_TOKENS)
    return NUM_TIMED_TOKENS / _best_seconds(model, partial(decode, NUM_TIMED_TOKENS), warm_up, num_runs)


def measure_saved_tokens_per_second(
    model: PreTrainedModel, is_merged: bool, num_runs: int = NUM_TIMED_RUNS
) -> float | None:
    """The same of the model as it is saved, whose adapters are merged or lie beside it.

    Merged, they take no time: they are left out of the pass, which does the same work then. None: they are merged into
    weights that are quantized here and plain in the checkpoint, whose speed is another one.
    """
    adapters = adapter_modules(model)
    if not adapters or not is_merged:
        return measure_tokens_per_second(model, num_runs)
    if is_quantized(model):
        return None
    with _left_out(adapters):
        return measure_tokens_per_second(model, num_runs)


def adapter_modules(model: PreTrainedModel) -> list[torch.nn.Module]:
    """The modules that PEFT has wrapped."""
    if not is_peft_available():
        return []
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils import AuxiliaryTrainingWrapper

    return [module for module in model.modules() if isinstance(module, (BaseTunerLayer, AuxiliaryTrainingWrapper))]


@contextmanager
def _left_out(adapters: list[torch.nn.Module]) -> Iterator[None]:
    """Within, adapters do nothing. PEFT's own `disable_adapter` would leave all of them trainable, also frozen ones."""
    were = [module._disable_adapters for module in adapters]
    for module in adapters:
        module._disable_adapters = True
    try:
        yield
    finally:
        for module, was in zip(adapters, were, strict=True):
            module._disable_adapters = was


def measure_in_turns(one: PreTrainedModel, other: PreTrainedModel) -> tuple[float, float, SpeedRatio]:
    """Tokens per second of two models, as above, and their ratio, from pairs of runs right after each other.

    Other load comes in stretches and meets both runs of a pair, so it hardly moves their ratio, and the median leaves out
    the pairs in which it came or went. Which model runs first alternates. Pairs are added until the interval is narrow, or
    `MAX_SECONDS` are used up.

    Returns:
        The tokens per second of the pair with the median ratio, and the ratio with its interval.
    """
    pairs, started = [], time.perf_counter()
    for number in NUM_PAIRS:
        while len(pairs) < number:
            pairs.append(_time_pair(one, other, is_reversed=len(pairs) % 2 == 1))
        ratio = SpeedRatio.of_pairs(pairs)
        if ratio.is_narrow or time.perf_counter() - started > MAX_SECONDS:
            break
    return *min(pairs, key=lambda pair: abs(pair[1] / pair[0] - ratio.ratio)), ratio


def _time_pair(one: PreTrainedModel, other: PreTrainedModel, is_reversed: bool) -> tuple[float, float]:
    if is_reversed:
        return _time_pair(other, one, is_reversed=False)[::-1]
    return measure_tokens_per_second(one, num_runs=1), measure_tokens_per_second(other, num_runs=1)


def measure_prefill_tokens_per_second(model: PreTrainedModel) -> float:
    """Tokens per second of one pass over eight prompts of 128 tokens: the best of five runs, as for decoding."""
    prompts = torch.ones(PREFILL_SHAPE, dtype=torch.long, device=model.device)
    run = partial(model, input_ids=prompts, use_cache=False, logits_to_keep=1)
    return prompts.numel() / _best_seconds(model, run, run, NUM_TIMED_RUNS)


@torch.no_grad()
def _best_seconds(
    model: PreTrainedModel, run: Callable[[], object], warm_up: Callable[[], object], num_runs: int
) -> float:
    was_training = model.training
    model.eval()
    seconds = []
    try:
        with plain_forward(model), torch.autocast(model.device.type, enabled=False):
            warm_up()
            for _ in range(num_runs):
                start = time.perf_counter()
                run()
                if model.device.type == "cuda":
                    torch.cuda.synchronize(model.device)
                seconds.append(time.perf_counter() - start)
    finally:
        model.train(was_training)
    return min(seconds)


def peak_memory_bytes(device: torch.device) -> int:
    """The most that this process has held so far: on a GPU in its memory, else in main memory (Linux, macOS)."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if platform.system() == "Darwin" else peak * 1024


def device_name(device: torch.device) -> str:
    """Human-readable name: the GPU's own, or the CPU with the number of threads in use."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type == "cpu":
        return f"{cpu_name()}, {torch.get_num_threads()} threads"
    return device.type


def cpu_name() -> str:
    """The processor's model name."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
