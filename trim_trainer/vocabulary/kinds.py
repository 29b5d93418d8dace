"""The models of the tokenizers library, as rows: which tokens each needs, what they are made of, and how its file says it."""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from tokenizers.pre_tokenizers import ByteLevel

from .errors import VocabularyError

# Of a model in `tokenizer.json`.
Model = dict[str, Any]
_BYTE = re.compile(r"<0x[0-9A-F]{2}>")


@dataclass(frozen=True)
class Kind:
    """How one model splits text, as far as a smaller vocabulary has to know.

    Attributes:
        tokens: Its tokens and their ids.
        needed: Of these, those without which it would split what is left in another way, or not at all.
        parts: Returns a function: token -> the tokens that it is put together from, and itself. None: it never comes up.
        rank: Returns a function by which tokens are sorted where nothing counts them, the more frequent first.
        write: The same model with these tokens, in this order.
    """

    tokens: Callable[[Model], dict[str, int]]
    needed: Callable[[Model, bool], set[str]]
    parts: Callable[[Model], Callable[[str], frozenset[str] | None]]
    rank: Callable[[Model], Callable[[str], float]]
    write: Callable[[Model, list[str]], Model]


def find_kind(model: Model) -> Kind:
    """The row of a model.

    Raises:
        VocabularyError: there is none.
    """
    name = model.get("type") or _guess(model)
    if name not in KINDS:
        raise VocabularyError(
            f"`vocab_size` is set, and the tokenizer's model is {name!r}, expected one of {', '.join(KINDS)}: which tokens "
            "it needs is not known. Leave `vocab_size` out."
        )
    return KINDS[name]


def _guess(model: Model) -> str | None:
    """Files of before `type` was written."""
    if "merges" in model:
        return "BPE"
    return "Unigram" if isinstance(model.get("vocab"), list) else None


def is_byte_level(tokenizer: dict[str, Any]) -> bool:
    """Whether a tokenizer writes each byte as a character, so that all text is made of 256 of them."""
    return "ByteLevel" in _strings_around(tokenizer)


def marks(tokenizer: dict[str, Any]) -> set[str]:
    """Characters that a tokenizer writes for others, such as the one for a space, which no bytes can stand for."""
    return {each for each in _strings_around(tokenizer) if len(each) == 1}


def _strings_around(tokenizer: dict[str, Any]) -> set[str]:
    """All strings in what comes before and behind the model."""

    def strings(part: Any) -> Iterable[str]:
        if isinstance(part, (dict, list)):
            for each in part.values() if isinstance(part, dict) else part:
                yield from strings(each)
        elif isinstance(part, str):
            yield part

    return set(strings([tokenizer.get(name) for name in ("normalizer", "pre_tokenizer", "decoder")]))


def is_character(token: str, model: Model) -> bool:
    """Whether a token is one character, in the middle of a word or not."""
    prefix = model.get("continuing_subword_prefix") or ""
    return len(token.removeprefix(prefix) if prefix else token) == 1


def has_bytes(model: Model, byte_level: bool) -> bool:
    """Whether a text of characters that have no token is still written, in bytes."""
    return byte_level or bool(model.get("byte_fallback"))


def _in_dict(model: Model) -> dict[str, int]:
    return dict(model["vocab"])


def _in_list(model: Model) -> dict[str, int]:
    return {piece: number for number, (piece, _) in enumerate(model["vocab"])}


def _bytes(model: Model, byte_level: bool) -> set[str]:
    """Those that stand for bytes, and the one for what is not known."""
    found = set(ByteLevel.alphabet()) if byte_level else set()
    if model.get("byte_fallback"):
        found |= set(filter(_BYTE.fullmatch, find_kind(model).tokens(model)))
    return found | {model.get("unk_token")}


def _needed_pieces(model: Model, byte_level: bool) -> set[str]:
    """As above, and the piece with the lowest score: by it an unknown character is scored."""
    pieces = model["vocab"]
    found = _bytes(model, byte_level) | {min(pieces, key=lambda piece: piece[1])[0]}
    return found if model.get("unk_id") is None else found | {pieces[model["unk_id"]][0]}


def _no_parts(model: Model) -> Callable[[str], frozenset[str]]:
    return lambda token: frozenset([token])


def _merged_parts(model: Model) -> Callable[[str], frozenset[str] | None]:
    """Tokens are put together as in any text that has them: what is merged within one does not depend on what is around."""
    vocab, prefix = model["vocab"], model.get("continuing_subword_prefix") or ""
    ranks = {pair: rank for rank, pair in enumerate(map(_pair, model["merges"]))}

    def parts(token: str) -> frozenset[str] | None:
        symbols = _symbols(token, prefix, model.get("end_of_word_suffix") or "")
        found = {token, *symbols}
        while len(symbols) > 1:
            pairs = list(zip(symbols, symbols[1:], strict=False))
            place = min(range(len(pairs)), key=lambda number: (ranks.get(pairs[number], len(ranks)), number))
            if pairs[place] not in ranks:
                break
            symbols[place : place + 2] = [symbols[place] + symbols[place + 1].removeprefix(prefix)]
            found.add(symbols[place])
        if symbols == [token] and found <= vocab.keys():
            return frozenset(found)
        return frozenset([token]) if model.get("ignore_merges") else None

    return parts


def _symbols(token: str, prefix: str, suffix: str) -> list[str]:
    """What merging begins with: characters, marked as the model marks them."""
    is_inside = bool(prefix) and token.startswith(prefix)
    is_end = bool(suffix) and token.endswith(suffix)
    stem = token.removeprefix(prefix) if is_inside else token
    symbols = list(stem.removesuffix(suffix) if is_end else stem)
    symbols = [f"{prefix}{each}" if number or is_inside else each for number, each in enumerate(symbols)]
    return [*symbols[:-1], symbols[-1] + suffix] if is_end and symbols else symbols


def _pair(merge: str | list[str]) -> tuple[str, str]:
    one, other = merge.split(" ") if isinstance(merge, str) else merge
    return one, other


def _by_id(model: Model) -> Callable[[str], float]:
    return _in_dict(model).__getitem__


def _by_score(model: Model) -> Callable[[str], float]:
    scores = dict(map(tuple, model["vocab"]))
    return lambda piece: -scores[piece]


def _write_dict(model: Model, tokens: list[str]) -> Model:
    return model | {"vocab": {token: number for number, token in enumerate(tokens)}}


def _write_merges(model: Model, tokens: list[str]) -> Model:
    """Every merge of two tokens that are left to one that is, in the order that they had."""
    left, prefix = set(tokens), model.get("continuing_subword_prefix") or ""

    def stays(merge: str | list[str]) -> bool:
        one, other = _pair(merge)
        return one in left and other in left and one + other.removeprefix(prefix) in left

    return _write_dict(model, tokens) | {"merges": list(filter(stays, model["merges"]))}


def _write_list(model: Model, tokens: list[str]) -> Model:
    scores, unknown = dict(map(tuple, model["vocab"])), model.get("unk_id")
    written = model | {"vocab": [[token, scores[token]] for token in tokens]}
    return written if unknown is None else written | {"unk_id": tokens.index(model["vocab"][unknown][0])}


KINDS = {
    "BPE": Kind(_in_dict, _bytes, _merged_parts, _by_id, _write_merges),
    "Unigram": Kind(_in_list, _needed_pieces, _no_parts, _by_score, _write_list),
    "WordPiece": Kind(_in_dict, _bytes, _no_parts, _by_id, _write_dict),
    "WordLevel": Kind(_in_dict, _bytes, _no_parts, _by_id, _write_dict),
}
