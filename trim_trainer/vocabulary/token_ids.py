"""Fields of a config that hold token ids or count tokens: found by their names, and renumbered."""

import re
from collections.abc import Callable, Iterator
from typing import Any

from transformers import GenerationConfig, PretrainedConfig

from .errors import VocabularyError

SIZE = "vocab_size"
_IDS = re.compile(
    r"(.*_)?token_ids?|.*_token_index|(begin_)?suppress_tokens|forced_decoder_ids|(bad|force)_words_ids|sequence_bias"
)
_COUNTS = re.compile(r"(?!(task_)?type_).*(vocab|num_embeddings).*")  # BERT's types of tokens are none
Config = PretrainedConfig | GenerationConfig


def parts_of(config: Config) -> Iterator[Config]:
    """A config and those within it."""
    yield config
    for value in vars(config).values():
        if isinstance(value, PretrainedConfig):
            yield from parts_of(value)


def ids_in(config: Config) -> dict[str, list[int]]:
    """Token ids by the field that names them; negative ones stand for none."""
    found: dict[str, list[int]] = {}
    for part in parts_of(config):
        for name, value in vars(part).items():
            if _IDS.fullmatch(name) and (ids := [each for each in _flat(value) if each >= 0]):
                found[name] = [*found.get(name, []), *ids]
    return found


def check_counts(config: PretrainedConfig, num_rows: int) -> None:
    """Raise a VocabularyError for a field that counts tokens in a way that is not known here."""
    for part in parts_of(config):
        for name, value in vars(part).items():
            is_known = name == SIZE and value == num_rows
            if _COUNTS.fullmatch(name) and isinstance(value, int) and not isinstance(value, bool) and not is_known:
                raise VocabularyError(
                    f"`vocab_size` cannot be changed: the config of {config.model_type!r} has `{name}` {value} beside the "
                    f"{num_rows} rows of the embedding, and what it counts is not known. Leave `vocab_size` out."
                )


def renumber(config: Config, new_ids: dict[int, int]) -> None:
    """Give all token ids of a config their new numbers, in place."""
    for part in parts_of(config):
        for name, value in vars(part).items():
            if _IDS.fullmatch(name):
                setattr(part, name, _mapped(value, lambda each: new_ids[each] if each >= 0 else each))


def resize(config: PretrainedConfig, num_before: int, num_tokens: int) -> None:
    """Write the new size wherever the old one stands, in place."""
    for part in parts_of(config):
        if vars(part).get(SIZE) == num_before:
            setattr(part, SIZE, num_tokens)


def _flat(value: Any) -> Iterator[int]:
    if isinstance(value, (list, tuple, dict)):  # of a dict the keys: sequences and their bias
        for each in value:
            yield from _flat(each)
    elif isinstance(value, int) and not isinstance(value, bool):
        yield value


def _mapped(value: Any, new: Callable[[int], int]) -> Any:
    if isinstance(value, (list, tuple)):
        return type(value)(_mapped(each, new) for each in value)
    if isinstance(value, dict):
        return {_mapped(each, new): bias for each, bias in value.items()}
    return new(value) if isinstance(value, int) and not isinstance(value, bool) else value
