"""`trim-trainer train`: train as a recipe says."""

import sys

from ..evaluation.quiet import quiet_libraries
from . import tables
from .environment import set_environment
from .help import HELP, USAGE, print_help
from .options import check_folder
from .progress import replace_progress_bar

MODULE = __package__  # `python -m` of it is the command `trim-trainer`


def train(arguments: list[str]) -> int:
    """Train as a recipe says, save the result, and print what was measured."""
    if wanted := HELP.intersection(arguments):
        print_help(is_whole="--help-all" in wanted)
        return 0
    set_environment(arguments)
    from ..recipe import build_trainer, parse_recipe
    from ..training.duration import estimate_seconds
    from ..training.launching import is_launched, launch, warn_of_launch_words

    quiet_libraries()
    recipe = parse_recipe(arguments, prog="trim-trainer train", usage=USAGE)
    check_folder("output_dir", recipe.training_args.output_dir)
    if recipe.launch_words and not is_launched():
        return launch(recipe.launch_words, MODULE, ["train", *arguments])
    warn_of_launch_words(recipe.launch_words)
    print(f"Loading {recipe.model_args.model_name_or_path} and {recipe.script_args.data_name} …", flush=True)
    trainer = build_trainer(recipe)
    replace_progress_bar(trainer)
    if trainer.history is not None:
        minutes = estimate_seconds(trainer) / 60
        print(
            f"{trainer.history.num_layers} → {trainer.history.target_layers} layers, about {minutes:.0f} min on "
            f"{describe_device(trainer)}.",
            flush=True,
        )
    trainer.train(resume_from_checkpoint=recipe.training_args.resume_from_checkpoint)
    status = save(trainer, recipe.script_args.dataset_name)
    trainer.accelerator.end_training()
    return status


def save(trainer, dataset_name: str | None = None) -> int:
    """Save the result, publish it if the recipe says so, and return the exit status."""
    from ..hub.publishing import PublishError
    from ..hub.staging import StagingError

    failure = None
    try:
        trainer.save_model()  # with `push_to_hub` this publishes too
    except (StagingError, PublishError) as error:  # everything is saved; the message says how to go on
        failure = error
    if trainer.history is not None:
        if trainer.is_world_process_zero():
            tables.print_summary(trainer)
    else:
        trainer.create_model_card(dataset_name=dataset_name)
        if trainer.args.push_to_hub:
            trainer.push_to_hub(dataset_name=dataset_name)
    if failure is not None:
        print(f"trim-trainer: {failure}", file=sys.stderr)
    return 0 if failure is None else 2


def describe_device(trainer) -> str:
    """The device that the run uses, in words."""
    from ..scoring.speed import device_name

    return device_name(trainer.model.device)
