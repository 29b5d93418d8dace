"""A smaller vocabulary for a run: made before anything else, from the texts as they will be trained on."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import IterableDataset
from transformers import AutoProcessor, PreTrainedModel, PreTrainedTokenizerBase, ProcessorMixin, set_seed
from trl.trainer.utils import create_model_from_path, get_config_model_id

from ..data.preparation import TextSettings, read_rows
from ..data.sources import read_texts
from ..data.tokens import all_texts, image_column
from ..records.vocabulary import VocabularyRecord
from ..vocabulary.errors import VocabularyError
from ..vocabulary.files import with_tokenizer
from ..vocabulary.trim import Texts, make_smaller
from .config import TrimConfig

CALIBRATION = "calibration_dataset"  # of which every choice is scored, and the others only trained on


@dataclass(frozen=True)
class Loaded:
    """What SFTTrainer would have loaded, with the smaller vocabulary; the ids that stayed, and what is recorded of them."""

    model: PreTrainedModel
    processing_class: PreTrainedTokenizerBase | ProcessorMixin
    ids: tuple[int, ...]
    record: VocabularyRecord


@contextmanager
def loaded_already(args: TrimConfig, loaded: Loaded | None) -> Iterator[None]:
    """SFTTrainer finds no `model_init_kwargs`, which it would say that it ignores, where they were heard already."""
    given = args.model_init_kwargs if loaded is not None else None
    if given is not None:
        args.model_init_kwargs = None
    try:
        yield
    finally:
        if given is not None:
            args.model_init_kwargs = given


def load_with_vocabulary(
    model: str | PreTrainedModel,
    args: TrimConfig,
    sets: dict[str, Any],
    evaluation,
    processing_class,
    data_collator,
    arguments: dict[str, Any],
) -> Loaded:
    """Load model and tokenizer as SFTTrainer does, and leave `vocab_size` tokens to them.

    Args:
        model: As for SFTTrainer.
        args: Of the run.
        sets: Training and calibration set, by their names: their tokens stay.
        evaluation: Evaluation set or sets, of which it is recorded how they fare.
        processing_class: As for SFTTrainer.
        data_collator: As for SFTTrainer.
        arguments: Further ones for SFTTrainer; what is heard here alone is taken out.

    Raises:
        VocabularyError: an argument that was made with the whole vocabulary, texts that cannot be looked at, or see
            `trim_vocabulary`.
    """
    _refuse_arguments(args, data_collator, arguments)
    _check(args, sets)
    formatting_func = arguments.get("formatting_func")
    revision = (args.model_init_kwargs or {}).get("revision")
    if isinstance(model, str):
        model = _load(model, args, arguments.pop("quantization_config", None))
    if processing_class is None:
        name = get_config_model_id(model.config)
        processing_class = AutoProcessor.from_pretrained(
            name, revision=revision, trust_remote_code=args.trust_remote_code
        )
    tokenizer = getattr(processing_class, "tokenizer", processing_class)

    def texts_of(title: str, rows: Iterable[dict], is_scored: bool = False) -> Texts:
        read, settings = read_rows(rows), TextSettings.of(args)
        return Texts(
            title,
            lambda by: all_texts(read, with_tokenizer(processing_class, by), settings, formatting_func, is_scored),
        )

    seen = [texts_of(f"`{name}`", rows, is_scored=name == CALIBRATION) for name, rows in sets.items()]
    others = [texts_of(title, rows) for title, rows in _evaluation_sets(evaluation) if _unseen(rows) is None]
    corpus = () if args.vocab_corpus is None else read_texts(args.vocab_corpus)
    smaller = make_smaller(model, tokenizer, args.vocab_size, seen, corpus, others)
    return Loaded(model, with_tokenizer(processing_class, smaller.tokenizer), smaller.choice.ids, smaller.record)


def _refuse_arguments(args: TrimConfig, data_collator, arguments: dict[str, Any]) -> None:
    optimizer = (arguments.get("optimizers") or (None,))[0]
    for name, value in {"data_collator": data_collator, "optimizers": optimizer}.items():
        if value is not None:
            raise VocabularyError(
                f"`vocab_size` is {args.vocab_size:,}, and `{name}` was made with the whole vocabulary. Leave it out, or make "
                "the vocabulary smaller first, with `trim-trainer drop --vocab-size`."
            )


def _check(args: TrimConfig, sets: dict[str, Any]) -> None:
    for name, rows in sets.items():
        if (what := _unseen(rows)) is not None:
            raise VocabularyError(
                f"`vocab_size` is {args.vocab_size:,}, but `{name}` is {what}: all of its texts have to be seen before the "
                "model is trained. Make the vocabulary smaller first, with `trim-trainer drop --vocab-size`."
            )
    if args.chat_template_path is not None and not Path(args.chat_template_path).is_file():
        raise VocabularyError(
            f"`vocab_size` is {args.vocab_size:,}, and `chat_template_path` {args.chat_template_path!r} is that of a model, with "
            "whose template tokens are added. Name a `.jinja` file."
        )


def _unseen(rows) -> str | None:
    """Why the texts of a set cannot be looked at by two tokenizers; None: they can."""
    if isinstance(rows, IterableDataset):
        return "a stream"
    first = next(iter(rows), {})
    if "input_ids" in first:
        return "of tokens already, which no other tokenizer can make again"
    return None if image_column(first) is None else "of images beside texts"


def _load(name: str, args: TrimConfig, quantization_config) -> PreTrainedModel:
    set_seed(args.seed)
    options = {"trust_remote_code": args.trust_remote_code} | (args.model_init_kwargs or {})
    if quantization_config is not None:
        options["quantization_config"] = quantization_config
    if args.distributed_state.distributed_type == "MULTI_GPU":
        options["device_map"] = None
    return create_model_from_path(name, **options)


def _evaluation_sets(evaluation) -> list[tuple[str, Any]]:
    if evaluation is None:
        return []
    named = evaluation.items() if isinstance(evaluation, dict) else [(None, evaluation)]
    return [("the evaluation set" if name is None else f"`{name}`", rows) for name, rows in named]
