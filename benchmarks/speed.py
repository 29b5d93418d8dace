"""Tokens per second of several checkpoints, side by side: decoding (batch of one) and prefill (batch of eight).

    python benchmarks/speed.py BASE TRIMMED [...]

The checkpoints take turns, so that a change in the machine's load meets all of them. Ratios are to the first one, of
pairs of runs of one turn: their median with its 95 % interval.
"""

import statistics
import sys
import time

import torch
from transformers import AutoModelForCausalLM

from trim_trainer.records.measurement import SpeedRatio

ROUNDS, NEW_TOKENS, PREFILL = 7, 32, (8, 128)


@torch.no_grad()
def decode(model) -> float:
    ids = torch.ones(1, 8, dtype=torch.long)
    options = {"attention_mask": torch.ones_like(ids), "do_sample": False, "pad_token_id": 0}
    started = time.perf_counter()
    model.generate(ids, min_new_tokens=NEW_TOKENS, max_new_tokens=NEW_TOKENS, **options)
    return NEW_TOKENS / (time.perf_counter() - started)


@torch.no_grad()
def prefill(model) -> float:
    ids = torch.ones(PREFILL, dtype=torch.long)
    started = time.perf_counter()
    model(input_ids=ids, use_cache=False, logits_to_keep=1)
    return ids.numel() / (time.perf_counter() - started)


def main(paths: list[str]) -> None:
    models = [AutoModelForCausalLM.from_pretrained(path).eval() for path in paths]
    speeds = {name: [[] for _ in models] for name in ("decode", "prefill")}
    for turn in range(ROUNDS + 1):
        for measure in (decode, prefill):
            order = range(len(models)) if turn % 2 else reversed(range(len(models)))
            for index in order:
                speed = measure(models[index])
                if turn:  # the first turn warms up
                    speeds[measure.__name__][index].append(speed)
    for name, of_models in speeds.items():
        for path, model, values in zip(paths, models, of_models, strict=True):
            ratio = SpeedRatio.of_pairs(list(zip(of_models[0], values, strict=True)))
            print(
                f"{name:8} {statistics.median(values):7.1f} tokens/s, {ratio}  "
                f"{model.config.num_hidden_layers} layers  {path}"
            )


if __name__ == "__main__":
    main(sys.argv[1:])
