"""A model and its tokenizer with fewer tokens: chosen, written, compared with what they were, and only then kept."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial

import jinja2
import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from ..causes import tell
from ..records.vocabulary import TextShare, VocabularyRecord, digest_ids
from .choice import Choice, choose_tokens
from .errors import VocabularyError
from .files import read_tokenizer, write_smaller
from .rows import base_of, check_rows, needed_ids, select_rows

Ids = Sequence[int]
Encode = Callable[[PreTrainedTokenizerBase], list[Ids]]  # the texts, by a tokenizer
NUM_COMPARED, MAX_LENGTH = 512, 128  # tokens on which logits are compared: of all texts, and of one
HELD_OUT = 10  # one text in so many of a corpus
_TOLERANCES = {torch.float32: 1e-4, torch.float64: 1e-4}  # of the largest logit
_ROUGH = 3e-2  # of types of less precision
# Turns of a conversation, by which the tokens of a chat template are found.
_TURNS = [{"role": "system", "content": ""}, {"role": "user", "content": ""}, {"role": "assistant", "content": ""}]


def trim_vocabulary(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    texts: Iterable[str],
    num_tokens: int,
    *,
    corpus: Iterable[str] = (),
) -> PreTrainedTokenizerBase:
    """Leave so many tokens to a model, in place, and return the tokenizer that goes with it.

    Tokens that the texts have stay, all special and added ones, those that the configs and the chat template name, all
    bytes, and what they are merged from; the most frequent of the rest fill what is left. Every text whose tokens all stayed
    is encoded as before, and the model gives the same logits for them. Other text is encoded in more tokens.

    Args:
        model: A causal LM, with a PEFT adapter or without.
        tokenizer: Its tokenizer, with a `tokenizer.json`: BPE, Unigram, WordPiece or WordLevel.
        texts: Of the domain.
        num_tokens: That stay, added ones included: the rows of embedding and head afterwards.
        corpus: Texts by which the most frequent are found; none: the tokenizer's own order says which they are.

    Raises:
        VocabularyError: fewer tokens than have to stay, a tokenizer or a model that is not known; nothing is changed then. Or
            a text is encoded in another way afterwards, or logits differ.
    """
    texts = list(texts)
    if not texts:
        raise VocabularyError(
            f"`vocab_size` is {num_tokens:,}, and there are no texts whose tokens could stay. Pass some."
        )
    seen = [Texts("the texts", partial(encode_plain, texts=texts))]
    return make_smaller(model, tokenizer, num_tokens, seen, list(corpus)).tokenizer


@dataclass(frozen=True)
class Texts:
    """Texts by a name, which a tokenizer turns into ids."""

    name: str
    encode: Encode


@dataclass(frozen=True)
class Smaller:
    """What `make_smaller` made: the tokenizer, the tokens that stayed, and what is to be recorded of them."""

    tokenizer: PreTrainedTokenizerBase
    choice: Choice
    record: VocabularyRecord


def make_smaller(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    num_tokens: int,
    texts: list[Texts],
    corpus: Sequence[str] = (),
    others: Sequence[Texts] = (),
) -> Smaller:
    """As `trim_vocabulary`.

    Args:
        model: As there.
        tokenizer: As there.
        num_tokens: As there.
        texts: Whose tokens stay.
        corpus: As there; every tenth text is left out of the counts, and says how such texts fare.
        others: Texts of which it is recorded how they fare.

    Raises:
        VocabularyError: see there.
    """
    whole = read_tokenizer(tokenizer)
    check_rows(model, len(tokenizer))
    by_field = needed_ids(model)
    _check_named(by_field, len(tokenizer))
    named = {each for ids in by_field.values() for each in ids} | _template_ids(tokenizer)
    before = [each.encode(tokenizer) for each in texts]
    used = _count(ids for encoded in before for ids in encoded)
    counted = [text for number, text in enumerate(corpus, start=1) if number % HELD_OUT]
    choice = choose_tokens(whole, num_tokens, used, named, _count(encode_plain(tokenizer, counted)) + used)
    made = write_smaller(tokenizer, choice)
    after = [each.encode(made) for each in texts]
    for each, old, new in zip(texts, before, after, strict=True):
        check_encoded(each.name, old, new, choice, made)
    seen = _some([ids for encoded in before for ids in encoded])
    expected, num_parameters = _logits(model, seen, choice.ids), base_of(model).num_parameters()
    select_rows(model, choice.ids)
    _check_logits(expected, _logits(model, [[choice.new_ids[each] for each in ids] for ids in seen], None))
    shares = [_share(each.name, old, new, choice) for each, old, new in zip(texts, before, after, strict=True)]
    if len(held_out := list(corpus[HELD_OUT - 1 :: HELD_OUT])) > 0:
        others = [*others, Texts("other texts", partial(encode_plain, texts=held_out))]
    shares += [_share(each.name, each.encode(tokenizer), each.encode(made), choice) for each in others]
    record = VocabularyRecord(
        choice.num_before, len(choice.ids), num_parameters, digest_ids(choice.ids), tuple(shares)
    )
    return Smaller(made, choice, record)


def encode_plain(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[Ids]:
    """Texts as ids, as they are."""
    return tokenizer(texts, verbose=False)["input_ids"] if texts else []


def _count(texts: Iterable[Ids]) -> Counter[int]:
    return Counter(each for ids in texts for each in ids)


def _share(name: str, before: list[Ids], after: list[Ids], choice: Choice) -> TextShare:
    num_kept = sum(each in choice.new_ids for ids in before for each in ids)
    return TextShare(name, len(before), sum(map(len, before)), num_kept, sum(map(len, after)))


def check_encoded(
    name: str, before: list[Ids], after: list[Ids], choice: Choice, tokenizer: PreTrainedTokenizerBase
) -> None:
    """Raise a VocabularyError unless each text has the tokens that it had, by their new numbers."""
    for number, (old, new) in enumerate(zip(before, after, strict=True)):
        if [choice.new_ids.get(each) for each in old] != list(new):
            raise VocabularyError(
                f"`vocab_size` cannot be {len(choice.ids):,}: text {number} of {name}, {tokenizer.decode(list(new))[:60]!r}, has other "
                f"tokens with the smaller vocabulary, {len(new)} in place of {len(old)}. Ask for more, or leave it out."
            )


def _check_named(by_field: dict[str, list[int]], num_tokens: int) -> None:
    for name, ids in by_field.items():
        if (beyond := max(ids)) >= num_tokens:
            raise VocabularyError(
                f"`vocab_size` cannot be changed: the model's config names token {beyond} in `{name}`, and the tokenizer has "
                f"{num_tokens:,}. Correct the config, or leave `vocab_size` out."
            )


def _template_ids(tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """Tokens that the chat template itself puts into each conversation, as far as it takes these turns."""
    if not getattr(tokenizer, "chat_template", None):
        return set()
    found = set()
    for turns in (_TURNS, _TURNS[1:], _TURNS[:2], _TURNS[1:2]):
        for prompts in (True, False):
            try:
                text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=prompts)
            except (jinja2.TemplateError, TypeError, ValueError, KeyError):  # it takes other turns
                continue
            found |= set(tokenizer(text, add_special_tokens=False)["input_ids"])
    return found


def _some(texts: list[Ids]) -> list[Ids]:
    """The first of the texts, cut where they become too many tokens."""
    found, left = [], NUM_COMPARED
    for ids in texts:
        if left > 0 and len(ids) > 0:
            found.append(list(ids[: min(left, MAX_LENGTH)]))
            left -= len(found[-1])
    return found


@torch.no_grad()
def _logits(model: nn.Module, texts: list[Ids], ids: tuple[int, ...] | None) -> list[torch.Tensor]:
    """Of each token of each text, (tokens, vocabulary), on the CPU; only of these ids, if there are any."""
    was_training, found = model.training, []
    model.eval()
    device = base_of(model).get_input_embeddings().weight.device
    for text in texts:
        try:
            logits = model(input_ids=torch.tensor([text], device=device)).logits[0]
        except (TypeError, ValueError) as error:
            raise VocabularyError(
                f"`vocab_size` cannot be changed: {type(base_of(model)).__name__} does not run on text alone ({tell(error)}), so "
                "it cannot be compared with what it was. Leave `vocab_size` out."
            ) from error
        found.append((logits if ids is None else logits[:, list(ids)]).cpu())
    model.train(was_training)
    return found


def _check_logits(before: list[torch.Tensor], after: list[torch.Tensor]) -> None:
    for one, other in zip(before, after, strict=True):
        allowed = _TOLERANCES.get(one.dtype, _ROUGH) * one.abs().max()
        if not (one - other).abs().max() <= allowed:
            raise VocabularyError(
                "`vocab_size` cannot be changed: the model gives other logits for the tokens that stayed, so that something "
                "in it counts tokens that is not known. Leave `vocab_size` out."
            )
