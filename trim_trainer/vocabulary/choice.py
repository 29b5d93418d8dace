"""Which tokens stay: those that texts use, all special and added ones, all bytes, and the most frequent of the rest."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from .errors import VocabularyError
from .kinds import find_kind, has_bytes, is_byte_level, is_character, marks


@dataclass(frozen=True)
class Choice:
    """The tokens that stay.

    Attributes:
        ids: That they had, in their new order.
        num_before: Tokens of the tokenizer before.
    """

    ids: tuple[int, ...]
    num_before: int
    new_ids: dict[int, int] = field(init=False, repr=False)

    def __post_init__(self):
        object.__setattr__(self, "new_ids", {old: new for new, old in enumerate(self.ids)})


def choose_tokens(
    tokenizer: dict[str, Any],
    num_tokens: int,
    used: Iterable[int],
    needed: Iterable[int] = (),
    counts: Counter[int] | None = None,
) -> Choice:
    """Choose so many tokens of a tokenizer.

    Whatever stays, its parts stay: tokens that are merged have what they are merged from. New numbers follow the old ones;
    added tokens that are none of the model's come behind its own, where the tokenizers library puts them.

    Args:
        tokenizer: Its `tokenizer.json`.
        num_tokens: That stay, added ones included.
        used: Ids that texts have; they stay.
        needed: Ids that configs and chat templates name; they stay too.
        counts: How often each id comes up in texts like those to come: the most frequent fill what is left, and then
            the others in the tokenizer's own order.

    Raises:
        VocabularyError: fewer tokens than have to stay, or not fewer than there are.
    """
    model, byte_level = tokenizer["model"], is_byte_level(tokenizer)
    kind = find_kind(model)
    of_model = kind.tokens(model)
    added = {each["content"]: each["id"] for each in tokenizer.get("added_tokens") or ()}
    tokens = {number: token for token, number in (of_model | added).items()}
    if num_tokens >= len(tokens):
        raise VocabularyError(
            f"`vocab_size` is {num_tokens:,}, but the tokenizer has {len(tokens):,} tokens: ask for fewer, or leave it out."
        )
    parts = kind.parts(model)

    def with_parts(ids: Iterable[int]) -> set[int]:
        found = set(ids)
        for number in list(found):
            if tokens[number] in of_model:
                found |= {of_model[part] for part in parts(tokens[number]) or ()}
        return found

    own = kind.needed(model, byte_level) | marks(tokenizer)
    always = with_parts({*added.values(), *needed, *(of_model[each] for each in own if each in of_model)})
    if len(always) > num_tokens:
        raise VocabularyError(
            f"`vocab_size` is {num_tokens:,}, but special and added tokens{', bytes' if has_bytes(model, byte_level) else ''} "
            f"and what the configs name are {len(always):,} tokens: ask for at least as many."
        )
    kept = always | with_parts(used)
    if len(kept) > num_tokens:
        raise VocabularyError(
            f"`vocab_size` is {num_tokens:,}, but the texts have {len(kept) - len(always):,} tokens, and {len(always):,} stay "
            f"in any case: ask for at least {len(kept):,}, such as {_rounded(len(kept)):,}."
        )
    rank, counts = kind.rank(model), counts or Counter()
    comes_first = {} if has_bytes(model, byte_level) else {token for token in of_model if is_character(token, model)}
    order = sorted(of_model, key=lambda token: (token not in comes_first, -counts[of_model[token]], rank(token)))
    for token in order:
        if len(kept) == num_tokens:
            break
        made_of = parts(token)
        more = {of_model[part] for part in made_of or ()} - kept
        if made_of is not None and len(kept) + len(more) <= num_tokens:
            kept |= more
    of_ids = set(of_model.values())
    return Choice(tuple(sorted(kept, key=lambda number: (number not in of_ids, number))), len(tokens))


def _rounded(number: int, step: int = 1024) -> int:
    return -(-number // step) * step
