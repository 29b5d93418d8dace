"""A cell of a comparison: one method, depth, seed and rate, trained and measured in a process of its own."""

import json
import random
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from ..data.splits import example_key
from ..evaluation.tasks import Task
from ..recipe import Recipe, load_splits, make_trainer, parse_recipe
from ..records.history import TrimHistory
from ..scoring.quality import measure_quality
from ..scoring.speed import (
    device_name,
    measure_prefill_tokens_per_second,
    measure_tokens_per_second,
    peak_memory_bytes,
)
from ..scoring.trial import choose_layout
from ..training.checks import split_calibration
from ..training.trainer import TrimTrainer
from .before_training import drop_before_training
from .methods import METHODS

RESULT = "result.json"
# Examples of the calibration split, none of which layers are chosen on, by whose loss a learning rate is chosen.
NUM_SELECTION = 300


@dataclass(frozen=True)
class Cell:
    """One training run."""

    method: str
    depth: int
    seed: int
    learning_rate: float

    def folder(self, root: str | Path) -> Path:
        """Where its result lies."""
        return Path(root) / self.method / f"depth-{self.depth}" / f"lr-{self.learning_rate:g}" / f"seed-{self.seed}"

    def recipe(self, arguments: list[str], folder: Path) -> Recipe:
        """The recipe with what this cell changes."""
        method = METHODS[self.method]
        changes = {"learning_rate": self.learning_rate, "seed": self.seed, "output_dir": folder, "save_strategy": "no"}
        changes |= {"target_layers": "none", "target_ratio": "none"}
        if method.drops == "while":
            changes["target_layers"] = self.depth
            if method.criterion is not None:
                changes["importance"] = method.criterion
        options = [word for name, value in changes.items() for word in (f"--{name}", str(value))]
        return parse_recipe([*arguments, *options, "--overwrite_output_dir"], prog="trim-trainer compare")


@dataclass(frozen=True)
class CellResult:
    """What a cell measured."""

    cell: Cell
    settings: dict[str, Any]  # of the recipe
    depth: int  # that was reached
    dropped: list[int]
    train_seconds: float  # with calibration and drops, without evaluation
    calibration_seconds: float
    num_train_tokens: int
    train_peak_bytes: int
    num_parameters: int
    num_bytes: int
    decode_tokens_per_second: float
    prefill_tokens_per_second: float
    device: str
    selection_loss: float
    quality: dict[str, dict[str, Any]]  # by task; the recipe's own is "recipe"

    @classmethod
    def load(cls, folder: Path) -> "CellResult":
        """Read what a finished cell has written."""
        data = json.loads((folder / RESULT).read_text(encoding="utf-8"))
        return cls(**data | {"cell": Cell(**data["cell"])})


def run_cell(cell: Cell, arguments: Iterable[str], tasks: Iterable[Task], folder: Path) -> None:
    """Train and measure one cell, and write its result into `folder`; runs in a process of its own."""
    from ..evaluation.quiet import quiet_libraries

    quiet_libraries()
    recipe = cell.recipe(list(arguments), folder)
    # A cell is one process, so it has one GPU, as Trainer says it to itself where `nn.DataParallel` is not for the model.
    recipe.training_args._n_gpu = min(recipe.training_args.n_gpu, 1)
    script, method = recipe.script_args, METHODS[cell.method]
    splits = load_splits(script, needs_test=True)
    test, held_out = splits[script.dataset_test_split], splits.get(script.dataset_calibration_split)
    train, calibration = split_calibration(
        splits[script.dataset_train_split], test, held_out, recipe.training_args
    )  # the same for all methods, also for those that need none
    trainer = make_trainer(recipe, train, None, calibration if method.drops == "while" else None)
    trainer.is_compared = True
    clock = Clock()
    trainer.add_callback(clock)
    started = time.perf_counter()
    one_shot = None
    if method.drops == "before":
        one_shot = drop_before_training(trainer, method, calibration, cell.depth)
    trainer.train()
    train_seconds = clock.ended - started
    train_peak_bytes = peak_memory_bytes(trainer.args.device)
    history: TrimHistory | None = trainer.history
    scans = history.calibration_seconds if history else one_shot.seconds if one_shot else 0.0
    dropped = history.dropped if history else one_shot.layers if one_shot else ()
    sets = {"selection": _selection(held_out, calibration), "recipe": test}
    model = trainer.model
    quality = {name: _measure(trainer, list(examples)) for name, examples in sets.items()}
    quality |= {task.name: _measure(trainer, None, task) for task in tasks}
    result = CellResult(
        cell=cell,
        settings=recipe.settings,
        depth=model.config.get_text_config().num_hidden_layers,
        dropped=list(dropped),
        train_seconds=train_seconds,
        calibration_seconds=scans,
        num_train_tokens=int(trainer._total_train_tokens),
        train_peak_bytes=train_peak_bytes,
        num_parameters=model.num_parameters(),
        num_bytes=model.get_memory_footprint(),
        decode_tokens_per_second=measure_tokens_per_second(model),
        prefill_tokens_per_second=measure_prefill_tokens_per_second(model),
        device=device_name(model.device),
        selection_loss=quality.pop("selection")["loss"],
        quality=quality,
    )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / RESULT).write_text(json.dumps(asdict(result), indent=1) + "\n", encoding="utf-8")


class Clock(TrainerCallback):
    """When the last step was done: what a trimming run measures behind it, for its card, is no training."""

    ended = 0.0

    def on_train_end(self, *args, **kwargs):
        """Look; the loss of the whole run has been read by then, so the device is done."""
        self.ended = time.perf_counter()


def _selection(held_out, calibration) -> list[dict]:
    """Examples of the calibration split that layers are not chosen on; without any, those that they are."""
    chosen = {example_key(example) for example in calibration}
    rest = [example for example in held_out or () if example_key(example) not in chosen]
    random.Random(0).shuffle(rest)
    return rest[:NUM_SELECTION] or list(calibration)


def _measure(trainer: TrimTrainer, rows: list[dict] | None, task: Task | None = None) -> dict[str, Any]:
    tokenizer = trainer.processing_class
    examples = trainer._tokenize_examples(rows) if task is None else task.examples(tokenizer)
    with trainer.accelerator.autocast():
        measured = measure_quality(trainer.model, examples, choose_layout(trainer.model, examples))
    return asdict(measured) | {"perplexity": measured.perplexity}
