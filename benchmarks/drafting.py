"""A trimmed model drafts for its parent (`assistant_model`): tokens per second beside the parent alone, from runs in turns.

    python benchmarks/drafting.py                    # SmolLM2-135M-Instruct without its last layers, untrained
    python benchmarks/drafting.py --parent full --drafters out/demo --texts prompts.txt

Drafters are folders, or numbers of layers that are left of the parent. Greedy decoding, so every token is the parent's own;
that is checked. Prompts are those of the quickstart's evaluation set, or the lines of a file (`--texts`).
"""

import argparse
import copy
import time
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

from trim_trainer.data.quickstart import draw_icd10_examples, prepare_smollm2
from trim_trainer.records.statistics import median_interval
from trim_trainer.scoring.speed import device_name
from trim_trainer.surgery.drop import drop_layers

NUM_TOKENS = 48


def load(name: str, parent):
    """A drafter: a folder, or the parent's first layers."""
    if not name.isdigit():
        return AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32).eval()
    return drop_layers(copy.deepcopy(parent), range(int(name), parent.config.num_hidden_layers))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parent", default=prepare_smollm2())
    parser.add_argument("--drafters", nargs="+", default=["20", "8"])
    parser.add_argument("--prompts", type=int, default=12)
    parser.add_argument("--texts", type=Path, help="file with a prompt a line")
    options = parser.parse_args()
    logging.set_verbosity_error()
    parent = AutoModelForCausalLM.from_pretrained(options.parent, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(options.parent)
    texts = options.texts.read_text(encoding="utf-8").splitlines() if options.texts else None
    prompts = (texts or [row["prompt"] for row in draw_icd10_examples()["test"]])[: options.prompts]

    def run(prompt, **more):
        inputs = tokenizer(prompt, return_tensors="pt")
        start = time.perf_counter()
        made = parent.generate(**inputs, max_new_tokens=NUM_TOKENS, do_sample=False, pad_token_id=0, **more)[0]
        return made, (len(made) - inputs["input_ids"].shape[1]) / (time.perf_counter() - start)

    print(f"{device_name(parent.device)}, float32, {parent.config.num_hidden_layers} layers")
    for name in options.drafters:
        drafter, ratios = load(name, parent), []
        run(prompts[0], assistant_model=drafter)
        for number, prompt in enumerate(prompts):
            ways = [{}, {"assistant_model": drafter}]
            made = [run(prompt, **way) for way in (ways if number % 2 == 0 else ways[::-1])][
                :: 1 if number % 2 == 0 else -1
            ]
            assert made[0][0].tolist() == made[1][0].tolist(), "a token differs"
            ratios.append(made[1][1] / made[0][1])
        ratio, low, high = median_interval(ratios)
        print(
            f"drafter of {drafter.config.num_hidden_layers} layers: {ratio:.2f} ({low:.2f}-{high:.2f}), {len(ratios)} pairs"
        )


if __name__ == "__main__":
    main()
