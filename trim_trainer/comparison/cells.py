"""A cell of a comparison: one method, depth, seed and rate, trained and measured in a process of its own."""

import json
import random
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from datasets import IterableDataset
from transformers import TrainerCallback

from ..causes import tell
from ..data.splits import example_key, first_rows
from ..evaluation.quiet import quiet_libraries
from ..evaluation.tasks import Task
from ..importance.unit import LAYER, SUBLAYER
from ..recipe import Recipe, load_splits, make_trainer
from ..records.history import Dropped
from ..records.json_files import read_json
from ..records.measurement import Measurement
from ..scoring.measuring import measure_model
from ..scoring.speed import (
    measure_prefill_tokens_per_second,
    peak_memory_bytes,
)
from ..training.checks import split_calibration
from ..training.hooks import use_one_gpu
from ..training.trimming import Trimming
from .before_training import drop_before_training
from .methods import METHODS, RECIPE, Method

RESULT = "result.json"
# Examples of the calibration split, none of which layers are chosen on, by whose loss a learning rate is chosen.
NUM_SELECTION = 300
SELECTION = "selection"


@dataclass(frozen=True)
class Cell:
    """One training run."""

    method: str
    depth: int
    seed: int
    learning_rate: float
    num_steps: int | None = None  # that take the seconds of full depth; None: as many as the recipe says

    @property
    def is_equal_seconds(self) -> bool:
        """Whether it has the seconds of full depth, and not its steps."""
        return self.num_steps is not None

    def folder(self, root: str | Path) -> Path:
        """Where its result lies."""
        name = f"seed-{self.seed}" + "-equal-seconds" * self.is_equal_seconds
        return Path(root) / self.method / f"depth-{self.depth}" / f"lr-{self.learning_rate:g}" / name

    def recipe(self, recipe: Recipe, folder: Path) -> Recipe:
        """The recipe with what this cell changes."""
        method = METHODS[self.method]
        is_trimming = method.drops == "while"
        return recipe.replace(
            learning_rate=self.learning_rate,
            seed=self.seed,
            output_dir=str(folder),
            overwrite_output_dir=True,
            resume_from_checkpoint=None,
            save_strategy="no",
            eval_strategy="no",  # it has no evaluation set, and is measured at its end
            eval_on_start=False,
            load_best_model_at_end=False,
            push_to_hub=False,
            save_depths=None,  # each of which would train on, in the seconds of the cell
            target_layers=self.depth if is_trimming else None,
            target_ratio=None,
            importance=(method.criterion if is_trimming else None) or recipe.training_args.importance,
            trim_unit=_unit(method, recipe.training_args.trim_unit),
            max_steps=self.num_steps or recipe.training_args.max_steps,
        )

    def planned(self, recipe: Recipe, folder: Path) -> Recipe:
        """The recipe of a run that drops what this cell does, while or before it trains: by it the depth can be checked."""
        cell, method = self.recipe(recipe, folder), METHODS[self.method]
        if method.drops != "before":
            return cell
        # What the recipe protects belongs to its own criterion.
        protected = cell.training_args.protected_layers if method.criterion is None else None
        return cell.replace(target_layers=self.depth, protected_layers=protected)


def _unit(method: Method, asked: str) -> str:
    """What goes at a time: as the recipe says, unless the method says so, or its criterion knows of layers only."""
    if method.takes_seams:
        return SUBLAYER
    return asked if method.criterion is None else LAYER


@dataclass(frozen=True)
class CellResult:
    """What a cell measured."""

    cell: Cell
    settings: dict[str, Any]  # of the recipe
    dropped: list[Dropped]
    train_seconds: float  # with calibration and drops, without evaluation
    calibration_seconds: float
    num_train_tokens: int
    train_peak_bytes: int
    selection_loss: float
    num_steps: int | None  # optimizer steps; None: an older version did not write them down
    measured: Measurement  # quality by task; the recipe's own is `RECIPE`
    tasks: dict[str, Any] | None = None  # settings of the further ones, by name; None: not written down
    chosen: dict[str, Any] | None = None  # how layers went, defaults too; None: none did, or it was not written down

    def to_plain(self) -> dict[str, Any]:
        """The numbers as JSON knows them, those of the measurement among the others."""
        own = {entry.name: getattr(self, entry.name) for entry in fields(self) if entry.name != "measured"}
        return own | {"cell": asdict(self.cell)} | self.measured.to_plain()

    @classmethod
    def load(cls, folder: Path) -> "CellResult":
        """Read what a finished cell has written.

        Raises:
            ValueError: the file is damaged.
        """
        path = folder / RESULT
        try:
            data = {"num_steps": None, "tasks": None, "chosen": None} | read_json(path)
            own = {entry.name: data[entry.name] for entry in fields(cls) if entry.name != "measured"}
            return cls(**own | {"cell": Cell(**data["cell"]), "measured": Measurement.from_plain(data)})
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"{str(path)!r} is no result of a cell: {tell(error)} Delete it, and the cell is run again."
            ) from error


