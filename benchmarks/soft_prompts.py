"""Do soft prompts bring back what dropped layers took? Prompt and prefix tuning of a trimmed model whose weights stay.

    python benchmarks/soft_prompts.py

SmolLM2-135M-Instruct loses the ten layers that the quickstart drops, and nothing of it is trained but 20 virtual tokens
(PEFT, through SFTTrainer): accuracy on examples of the quickstart's evaluation set before and after, beside the whole model
with the same.
"""

import argparse
import statistics
import tempfile

import torch
from datasets import Dataset
from peft import PrefixTuningConfig, PromptTuningConfig, PromptTuningInit
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging
from trl import SFTConfig, SFTTrainer

from trim_trainer.data.quickstart import draw_icd10_examples, prepare_smollm2
from trim_trainer.records.statistics import wilson_interval
from trim_trainer.surgery.drop import drop_layers

DROPPED = (19, 20, 21, 22, 24, 25, 26, 27, 28, 29)
NUM_VIRTUAL = 20
KINDS = {"prompt tuning": (PromptTuningConfig, 0.01), "prefix tuning": (PrefixTuningConfig, 0.01)}


@torch.no_grad()
def accuracy(model, tokenizer, rows: list[dict]) -> float:
    """Share of the examples whose right choice has the largest log-probability."""
    right, was_training = [], model.training
    model.eval()
    for row in rows:
        scores = []
        for choice in row["choices"]:
            prompt, ids = tokenizer(row["prompt"])["input_ids"], tokenizer(row["prompt"] + choice)["input_ids"]
            labels = torch.tensor([[-100] * len(prompt) + ids[len(prompt) :]])
            inputs = torch.tensor([ids])
            loss = model(input_ids=inputs, attention_mask=torch.ones_like(inputs), labels=labels).loss
            scores.append(-loss.item() * (len(ids) - len(prompt)))
        right.append(max(range(len(scores)), key=scores.__getitem__) == row["answer"])
    model.train(was_training)
    return statistics.fmean(right)


def main() -> None:
    """Train, measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--examples", type=int, default=200)
    parser.add_argument("--depths", type=int, nargs="+", choices=(20, 30), default=[20, 30])
    options = parser.parse_args()
    logging.set_verbosity_error()
    source, splits = prepare_smollm2(), draw_icd10_examples()
    tokenizer = AutoTokenizer.from_pretrained(source)
    rows = Dataset.from_list(splits["test"]).shuffle(seed=0).select(range(options.examples)).to_list()
    train = Dataset.from_list(splits["train"]).shuffle(seed=0).select_columns(["prompt", "completion"])

    def say(what: str, value: float) -> None:
        low, high = wilson_interval(value, len(rows))
        print(f"{what}: {value:.3f} ({low:.3f}-{high:.3f}), n = {len(rows)}", flush=True)

    for depth in options.depths:
        name, layers = f"{depth} layers", DROPPED if depth == 20 else ()
        for kind, (config, rate) in KINDS.items():
            model = drop_layers(AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32), layers)
            if kind == "prompt tuning":
                say(f"{name}, as it is", accuracy(model, tokenizer, rows))
            more = {"prompt_tuning_init": PromptTuningInit.RANDOM} if config is PromptTuningConfig else {}
            with tempfile.TemporaryDirectory() as folder:
                trainer = SFTTrainer(
                    model=model,
                    args=SFTConfig(
                        output_dir=folder, max_steps=options.steps, per_device_train_batch_size=8, learning_rate=rate,
                        use_cpu=True, bf16=False, gradient_checkpointing=False, report_to="none", save_strategy="no",
                        disable_tqdm=True, logging_steps=50, seed=0, max_length=256,
                    ),
                    train_dataset=train,
                    peft_config=config(task_type="CAUSAL_LM", num_virtual_tokens=NUM_VIRTUAL, **more),
                    processing_class=tokenizer,
                )  # fmt: skip
                trainer.train()
                say(f"{name}, {kind}, {options.steps} steps", accuracy(trainer.model, tokenizer, rows))


if __name__ == "__main__":
    main()
