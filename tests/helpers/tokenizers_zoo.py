"""Tokenizers of each kind that Transformers loads, trained here on texts in several scripts."""

import json

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    BertTokenizer,
    GPT2Tokenizer,
    LlamaTokenizer,
    PreTrainedTokenizerFast,
    T5Tokenizer,
)

TEXTS = [
    "The patient was given 40 mg of furosemide, and improved.",
    "the company's profit rose by 12.5 % to EUR 3.1 million in the third quarter",
    "def fibonacci(n):\n    if n < 2:\n        return n\n    return fibonacci(n - 1) + fibonacci(n - 2)\n",
    "Der Vertrag kann von beiden Parteien gekündigt werden – spätestens am 30. Juni.",
    "Привет, мир! Как дела? Всё хорошо.",
    "今天天气很好，我们去公园散步吧。東京は日本の首都です。",
    "مرحبا بالعالم، كيف حالك؟",
    "नमस्ते दुनिया, आप कैसे हैं?",
    "smile 🙂 family 👨‍👩‍👧 flag 🇫🇷 café naïve e\u0301",
    "  two  spaces,\ttabs\t\tand\n\nblank lines  ",
    "unbelievable, internationalization, tokenization; antidisestablishmentarianism",
]
SPECIAL = ["<unk>", "<s>", "</s>", "<pad>"]
_BYTES = [f"<0x{number:02X}>" for number in range(256)]


def byte_level_bpe():
    """As GPT-2, Llama 3, Qwen and SmolLM2."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=700, special_tokens=["<|endoftext|>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    backend.train_from_iterator(TEXTS * 3, trainer)
    backend.add_special_tokens([AddedToken("<|user|>", special=True), AddedToken("<|bot|>", special=True)])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<|endoftext|>", pad_token="<|endoftext|>",
        chat_template="{% for m in messages %}<|user|>{{ m['content'] }}\nuser turn{% endfor %}<|bot|>",
    )  # fmt: skip


def whole_words_first_bpe():
    """As Llama 3: a word that is a token is not put together."""
    made = byte_level_bpe()
    made.backend_tokenizer.model.ignore_merges = True
    return made


def gpt2():
    """In its own class, which puts its backend together by itself."""
    made = byte_level_bpe()
    vocab, merges = made.backend_tokenizer.get_vocab(with_added_tokens=False), _merges(made)
    return GPT2Tokenizer(vocab=vocab, merges=merges, unk_token="<|endoftext|>")


def _merges(tokenizer):
    return [tuple(pair) for pair in json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]]


def _sentencepiece_bpe():
    backend = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    trainer = trainers.BpeTrainer(vocab_size=900, special_tokens=[*SPECIAL, *_BYTES], limit_alphabet=120)
    backend.train_from_iterator(TEXTS * 3, trainer)
    plain = json.loads(backend.to_str())
    plain["added_tokens"] = plain["added_tokens"][: len(SPECIAL)]  # bytes are tokens of the model
    backend = Tokenizer.from_str(json.dumps(plain))
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)]
    )
    return backend


def sentencepiece_bpe():
    """As Llama 2, Mistral and Gemma: what has no token is written in bytes."""
    return PreTrainedTokenizerFast(
        tokenizer_object=_sentencepiece_bpe(), unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )


def llama2():
    """In its own class."""
    model = json.loads(_sentencepiece_bpe().to_str())["model"]
    return LlamaTokenizer(vocab=model["vocab"], merges=[tuple(pair) for pair in model["merges"]])


def _unigram(special=SPECIAL):
    backend = Tokenizer(models.Unigram())
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=500, special_tokens=special, unk_token="<unk>", show_progress=False)
    backend.train_from_iterator(TEXTS * 3, trainer)
    backend.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", special.index("</s>"))]
    )
    return backend


def unigram():
    """As XLM-R."""
    return PreTrainedTokenizerFast(
        tokenizer_object=_unigram(), unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )


def unigram_with_bytes():
    """As some SentencePiece models: what has no piece is written in bytes."""
    plain = json.loads(_unigram().to_str())
    lowest = min(score for _, score in plain["model"]["vocab"])
    plain["model"]["vocab"] += [[byte, lowest - 1] for byte in _BYTES]
    plain["model"]["byte_fallback"] = True
    backend = Tokenizer.from_str(json.dumps(plain))
    backend.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", eos_token="</s>", pad_token="<pad>")


def t5():
    """In its own class, which has the number of the unknown token in its code."""
    model = json.loads(_unigram(["<pad>", "</s>", "<unk>"]).to_str())["model"]
    return T5Tokenizer(vocab=[tuple(piece) for piece in model["vocab"]], extra_ids=4)


def wordpiece():
    """As BERT."""
    backend = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=False)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    backend.train_from_iterator(TEXTS * 3, trainers.WordPieceTrainer(vocab_size=600, special_tokens=special))
    return BertTokenizer(vocab=backend.get_vocab(), do_lower_case=False)


KINDS = {
    each.__name__: each
    for each in (
        byte_level_bpe, whole_words_first_bpe, gpt2, sentencepiece_bpe, llama2, unigram, unigram_with_bytes, t5, wordpiece,
    )
}  # fmt: skip
