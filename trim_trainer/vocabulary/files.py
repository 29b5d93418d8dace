"""A tokenizer's files with fewer tokens: `tokenizer.json` by the tokenizers library's own format, and what stands beside it."""

import json
import tempfile
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerBase, ProcessorMixin

from ..data.preparation import ProcessingClass
from .choice import Choice
from .errors import VocabularyError
from .kinds import find_kind

DYNAMIC = "transformers_modules"  # where Transformers puts code that comes with a checkpoint
TOKENIZER, SETTINGS, ADDED = "tokenizer.json", "tokenizer_config.json", "added_tokens.json"
_OF_CALLS = ("truncation", "padding")  # parts that each call sets
# What other loaders would read in place of `tokenizer.json`, and what holds no numbers.
_STALE = ("*.model", "vocab.*", "merges.txt", "*.tiktoken", "tekken.json")


def read_tokenizer(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """The `tokenizer.json` of a tokenizer.

    Raises:
        VocabularyError: it has none.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if not isinstance(backend, Tokenizer):
        raise VocabularyError(
            f"`vocab_size` is set, and {type(tokenizer).__name__} has no `tokenizer.json`, by which a vocabulary is made "
            "smaller. Convert it to a fast tokenizer, or leave `vocab_size` out."
        )
    return json.loads(backend.to_str())


def write_smaller(tokenizer: PreTrainedTokenizerBase, choice: Choice) -> PreTrainedTokenizerBase:
    """The tokenizer with the tokens of a choice, as any library loads it from files.

    Raises:
        VocabularyError: what was loaded has other tokens.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tokenizer.save_pretrained(folder)
        for pattern in _STALE:
            for path in folder.glob(pattern):
                path.unlink()
        written = smaller_json(read_tokenizer(tokenizer), choice)
        _edit(folder / TOKENIZER, lambda _: written)
        _edit(folder / SETTINGS, lambda settings: _renumber_settings(settings, choice.new_ids))
        _edit(folder / ADDED, lambda added: {token: choice.new_ids[old] for token, old in added.items()})
        has_code = type(tokenizer).__module__.startswith(DYNAMIC)  # that was trusted when it was loaded
        made = AutoTokenizer.from_pretrained(folder, trust_remote_code=has_code)
        made.name_or_path = tokenizer.name_or_path
    loaded = read_tokenizer(made)
    different = [name for name in written if name not in _OF_CALLS and loaded[name] != written[name]]
    if different:
        raise VocabularyError(
            f"`vocab_size` cannot be changed: {type(made).__name__} loads another {different[0]!r} than was written into its "
            f"{TOKENIZER}, as where a class has ids of its own. Leave `vocab_size` out."
        )
    return made


def with_tokenizer(processing_class: ProcessingClass, tokenizer: PreTrainedTokenizerBase) -> ProcessingClass:
    """The tokenizer, or a processor like this one with that tokenizer in it."""
    if not isinstance(processing_class, ProcessorMixin):
        return tokenizer
    with tempfile.TemporaryDirectory() as folder:
        processing_class.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return type(processing_class).from_pretrained(folder)


def smaller_json(tokenizer: dict[str, Any], choice: Choice) -> dict[str, Any]:
    """The `tokenizer.json` of a smaller vocabulary."""
    kind, new_ids = find_kind(tokenizer["model"]), choice.new_ids
    of_model = {number: token for token, number in kind.tokens(tokenizer["model"]).items()}
    left = [of_model[number] for number in choice.ids if number in of_model]
    added = [each | {"id": new_ids[each["id"]]} for each in tokenizer.get("added_tokens") or ()]
    padding = tokenizer.get("padding")
    return tokenizer | {
        "model": kind.write(tokenizer["model"], left),
        "added_tokens": sorted(added, key=lambda each: each["id"]),
        "post_processor": _renumber_step(tokenizer.get("post_processor"), new_ids),
        "padding": padding and padding | {"pad_id": new_ids[padding["pad_id"]]},
    }


def _renumber_step(step: Any, new_ids: dict[int, int]) -> Any:
    """A post-processor: `ids` of a template's special tokens, and the pairs of a token and its id that BERT and RoBERTa have."""
    if isinstance(step, list):
        return [_renumber_step(each, new_ids) for each in step]
    if not isinstance(step, dict):
        return step
    found = {}
    for name, value in step.items():
        if name == "ids":
            found[name] = [new_ids[each] for each in value]
        elif name in ("sep", "cls") and isinstance(value, list):
            found[name] = [value[0], new_ids[value[1]]]
        else:
            found[name] = _renumber_step(value, new_ids)
    return found


def _renumber_settings(settings: dict[str, Any], new_ids: dict[int, int]) -> dict[str, Any]:
    """`tokenizer_config.json`: added tokens by their numbers."""
    decoder = settings.get("added_tokens_decoder")
    if decoder is None:
        return settings
    return settings | {"added_tokens_decoder": {str(new_ids[int(old)]): token for old, token in decoder.items()}}


def _edit(path: Path, change) -> None:
    if path.is_file():
        text = json.dumps(change(json.loads(path.read_text(encoding="utf-8"))), ensure_ascii=False, indent=2)
        path.write_text(text + "\n", encoding="utf-8")
