"""Measured facts about a model: accuracy with n, loss, tokens per second with device."""

import platform
import time
from collections import Counter

import torch
from transformers import PreTrainedModel

from .architectures import find_layers
from .calibration import ScoredExample, choose_metric, measure
from .history import Measurement
from .scan import Layout, plain_forward, score_choices

# Greedy decoding that is timed: long enough to drown the first token, short enough to run at each drop.
NUM_TIMED_TOKENS = 16
NUM_TIMED_RUNS = 5


def measure_model(
    name: str, model: PreTrainedModel, examples: list[ScoredExample] | None, layout: Layout | None
) -> Measurement:
    """Measure a model as it is now.

    Args:
        name: Of the measurement.
        model: A causal LM.
        examples: The evaluation set; None: quality is not measured.
        layout: From `choose_layout`.
    """
    facts = {}
    if examples:
        log_probs = score_choices(model, examples, layout)
        facts = {"num_examples": len(examples), "loss": measure(log_probs, examples, "loss").item()}
        facts["precision"] = _precision(model)
        if choose_metric(None, examples) == "accuracy":
            facts["accuracy"] = measure(log_probs, examples, "accuracy").item()
            facts["majority_accuracy"] = majority_accuracy(examples)
    return Measurement(
        name=name,
        depth=len(find_layers(model)),
        num_parameters=sum(parameter.numel() for parameter in model.parameters()),
        tokens_per_second=measure_tokens_per_second(model),
        device=device_name(model.device),
        dtype=str(model.dtype).removeprefix("torch."),
        **facts,
    )


def _precision(model: PreTrainedModel) -> str:
    if torch.is_autocast_enabled(model.device.type):
        return f"{str(torch.get_autocast_dtype(model.device.type)).removeprefix('torch.')} autocast"
    return str(model.dtype).removeprefix("torch.")


def majority_accuracy(examples: list[ScoredExample]) -> float:
    """Accuracy of the choice that is right most often: the most frequent right answer wherever it is on offer.

    Where the most frequent right answer is not among the choices, the most frequent one that is counts.
    """
    frequency = Counter(example.choice_ids[example.answer] for example in examples)
    right = 0
    for example in examples:
        guess = max(range(len(example.choice_ids)), key=lambda k: frequency[example.choice_ids[k]])
        right += guess == example.answer
    return right / len(examples)


@torch.no_grad()
def measure_tokens_per_second(model: PreTrainedModel) -> float:
    """Tokens per second of greedy decoding with the KV cache, batch of one: the best of five runs.

    The model runs as a reader of the checkpoint runs it, in its stored dtype, without autocast. Other load on the
    machine can only make a run slower, so the best one says most about the model.
    """
    prompt = torch.ones(1, 8, dtype=torch.long, device=model.device)
    options = {"attention_mask": torch.ones_like(prompt), "do_sample": False, "pad_token_id": 0}
    was_training = model.training
    model.eval()
    seconds = []
    with plain_forward(model), torch.autocast(model.device.type, enabled=False):
        for _ in range(1 + NUM_TIMED_RUNS):
            start = time.perf_counter()
            model.generate(
                prompt, min_new_tokens=NUM_TIMED_TOKENS, max_new_tokens=NUM_TIMED_TOKENS, use_cache=True, **options
            )
            if model.device.type == "cuda":
                torch.cuda.synchronize(model.device)
            seconds.append(time.perf_counter() - start)
    model.train(was_training)
    return NUM_TIMED_TOKENS / min(seconds[1:])  # the first run warms up


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
