"""A training step with fewer layers and with fewer tokens: seconds beside those of the whole model, from steps in turns.

    python benchmarks/training_steps.py --vocab_size 16384

SmolLM2-135M-Instruct at full and half depth, with all and with fewer tokens, on texts of the quickstart's data, cut or joined to
`--length` tokens. Round by round each of the four does one step (forward and backward in bf16 autocast, AdamW), the order
turning around; ratios are those of one round, as the median with its 95 % interval.
"""

import argparse
import copy
import time

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from trim_trainer import drop_layers, trim_vocabulary
from trim_trainer.data.quickstart import draw_icd10_examples, prepare_smollm2
from trim_trainer.records.statistics import median_interval
from trim_trainer.scoring.speed import device_name


def make_models(vocab_size: int) -> dict[str, tuple]:
    """Title -> model and its tokenizer; the whole model first."""
    folder = prepare_smollm2()
    whole = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    fewer = copy.deepcopy(whole)
    few_tokens = trim_vocabulary(fewer, tokenizer, read_texts(), vocab_size)
    depth = whole.config.num_hidden_layers
    models = {}
    for model, its_tokenizer in ((whole, tokenizer), (fewer, few_tokens)):
        half = drop_layers(copy.deepcopy(model), range(depth // 2, depth))
        for each in (model, half):
            title = f"{each.config.num_hidden_layers} layers, {each.config.vocab_size:,} tokens"
            models[title] = each, its_tokenizer
    return models


def read_texts() -> list[str]:
    """Of the training split."""
    return [row["prompt"] + row["completion"] for row in draw_icd10_examples()["train"]]


def main() -> None:
    """Measure and print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vocab_size", type=int, default=16384)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    text = "\n".join(read_texts())
    steps, seconds = {}, {}
    for title, (model, tokenizer) in make_models(options.vocab_size).items():
        ids = tokenizer(text, return_tensors="pt")["input_ids"][0, : options.batch * options.length]
        steps[title] = make_step(model.to(device).train(), ids.view(options.batch, options.length).to(device))
        seconds[title] = []
    for number in range(options.rounds + 1):
        for title in list(steps) if number % 2 else reversed(steps):
            started = time.perf_counter()
            steps[title]()
            if number:  # the first one warms up
                seconds[title].append(time.perf_counter() - started)
    first = next(iter(seconds.values()))
    print("| | seconds of a step | beside the whole model |\n|---|---|---|")
    for title, found in seconds.items():
        ratio = median_interval([each / whole for each, whole in zip(found, first, strict=True)])
        print(f"| {title} | {median_interval(found)[0]:.2f} | {ratio[0]:.2f} ({ratio[1]:.2f}–{ratio[2]:.2f}) |")
    print(f"\n{device_name(device)}, torch {torch.__version__}, {options.rounds} rounds")


def make_step(model, ids: torch.Tensor):
    """One step of training, until it is done on the device."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)

    def step() -> float:
        with torch.autocast(ids.device.type, torch.bfloat16):
            loss = model(input_ids=ids, labels=ids, use_cache=False).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.item()

    return step


if __name__ == "__main__":
    main()
