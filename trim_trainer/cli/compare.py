"""`trim-trainer compare`: trimming next to its controls."""

from pathlib import Path

from ..evaluation.quiet import quiet_libraries
from . import tables
from .environment import set_environment
from .options import Parser, at_least, check_folder

USAGE = "trim-trainer compare --config recipe.yaml [--methods ...] [--depths ...] [--seeds ...] [--field value ...]"


def compare(arguments: list[str]) -> int:
    """Train trimming and its controls, and print one table."""
    set_environment(arguments)
    from ..comparison.methods import METHODS, RECIPE, choose_methods

    parser = Parser(
        prog="trim-trainer compare",
        description="Trimming next to its controls, on the same data, steps and seeds. Every other option goes to "
        "`trim-trainer train`. A run that is finished is not run again.",
        allow_abbrev=False,
    )
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), help="default: all that differ")
    parser.add_argument("--depths", nargs="+", type=at_least(1), help="default: `target_layers` of the recipe")
    parser.add_argument("--seeds", nargs="+", type=at_least(0), default=[0, 1, 2], help="default: 0 1 2")
    parser.add_argument(
        "--learning_rates", nargs="+", type=float, help="tried for each method and depth on the first seed; default: "
        "that of the recipe",
    )  # fmt: skip
    parser.add_argument(
        "--equal_seconds", action="store_true", help="each method also with the steps that the seconds of full depth allow",
    )  # fmt: skip
    parser.add_argument("--tasks", nargs="+", default=[], help="what else to evaluate on: recipes or YAML files")
    parser.add_argument("--limit", type=at_least(1), help="examples, or windows of running text, per task")
    parser.add_argument("--output_dir", default="out/compare", type=Path, help="folder of all runs (out/compare)")
    options, rest = parser.parse_known_args(arguments)
    from ..comparison.cells import SELECTION
    from ..comparison.comparison import Comparison
    from ..comparison.files import save_report
    from ..comparison.rows import group
    from ..evaluation.tasks import read_tasks
    from ..recipe import check_recipe, parse_recipe
    from ..training.launching import warn_of_launch_words

    quiet_libraries()
    check_folder("--output_dir", options.output_dir)
    recipe = parse_recipe([*rest, "--output_dir", str(options.output_dir)], prog="trim-trainer compare", usage=USAGE)
    warn_of_launch_words(recipe.launch_words)
    args = recipe.training_args
    num_layers, target = check_recipe(recipe)
    if max(options.depths or [target]) >= num_layers:
        raise ValueError(
            f"`--depths` contains {max(options.depths)}, but the model has {num_layers} layers: expected depths between 1 and "
            f"{num_layers - 1}."
        )
    comparison = Comparison(
        recipe=recipe,
        methods=choose_methods(options.methods, args.importance, args.compensation_size),
        depths=tuple(options.depths or [target]),
        seeds=tuple(options.seeds),
        learning_rates=tuple(options.learning_rates or [args.learning_rate]),
        tasks=tuple(read_tasks(options.tasks, options.limit, reserved=(RECIPE, SELECTION))),
        output_dir=options.output_dir,
        is_equal_seconds=options.equal_seconds,
    )
    comparison.check()
    results = []
    for result in comparison.run(num_layers):
        results.append(result)
        print(tables.describe_cell(result), flush=True)
        save_report(group(results), options.output_dir)
    tables.print_comparison(group(results))
    print(f"Saved: {options.output_dir.resolve()}")
    return 0
