"""A small run in a process of its own, to be killed and resumed: `python killed_run.py OUTPUT_DIR SETTINGS`."""

import json
import os
import sys
from pathlib import Path

import torch
from datasets import Dataset
from tiny import make_examples, make_model, make_tokenizer
from transformers import TrainerCallback

from trim_trainer import TrimConfig, TrimTrainer
from trim_trainer.checkpoints.whole import CheckpointError

BASE = {
    "use_cpu": True, "bf16": False, "max_steps": 24, "per_device_train_batch_size": 4, "learning_rate": 1e-2,
    "report_to": "none", "save_strategy": "steps", "save_steps": 4, "disable_tqdm": True, "seed": 3,
    "target_layers": 4, "trim_steps": 2, "trim_delay": 4, "calibration_metric": "loss", "dataloader_num_workers": 0,
    "sparse_update_ratio": 0.25, "compensation_size": 0, "importance": "sensitivity",
}  # fmt: skip


def run(output_dir, settings, on_start=lambda: None):
    """Train, going on with the last whole checkpoint if there is one, and save the result; return the trainer."""
    torch.set_num_threads(1)
    train, evaluation, calibration = (
        Dataset.from_list(make_examples(number, first)) for number, first in ((64, 0), (24, 100), (40, 200))
    )

    class Started(TrainerCallback):
        def on_train_begin(self, *args, **kwargs):
            on_start()

    def trainer(**more):
        return TrimTrainer(
            make_model(attention_dropout=0.1), TrimConfig(output_dir=output_dir, **(BASE | settings | more)),
            train_dataset=train, eval_dataset=evaluation, calibration_dataset=calibration,
            processing_class=make_tokenizer(), callbacks=[Started()],
        )  # fmt: skip

    try:
        made = trainer()
        made.train(resume_from_checkpoint=any(Path(output_dir).glob("checkpoint-*")))
    except CheckpointError:
        made = trainer(overwrite_output_dir=True)
        made.train()
    made.save_model(f"{output_dir}/final")
    return made


if __name__ == "__main__":
    run(sys.argv[1], json.loads(sys.argv[2]))
    os._exit(0)
