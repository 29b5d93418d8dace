"""Fewer tokens, in every kind of tokenizer: a text whose tokens all stayed has the same ones, and no text is lost."""

import itertools
import re
from collections import Counter

import pytest
from tokenizers_zoo import KINDS, TEXTS
from transformers import AutoTokenizer, CLIPImageProcessorPil, LlavaProcessor

from trim_trainer.vocabulary.choice import choose_tokens
from trim_trainer.vocabulary.errors import VocabularyError
from trim_trainer.vocabulary.files import read_tokenizer, with_tokenizer, write_smaller

# Words and lines of all texts, each a text of its own: short ones, of which many keep all of their tokens.
PIECES = list(
    dict.fromkeys(itertools.chain(TEXTS, *(text.split() for text in TEXTS), *(text.split("\n") for text in TEXTS)))
)


@pytest.mark.parametrize("share", [0.6, 0.9])
@pytest.mark.parametrize("name", KINDS)
def test_texts_whose_tokens_stayed_have_the_same_and_no_text_is_lost(name, share, tmp_path):
    tokenizer = KINDS[name]()
    texts = TEXTS[:2]
    used = {each for ids in tokenizer(texts)["input_ids"] for each in ids}
    whole = read_tokenizer(tokenizer)
    choice = choose_tokens(whole, max(int(share * len(tokenizer)), _least(whole, used)), used)
    write_smaller(tokenizer, choice).save_pretrained(tmp_path)
    smaller = AutoTokenizer.from_pretrained(tmp_path)
    assert len(smaller) == len(choice.ids) < len(tokenizer)
    num_same = 0
    for text in PIECES:
        before, after = tokenizer(text)["input_ids"], smaller(text)["input_ids"]
        if choice.new_ids.keys() >= set(before):
            assert after == [choice.new_ids[each] for each in before], text
            num_same += 1
        if smaller.unk_token_id not in after or tokenizer.unk_token_id in before:
            assert smaller.decode(after) == tokenizer.decode(before), text
    assert num_same >= len(texts) + 10
    for token in ("bos_token", "eos_token", "pad_token", "unk_token"):
        old, new = (getattr(each, f"{token}_id") for each in (tokenizer, smaller))
        assert new == (None if old is None else choice.new_ids[old])


@pytest.mark.parametrize(
    "name", [name for name in KINDS if not name.startswith(("unigram", "t5", "wordpiece"))] + ["unigram_with_bytes"]
)
def test_with_bytes_every_text_comes_back(name):
    tokenizer = KINDS[name]()
    whole = read_tokenizer(tokenizer)
    smaller = write_smaller(tokenizer, choose_tokens(whole, _least(whole, set()), ()))
    for text in [*TEXTS, "Ω≈ç√∫˜µ≤ 한국어 ꙮ 𓀀"]:
        assert smaller.decode(smaller(text)["input_ids"]) == tokenizer.decode(tokenizer(text)["input_ids"])


def test_merges_of_what_stays_are_those_that_texts_need():
    tokenizer = KINDS["byte_level_bpe"]()
    whole = read_tokenizer(tokenizer)
    used = set(tokenizer("internationalization")["input_ids"])
    smaller = read_tokenizer(write_smaller(tokenizer, choose_tokens(whole, _least(whole, used), used)))
    vocab, merges = smaller["model"]["vocab"], smaller["model"]["merges"]
    assert all(one in vocab and other in vocab and one + other in vocab for one, other in merges)
    kept = iter(map(tuple, whole["model"]["merges"]))
    assert all(any(tuple(merge) == each for each in kept) for merge in merges)  # in the order that they had


def test_the_most_frequent_of_the_rest_are_those_that_are_counted():
    tokenizer = KINDS["byte_level_bpe"]()
    whole, num_least = read_tokenizer(tokenizer), _least(read_tokenizer(tokenizer), set())
    wanted = tokenizer("fibonacci")["input_ids"]
    without = choose_tokens(whole, num_least + 12, ())
    counted = choose_tokens(whole, num_least + 12, (), counts=Counter(wanted))
    assert not set(wanted) <= set(without.ids) and set(wanted) <= set(counted.ids)


def test_a_processor_keeps_what_it_was_made_with():
    tokenizer = KINDS["byte_level_bpe"]()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    options = {"patch_size": 14, "vision_feature_select_strategy": "full", "image_token": "<image>"}
    processor = LlavaProcessor(image_processor=CLIPImageProcessorPil(), tokenizer=tokenizer, **options)
    whole = read_tokenizer(tokenizer)
    choice = choose_tokens(whole, _least(whole, ()), ())
    smaller = with_tokenizer(processor, write_smaller(tokenizer, choice))
    assert (smaller.patch_size, smaller.vision_feature_select_strategy) == (14, "full")
    assert smaller.image_token_id == choice.new_ids[processor.image_token_id]


@pytest.mark.parametrize(
    ("num_tokens", "used", "words"),
    [
        (40, (), "`vocab_size` is 40, but special and added tokens, bytes and what the configs name are 259 tokens"),
        (666, (), "`vocab_size` is 666, but the tokenizer has 666 tokens: ask for fewer"),
        (260, range(400, 500), "ask for at least"),
    ],
)
def test_too_few_or_too_many_are_refused_with_the_way_out(num_tokens, used, words):
    with pytest.raises(VocabularyError, match=words):
        choose_tokens(read_tokenizer(KINDS["byte_level_bpe"]()), num_tokens, used)


def test_a_model_that_is_not_known_is_refused_by_name():
    with pytest.raises(VocabularyError, match="the tokenizer's model is 'Morphemes', expected one of BPE, Unigram"):
        choose_tokens({"model": {"type": "Morphemes", "vocab": {}}}, 10, ())


def _least(whole, used):
    """The fewest tokens that can stay, as the refusal of fewer says."""
    number = 1
    while True:
        try:
            return len(choose_tokens(whole, number, used).ids)
        except VocabularyError as error:
            number = max(map(int, re.findall(r"(?:are|at least) ([\d]+)", str(error).replace(",", ""))))
