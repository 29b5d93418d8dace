"""Trimming next to its controls: every method, depth and seed is a cell that trains in a process of its own, once."""

import json
import logging
import random
import statistics
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from .data.splits import example_key
from .evaluation.isolation import run_alone
from .evaluation.tasks import Task
from .methods import METHODS, drop_before_training
from .recipe import Recipe, load_splits, make_trainer, parse_recipe
from .records.history import TrimHistory
from .records.statistics import students_t, wilson_interval
from .scoring.quality import measure_quality
from .scoring.speed import device_name, measure_prefill_tokens_per_second, measure_tokens_per_second, peak_memory_bytes
from .scoring.trial import choose_layout
from .training.checks import split_calibration
from .training.trainer import TrimTrainer

logger = logging.getLogger(__name__)

RESULT = "result.json"
# Examples of the calibration split, none of which layers are chosen on, by whose loss a learning rate is chosen.
NUM_SELECTION = 300
SHARES = ("accuracy", "macro_f1")  # between 0 and 1


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


@dataclass(frozen=True)
class Comparison:
    """What to run."""

    arguments: tuple[str, ...]  # of `trim-trainer train`
    methods: tuple[str, ...]
    depths: tuple[int, ...]
    seeds: tuple[int, ...]
    learning_rates: tuple[float, ...]  # several: the best on the calibration split, per method and depth
    tasks: tuple[Task, ...]
    output_dir: Path

    def run(self, num_layers: int) -> Iterator[CellResult]:
        """Run every cell that is not finished, and yield those of the chosen learning rate, one per method, depth and seed.

        Raises:
            ValueError: the folder holds cells of other settings.
        """
        for method in self.methods:
            for depth in [num_layers] if METHODS[method].drops == "never" else self.depths:
                first = [self._cell(Cell(method, depth, self.seeds[0], rate)) for rate in self.learning_rates]
                best = min(first, key=lambda result: result.selection_loss)
                self._warn_unless_bracketed(best.cell)
                yield best
                for seed in self.seeds[1:]:
                    yield self._cell(Cell(method, depth, seed, best.cell.learning_rate))

    def _warn_unless_bracketed(self, best: Cell) -> None:
        """Warn where rates beyond those tried may be better: a baseline at a poor rate flatters what is compared with it."""
        lowest, highest = min(self.learning_rates), max(self.learning_rates)
        if lowest < highest and best.learning_rate in (lowest, highest):
            logger.warning(
                "%s, %d layers: the best learning rate is %g, at the end of those tried. Add a %s one to "
                "`--learning_rates`; what is finished is not run again.",
                METHODS[best.method].title, best.depth, best.learning_rate,
                "lower" if best.learning_rate == lowest else "higher",
            )  # fmt: skip

    def _cell(self, cell: Cell) -> CellResult:
        folder = cell.folder(self.output_dir)
        settings = cell.recipe(list(self.arguments), folder).settings
        if (folder / RESULT).is_file():
            done = CellResult.load(folder)
            self._check_same(done, settings, folder)
            if {task.name for task in self.tasks} < done.quality.keys():
                return done
        run_alone(run_cell, cell, self.arguments, self.tasks, folder)
        return CellResult.load(folder)

    def _check_same(self, done: CellResult, settings: dict[str, Any], folder: Path) -> None:
        settings = json.loads(json.dumps(settings))
        changed = [name for name in {*done.settings, *settings} if done.settings.get(name) != settings.get(name)]
        if changed:
            name = sorted(changed)[0]
            raise ValueError(
                f"{str(folder)!r} holds a result of other settings: `{name}` was {done.settings.get(name)!r}, now it is "
                f"{settings.get(name)!r}. Name another `--output_dir`, or delete the folder."
            )


def run_cell(cell: Cell, arguments: Iterable[str], tasks: Iterable[Task], folder: Path) -> None:
    """Train and measure one cell, and write its result into `folder`; runs in a process of its own."""
    from .cli import quiet_libraries

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


# Results of several seeds as one row.


@dataclass(frozen=True)
class Row:
    """A method at a depth, over its seeds."""

    method: str
    depth: int
    results: tuple[CellResult, ...]

    def mean(self, name: str) -> float:
        """Of a field of the results."""
        return statistics.fmean(getattr(result, name) for result in self.results)

    def quality(self, task: str, name: str) -> tuple[float, float, float] | None:
        """Mean and 95 % confidence interval; None: not measured.

        Over several seeds the interval is Student's t over them, of a share no wider than 0 to 1. An accuracy of one
        seed has Wilson's, any other figure of one seed no interval (both ends are the figure).
        """
        values = [result.quality[task][name] for result in self.results if task in result.quality]
        if not values or None in values:
            return None
        if len(values) == 1 and name == "accuracy":
            return values[0], *wilson_interval(values[0], self.results[0].quality[task]["num_examples"])
        mean, low, high = students_t(values)
        return (mean, max(0.0, low), min(1.0, high)) if name in SHARES else (mean, low, high)

    def difference(self, other: "Row", task: str, name: str) -> tuple[float, float, float] | None:
        """How much this row is above another one, paired by seed: mean and 95 % interval; None: they share no seed.

        Rows of a seed share the order of the data and the evaluation set, so their difference varies less than they do.
        Of one seed both ends are the difference.
        """
        mine, theirs = self._by_seed(task, name), other._by_seed(task, name)
        differences = [mine[seed] - theirs[seed] for seed in sorted(mine.keys() & theirs.keys())]
        return students_t(differences) if differences else None

    def _by_seed(self, task: str, name: str) -> dict[int, float]:
        values = {result.cell.seed: result.quality.get(task, {}).get(name) for result in self.results}
        return {seed: value for seed, value in values.items() if value is not None}


def group(results: Iterable[CellResult]) -> list[Row]:
    """Put the seeds of a method and a depth together: full depth first, then depth by depth."""
    by_row: dict[tuple[str, int], list[CellResult]] = {}
    for result in results:
        by_row.setdefault((result.cell.method, result.cell.depth), []).append(result)
    order = list(METHODS)
    rows = [Row(method, depth, tuple(found)) for (method, depth), found in by_row.items()]
    return sorted(rows, key=lambda row: (-row.depth, order.index(row.method)))
