"""A smaller vocabulary for a run: made before anything else, from the texts as they will be trained on."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from datasets import Dataset, IterableDataset
from transformers import AutoProcessor, PreTrainedModel, PreTrainedTokenizerBase, ProcessorMixin, set_seed
from trl.trainer.utils import create_model_from_path, get_config_model_id

from ..data.preparation import TextSettings, WithoutTrainer, prepare, read_rows
from ..data.sources import load_source
from ..data.tokens import image_column, score_rows
from ..records.vocabulary import VocabularyRecord
from ..vocabulary.errors import VocabularyError
from ..vocabulary.trim import Ids, Texts, make_smaller
from .config import TrimConfig


@dataclass(frozen=True)
class Loaded:
    """What SFTTrainer would have loaded, with the smaller vocabulary; the ids that stayed, and what is recorded of them."""

    model: PreTrainedModel
    processing_class: PreTrainedTokenizerBase | ProcessorMixin
    ids: tuple[int, ...]
    record: VocabularyRecord


def refuse_arguments(args: TrimConfig, data_collator, arguments: dict[str, Any]) -> None:
    """Raise a VocabularyError for arguments of a trainer that were made with the whole vocabulary."""
    optimizer = (arguments.get("optimizers") or (None,))[0]
    for name, value in {"data_collator": data_collator, "optimizers": optimizer}.items():
        if value is not None:
            raise VocabularyError(
                f"`vocab_size` is {args.vocab_size:,}, and `{name}` was made with the whole vocabulary. Leave it out, or make "
                "the vocabulary smaller first, with `trim-trainer drop --vocab-size`."
            )


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
    processing_class=None,
    quantization_config=None,
    formatting_func=None,
) -> Loaded:
    """Load model and tokenizer as SFTTrainer does, and leave `vocab_size` tokens to them.

    Args:
        model: As for SFTTrainer.
        args: Of the run.
        sets: Training and calibration set, by their names: their tokens stay.
        evaluation: Evaluation set or sets, of which it is recorded how they fare.
        processing_class: As for SFTTrainer.
        quantization_config: As for SFTTrainer.
        formatting_func: As for SFTTrainer.

    Raises:
        VocabularyError: texts that cannot be looked at, or see `trim_vocabulary`.
    """
    _check(args, sets)
    revision = (args.model_init_kwargs or {}).get("revision")
    if isinstance(model, str):
        model = _load(model, args, quantization_config)
    if processing_class is None:
        name = get_config_model_id(model.config)
        processing_class = AutoProcessor.from_pretrained(
            name, revision=revision, trust_remote_code=args.trust_remote_code
        )
    tokenizer = getattr(processing_class, "tokenizer", processing_class)
    encode = partial(_encode, processing_class, args, formatting_func)
    seen = [Texts(f"`{name}`", partial(encode, rows=read_rows(rows))) for name, rows in sets.items()]
    others = [
        Texts(title, partial(encode, rows=read_rows(rows)))
        for title, rows in _evaluation_sets(evaluation)
        if not isinstance(rows, IterableDataset)
    ]
    smaller = make_smaller(model, tokenizer, args.vocab_size, seen, _corpus(args), others)
    return Loaded(model, _with_tokenizer(processing_class, smaller.tokenizer), smaller.choice.ids, smaller.record)


def _check(args: TrimConfig, sets: dict[str, Any]) -> None:
    refused = {
        "a stream": lambda rows: isinstance(rows, IterableDataset),
        "of tokens already, which no other tokenizer can make again": lambda rows: "input_ids" in _columns(rows),
        "of images beside texts": lambda rows: any(image_column(row) for row in read_rows(rows)[:1]),
    }
    for name, rows in sets.items():
        for what, is_so in refused.items():
            if is_so(rows):
                raise VocabularyError(
                    f"`vocab_size` is {args.vocab_size:,}, but `{name}` is {what}: all of its texts have to be seen before the "
                    "model is trained. Make the vocabulary smaller first, with `trim-trainer drop --vocab-size`."
                )
    if args.deepspeed_plugin is not None or getattr(args, "fsdp_plugin", None) is not None or args.fsdp:
        raise VocabularyError(
            f"`vocab_size` is {args.vocab_size:,}, with FSDP or DeepSpeed, where a process may hold none of the weights. Make "
            "the vocabulary smaller first, with `trim-trainer drop --vocab-size`."
        )


def _columns(rows: Iterable[dict]) -> Iterable[str]:
    return rows.column_names if isinstance(rows, Dataset) else next(iter(rows), {})


def _load(name: str, args: TrimConfig, quantization_config) -> PreTrainedModel:
    set_seed(args.seed)
    options = {"trust_remote_code": args.trust_remote_code} | (args.model_init_kwargs or {})
    if quantization_config is not None:
        options["quantization_config"] = quantization_config
    if args.distributed_state.distributed_type == "MULTI_GPU":
        options["device_map"] = None
    return create_model_from_path(name, **options)


def _encode(
    processing_class, args: TrimConfig, formatting_func, tokenizer: PreTrainedTokenizerBase, rows: list[dict]
) -> list[Ids]:
    """Texts as SFTTrainer prepares them; of multiple choice, with each choice."""
    settings = TextSettings.of(args)
    stand_in = WithoutTrainer(_with_tokenizer(processing_class, tokenizer), settings, rows[0])
    examples = score_rows(
        rows,
        lambda variants: prepare(stand_in, variants, stand_in.processing_class, settings, formatting_func),
        args.max_length,
    )
    return [[*example.prompt_ids, *choice] for example in examples for choice in example.choice_ids]


def _with_tokenizer(processing_class, tokenizer: PreTrainedTokenizerBase):
    """The same tokenizer or processor with another tokenizer in it."""
    if not isinstance(processing_class, ProcessorMixin):
        return tokenizer
    parts = {name: getattr(processing_class, name) for name in processing_class.get_attributes()}
    return type(processing_class)(**parts | {"tokenizer": tokenizer}, chat_template=processing_class.chat_template)


def _evaluation_sets(evaluation) -> list[tuple[str, Any]]:
    if evaluation is None:
        return []
    named = evaluation.items() if isinstance(evaluation, dict) else [(None, evaluation)]
    return [("the evaluation set" if name is None else f"`{name}`", rows) for name, rows in named]


def _corpus(args: TrimConfig) -> list[str]:
    """Texts of the data that are named, all columns of text of all rows of their first split."""
    if args.vocab_corpus is None:
        return []
    splits = load_source(args.vocab_corpus)
    rows = splits["train" if "train" in splits else next(iter(splits))]
    return [value for row in rows for value in row.values() if isinstance(value, str) and value.strip()]
