"""A small run, launched by `torchrun` or plainly: `run_distributed.py OUTPUT_DIR SETTINGS`."""

import json
import os
import sys

import torch
from datasets import Dataset
from sharded_on_cpu import shard_on_cpu
from tiny import make_examples, make_model, make_tokenizer
from torch.distributed.fsdp import FSDPModule

from trim_trainer import TrimConfig, TrimTrainer
from trim_trainer.architectures.modules import find_layers

if __name__ == "__main__":
    torch.set_num_threads(1)
    output_dir, settings = sys.argv[1], json.loads(sys.argv[2])
    num_processes = int(os.environ.get("WORLD_SIZE", 1))
    if "fsdp" in settings:
        shard_on_cpu()
    resume, has_names = settings.pop("resume", None), settings.pop("named_sets", False)
    args = TrimConfig(
        output_dir=output_dir, use_cpu=True, per_device_train_batch_size=8 // num_processes,
        learning_rate=5e-3, report_to="none", disable_tqdm=True, seed=3, logging_steps=1, **({"max_steps": 12, "bf16": False} | settings),
    )  # fmt: skip
    sets = (Dataset.from_list(make_examples(number, first)) for number, first in ((96, 0), (24, 100), (13, 200)))
    train, evaluation, calibration = sets
    if has_names:
        evaluation = {"first": evaluation.select(range(11)), "other": evaluation.select(range(11, 24))}
    trainer = TrimTrainer(
        make_model(), args, train_dataset=train, eval_dataset=evaluation, calibration_dataset=calibration,
        processing_class=make_tokenizer(),
    )  # fmt: skip
    trainer.train(resume_from_checkpoint=resume)
    trainer.save_model(f"{output_dir}/final")
    if "fsdp" in settings:
        assert all(isinstance(layer, FSDPModule) for layer in find_layers(trainer.causal_lm))
    if trainer.is_world_process_zero():
        trainer.state.save_to_json(f"{output_dir}/final/trainer_state.json")
        print(  # noqa: T201
            json.dumps([entry["loss"] for entry in trainer.state.log_history if "loss" in entry])
        )
    trainer.accelerator.end_training()
