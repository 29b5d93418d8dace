"""The command `trim-trainer`."""

import argparse
import json
import sys
from pathlib import Path

from . import __version__, console


def main(arguments: list[str] | None = None) -> int:
    """Run a subcommand; return the exit status."""
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = argparse.ArgumentParser(prog="trim-trainer", description="Fine-tune an LLM while its layers are dropped.")
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("train", add_help=False, help="train from a recipe: --config recipe.yaml [--field value ...]")
    commands.add_parser("drop", add_help=False, help="drop layers of a checkpoint: MODEL --layers 3,17 --output DIR")
    commands.add_parser("scan", add_help=False, help="importance of each layer, without training: MODEL --data DATA")
    commands.add_parser("evaluate", add_help=False, help="checkpoints side by side: MODEL ... --task task.yaml")
    commands.add_parser("compare", add_help=False, help="trimming next to its controls: --config recipe.yaml")
    commands.add_parser("publish", add_help=False, help="put a trimmed model on the Hub: DIR --repo-id me/model")
    command, rest = parser.parse_known_args(arguments[:1])[0].command, arguments[1:]
    run = {"train": train, "drop": drop, "scan": scan, "evaluate": evaluate, "compare": compare, "publish": publish}
    return run[command](rest)


def train(arguments: list[str]) -> int:
    """Train as a recipe says, save the result, and print what was measured."""
    from .recipe import build_trainer, parse_recipe
    from .training.duration import estimate_seconds

    quiet_libraries()
    try:
        recipe = parse_recipe(arguments, prog="trim-trainer train")
        print(f"Loading {recipe.model_args.model_name_or_path} and {recipe.script_args.dataset_name} …", flush=True)
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
    except (ValueError, FileExistsError, FileNotFoundError, ModuleNotFoundError) as error:
        print(f"trim-trainer: {error}", file=sys.stderr)
        return 2
    status = save(trainer)
    trainer.accelerator.end_training()
    return status


def save(trainer) -> int:
    """Save the result, publish it if the recipe says so, and return the exit status."""
    from .hub.publishing import PublishError
    from .hub.staging import StagingError

    failure = None
    try:
        trainer.save_model()  # with `push_to_hub` this publishes too
    except (StagingError, PublishError) as error:  # everything is saved; the message says how to go on
        failure = error
    if trainer.history is not None:
        if trainer.is_world_process_zero():
            console.print_summary(trainer)
    else:
        trainer.create_model_card()
        if trainer.args.push_to_hub:
            trainer.push_to_hub()
    if failure is not None:
        print(f"trim-trainer: {failure}", file=sys.stderr)
    return 0 if failure is None else 2


def drop(arguments: list[str]) -> int:
    """Drop layers of a checkpoint without training, and print what is left."""
    parser = argparse.ArgumentParser(
        prog="trim-trainer drop", description="Drop decoder layers of a checkpoint, without training."
    )
    parser.add_argument("model", help="Hub id or folder")
    parser.add_argument("--layers", required=True, help="numbers and ranges of layers, from 0: 3,17,20-24")
    parser.add_argument("--output", required=True, help="folder for the result; empty, or not there yet")
    parser.add_argument("--revision", default="main", help="branch, tag or commit on the Hub")
    parser.add_argument("--dtype", default="auto", help="auto (as stored), float32, bfloat16 or float16")
    parser.add_argument("--trust-remote-code", action="store_true", help="run code that comes with the model")
    options = parser.parse_args(arguments)
    from .checkpoints.dropping import drop_from_checkpoint, parse_layers
    from .checkpoints.verification import VerificationError
    from .surgery.drop import SurgeryError

    quiet_libraries()
    try:
        done = drop_from_checkpoint(
            options.model,
            parse_layers(options.layers),
            options.output,
            revision=options.revision,
            dtype=options.dtype,
            trust_remote_code=options.trust_remote_code,
        )
    except (ValueError, OSError, SurgeryError, VerificationError) as error:
        print(f"trim-trainer: {error}", file=sys.stderr)
        return 2
    print(
        f"{done.num_layers} → {done.depth} layers, {done.num_parameters:,} → {done.num_parameters_after:,} parameters, "
        f"{'with' if done.has_tokenizer else 'without a'} tokenizer."
    )
    for caveat in done.caveats:
        print(f"Note: {caveat}")
    print(f"Saved, reloaded and compared: {Path(options.output).resolve()}")
    return 0