def run_cell(cell: Cell, recipe: Recipe, tasks: Iterable[Task], folder: Path) -> None:
    """Train and measure one cell, and write its result into `folder`; runs in a process of its own."""
    quiet_libraries()
    for task in tasks:
        task.check()
    recipe = cell.recipe(recipe, folder)
    use_one_gpu(recipe.training_args)  # a cell is one process
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
    trimming = drop_before_training(trainer, method, calibration, cell.depth) if method.drops == "before" else None
    if method.trains:
        trainer.train()
    train_seconds = clock.ended - started if method.trains else 0.0
    train_peak_bytes = peak_memory_bytes(trainer.args.device)
    if method.trains:
        trainer.optimizer.state.clear()  # leaves its memory to the scoring: a cell that is killed there has trained for nothing
    trimming = trimming or trainer.trimming
    history = trimming and trimming.history
    model, tokenizer = trainer.model, trainer.processing_class
    sets = {SELECTION: trainer.tokenize_examples(_selection(held_out, calibration))}
    sets |= {RECIPE: trainer.tokenize_examples(test)} | {task.name: task.examples(tokenizer) for task in tasks}
    with trainer.accelerator.autocast():
        measured = measure_model(model, sets, prefill_tokens_per_second=measure_prefill_tokens_per_second(model))
    result = CellResult(
        cell=cell,
        settings=recipe.settings,
        dropped=list(history.dropped) if history else [],
        train_seconds=train_seconds,
        calibration_seconds=history.calibration_seconds if history else 0.0,
        num_train_tokens=trainer.num_train_tokens,
        train_peak_bytes=train_peak_bytes,
        selection_loss=measured.quality.pop(SELECTION).loss,
        num_steps=trainer.state.global_step,
        tasks={task.name: task.settings for task in tasks},
        chosen=_chosen(trimming, trainer) if trimming else None,
        measured=measured,
    )
    folder.mkdir(parents=True, exist_ok=True)
    unfinished = folder / f"{RESULT}.unfinished"
    unfinished.write_text(json.dumps(result.to_plain(), indent=1) + "\n", encoding="utf-8")
    unfinished.replace(folder / RESULT)  # at once: what is there is whole, also where this process is killed


def _chosen(trimming: Trimming, trainer) -> dict[str, Any]:
    """How layers went, in the words of `TrimConfig`, with what it leaves open."""
    history, settings = trimming.history, trimming.settings
    return {
        "importance": history.importance,
        "calibration_metric": history.calibration_metric,
        "calibration_size": history.calibration_size,
        "compensation_size": trainer.compensation_size,
        "scale_learning_rate": trainer.scales_learning_rate,
        "layers_per_trim": settings.layers_per_trim,
        "protected_layers": list(settings.protected_layers),
    }


class Clock(TrainerCallback):
    """When the last step was done: what a trimming run measures behind it, for its card, is no training."""

    ended = 0.0

    def on_train_end(self, *args, **kwargs):
        """Look; the loss of the whole run has been read by then, so the device is done."""
        self.ended = time.perf_counter()


def _selection(held_out, calibration) -> list[dict]:
    """Examples of the calibration split that layers are not chosen on; without any, those that they are."""
    chosen = {example_key(example) for example in calibration}
    if isinstance(held_out, IterableDataset):
        held_out = first_rows(held_out)[0]
    rest = [example for example in held_out or () if example_key(example) not in chosen]
    random.Random(0).shuffle(rest)
    return rest[:NUM_SELECTION] or list(calibration)
