"""How long a trimming run will take, from the speed of the forward pass here and now."""

import math
import time

from datasets import IterableDataset

from ..importance.criteria import find_criterion
from ..scoring.scan import score_choices
from .members import has_members
from .trainer import TrimTrainer

# Forward passes that one training step costs per token: a full update, and a sparse one that trains a quarter.
UPDATE_COST = {"full": 3.0, "sparse": 2.0}
# Examples of a stream by whose length its time is estimated.
NUM_SAMPLED = 100


def estimate_seconds(trainer: TrimTrainer) -> float:
    """Estimate how long a trimming run will take, from the speed of the model's forward pass here and now."""
    num_tokens = forward_tokens(trainer)  # refuses a run that is too short
    sample = trainer.trimming.examples[:8]
    layout = trainer.trimming.layout
    with trainer.accelerator.autocast():
        score_choices(trainer.model, sample[:1], layout)  # the first pass of a process takes up to twice as long
        started = time.perf_counter()
        score_choices(trainer.model, sample, layout)
    seconds_per_token = (time.perf_counter() - started) / sum(example.num_tokens for example in sample)
    return seconds_per_token * num_tokens


def forward_tokens(trainer: TrimTrainer) -> float:
    """Tokens that would have to go forward through the untrimmed model to take as long as the whole run."""
    args, history, dataset = trainer.args, trainer.history, trainer.train_dataset
    is_stream = isinstance(dataset, IterableDataset)
    lengths = [len(ids) for ids in (dataset.take(NUM_SAMPLED) if is_stream else dataset)["input_ids"]]
    batch = trainer.get_total_train_batch_size(args)
    num_steps, num_epochs = args.max_steps, args.num_train_epochs
    if num_steps > 0:
        num_epochs = math.ceil(num_steps * batch / len(lengths))
    else:
        num_steps = math.ceil(num_epochs * len(lengths) / batch)
    schedule = trainer.plan(num_steps, num_epochs)
    total = num_epochs if args.trim_strategy == "epoch" else num_steps
    mean_depth = schedule.mean_depth(total) / history.num_layers
    if has_members(trainer):
        mean_depth *= 1 + schedule.members_cost(args.save_depths, total)
    cost = UPDATE_COST["full" if args.sparse_update_ratio is None else "sparse"]
    training = num_steps * batch / args.world_size * sum(lengths) / len(lengths) * cost * mean_depth
    calibration = sum(example.num_tokens for example in trainer.trimming.examples)
    num_rounds = len(schedule.points) + 1
    # Half of each candidate's pass is shared with the others; the head runs for every one of them. After a drop the
    # calibration set is scored once more.
    num_passes = 1 + (history.num_layers * 0.75 if find_criterion(trainer.trimming.criterion).scans else 1)
    mean_scanned = sum(schedule.depths) / len(schedule.depths) / history.num_layers
    scans = num_rounds * calibration * num_passes * mean_scanned
    num_measured = 2 + len(args.save_depths or ())  # the untrimmed model, the target, depths on the way
    evaluation = sum(example.num_tokens for example in trainer.evaluation_examples) * num_measured
    return training + scans + evaluation