def scan(arguments: list[str]) -> int:
    """Score the layers of a checkpoint and print a table, or JSON."""
    parser = argparse.ArgumentParser(
        prog="trim-trainer scan", description="How much each layer of a checkpoint matters on your data."
    )
    parser.add_argument("model", help="Hub id or folder")
    parser.add_argument("--data", required=True, help="Hub id, folder or file in one of TRL's formats")
    parser.add_argument("--split", help="of the data; default: validation, else the first there is")
    parser.add_argument("--criterion", default="sensitivity", help="a name in trim_trainer.CRITERIA")
    parser.add_argument("--metric", choices=("accuracy", "loss"), help="default: accuracy if there are choices")
    parser.add_argument("--size", type=int, default=50, help="examples, drawn at random (default: 50)")
    parser.add_argument("--racing-confidence", type=float, help="stop layers that are clearly worse, such as 0.95")
    parser.add_argument("--batch-tokens", type=int, help="tokens of one pass; default: what is fast")
    parser.add_argument("--dtype", default="auto", help="auto (as stored), float32, bfloat16 or float16")
    parser.add_argument("--seed", type=int, default=0, help="for the draw of the examples")
    parser.add_argument("--output", help="folder for layer_scores.json and layer_scores.png")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--trust-remote-code", action="store_true", help="run code that comes with the model")
    options = vars(parser.parse_args(arguments))
    output, as_json = options.pop("output"), options.pop("json")
    from dataclasses import asdict

    from .evaluation.layers import report_layers

    quiet_libraries()
    try:
        report = report_layers(options.pop("model"), options.pop("data"), **options)
    except (ValueError, OSError) as error:
        print(f"trim-trainer: {error}", file=sys.stderr)
        return 2
    if output is not None:
        report.save(output)
    if as_json:
        print(json.dumps(asdict(report)))
    else:
        console.print_layers(report)
    return 0


def evaluate(arguments: list[str]) -> int:
    """Measure checkpoints and print them side by side, or as JSON."""
    parser = argparse.ArgumentParser(
        prog="trim-trainer evaluate", description="Quality, speed, memory and load time of checkpoints, side by side."
    )
    parser.add_argument("models", nargs="+", help="Hub ids (name@revision for a branch or tag) or folders")
    parser.add_argument("--task", nargs="+", default=[], help="recipes, or YAML files with the data of one alone")
    parser.add_argument("--limit", type=int, help="examples, or windows of running text, per task")
    parser.add_argument("--dtype", default="auto", help="auto (as stored), float32, bfloat16 or float16")
    parser.add_argument("--batch-tokens", type=int, help="tokens of one pass; default: what is fast")
    parser.add_argument("--lm-eval", action="store_true", help="the accuracy by lm-evaluation-harness too")
    parser.add_argument("--output", help="JSON file for the numbers")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--trust-remote-code", action="store_true", help="run code that comes with a model")
    options = parser.parse_args(arguments)
    from .evaluation.checkpoints import evaluate_checkpoints
    from .evaluation.tasks import read_task

    quiet_libraries()
    try:
        reports = evaluate_checkpoints(
            options.models,
            [read_task(path, options.limit) for path in options.task],
            dtype=options.dtype,
            batch_tokens=options.batch_tokens,
            has_lm_eval=options.lm_eval,
            trust_remote_code=options.trust_remote_code,
        )
    except (ValueError, OSError, ModuleNotFoundError) as error:
        print(f"trim-trainer: {error}", file=sys.stderr)
        return 2
    numbers = json.dumps([report.to_plain() for report in reports], indent=1)
    if options.output is not None:
        Path(options.output).write_text(numbers + "\n", encoding="utf-8")
    if options.json:
        print(numbers)
    else:
        console.print_checkpoints(reports)
    return 0


def compare(arguments: list[str]) -> int:
    """Train trimming and its controls, and print one table."""
    from .comparison.methods import METHODS, choose_methods

    parser = argparse.ArgumentParser(
        prog="trim-trainer compare",
        description="Trimming next to its controls, on the same data, steps and seeds. Every other option goes to "
        "`trim-trainer train`. A run that is finished is not run again.",
        allow_abbrev=False,
    )
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), help="default: all that differ")
    parser.add_argument("--depths", nargs="+", type=int, help="default: `target_layers` of the recipe")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="default: 0 1 2")
    parser.add_argument(
        "--learning_rates", nargs="+", type=float, help="tried for each method and depth on the first seed; default: "
        "that of the recipe",
    )  # fmt: skip
    parser.add_argument("--tasks", nargs="+", default=[], help="what else to evaluate on: recipes or YAML files")
    parser.add_argument("--limit", type=int, help="examples, or windows of running text, per task")
    parser.add_argument("--output_dir", default="out/compare", type=Path, help="folder of all runs (out/compare)")
    options, rest = parser.parse_known_args(arguments)
    from .comparison.comparison import Comparison
    from .comparison.files import save_report
    from .comparison.rows import group
    from .data.quickstart import resolve_source
    from .evaluation.tasks import read_task
    from .recipe import parse_recipe
    from .training.checks import check_model

    quiet_libraries()
    try:
        recipe = parse_recipe([*rest, "--output_dir", str(options.output_dir)], prog="trim-trainer compare")
        args = recipe.training_args
        num_layers, target = check_model(resolve_source(recipe.model_args.model_name_or_path), args)
        comparison = Comparison(
            arguments=tuple(rest),
            methods=choose_methods(options.methods, args.importance, args.compensation_size),
            depths=tuple(options.depths or [target]),
            seeds=tuple(options.seeds),
            learning_rates=tuple(options.learning_rates or [args.learning_rate]),
            tasks=tuple(read_task(path, options.limit) for path in options.tasks),
            output_dir=options.output_dir,
        )
        results = []
        for result in comparison.run(num_layers):
            results.append(result)
            print(console.describe_cell(result), flush=True)
            save_report(group(results), options.output_dir)
    except (ValueError, OSError, ModuleNotFoundError) as error:
        print(f"trim-trainer: {error}", file=sys.stderr)
        return 2
    console.print_comparison(group(results))
    print(f"Saved: {options.output_dir.resolve()}")
    return 0


def publish(arguments: list[str]) -> int:
    """Put a trimmed model and its depths on the Hub, and print what is there."""
    parser = argparse.ArgumentParser(
        prog="trim-trainer publish", description="Check, upload, read back: a trimmed model becomes a Hub repository."
    )
    parser.add_argument("directory", help="what a trimming run saved")
    parser.add_argument("--repo-id", required=True, help="namespace/name on the Hub; made if it is not there")
    parser.add_argument("--private", action=argparse.BooleanOptionalAction, help="default: that of the account")
    parser.add_argument("--commit-message", help="of each commit")
    options = parser.parse_args(arguments)
    from .hub.publishing import PublishError
    from .hub.publishing import publish as to_hub
    from .hub.staging import StagingError

    quiet_libraries()
    try:
        done = to_hub(
            options.directory, options.repo_id, private=options.private, commit_message=options.commit_message
        )
    except (StagingError, PublishError) as error:
        print(f"trim-trainer: {error}", file=sys.stderr)
        return 2
    for each in done:
        what = f"commit {each.commit[:8]}" if each.is_new else f"unchanged at {each.commit[:8]}"
        print(f"{each.revision}: {each.depth} layers, {what}, tag {each.tag}, {each.url}")
    return 0


def describe_device(trainer) -> str:
    """The device that the run uses, in words."""
    from .scoring.speed import device_name

    return device_name(trainer.model.device)


def quiet_libraries() -> None:
    """Keep progress bars of single calls out of the way of the run's own."""
    import logging
    import warnings

    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it tells of kernels for CPUs that it cannot download
    import datasets
    import transformers

    warnings.filterwarnings("ignore", category=FutureWarning)
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    datasets.disable_progress_bars()


def replace_progress_bar(trainer) -> None:
    """Let the progress bar show loss and depth, and one line per drop."""
    from transformers import PrinterCallback, ProgressCallback

    class TrimProgress(ProgressCallback):
        def on_log(self, args, state, control, logs=None, **kwargs):
            if not state.is_world_process_zero or self.training_bar is None:
                return
            if "trim_depth" in logs:
                self.training_bar.write(console.describe_drop(trainer.history, state))
                sys.stdout.flush()  # a live line in a log file too
                self.training_bar.set_postfix(layers=logs["trim_depth"])
            elif "loss" in logs:
                self.training_bar.set_postfix(layers=self.depth(), loss=f"{logs['loss']:.3f}")

        def depth(self):
            return trainer.history.depth if trainer.history is not None else "all"

    for callback in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(callback)
    trainer.add_callback(TrimProgress)


if __name__ == "__main__":
    sys.exit(main())
