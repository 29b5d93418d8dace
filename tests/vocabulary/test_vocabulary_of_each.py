"""Every architecture: with fewer tokens it gives the same logits for those that stayed, reloaded too, or is refused by name."""

import copy
import tempfile

import pytest
import torch
import zoo
from sweep import AUTO, TOLERANCE, WIDE_TOLERANCE, facts
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from trim_trainer import trim_vocabulary
from trim_trainer.vocabulary.errors import VocabularyError
from trim_trainer.vocabulary.token_ids import ids_in, renumber

QUICK = ("llama", "gpt2", "mixtral", "gemma3n_text", "gemma3_text")
# Why a model cannot: the words of the refusal.
REFUSED = {
    "gemma3n_text": "`vocab_size_per_layer_input`",
    "gemma3n": "`vocab_size_per_layer_input`",
    "gemma4": "`vocab_size_per_layer_input`",
    "gemma4_text": "`vocab_size_per_layer_input`",
    "blt": "`encoder_hash_byte_group_vocab`",
    "cpmant": "rows in its embedding and",
    "deepseek_v4": "gate.tid2eid` does not follow",
    "inkling2_text": "`unpadded_vocab_size`",
    "inkling_text": "`unpadded_vocab_size`",
    "inkling2": "`unpadded_vocab_size`",
    "inkling_mm_model": "`unpadded_vocab_size`",
    "qwen4_exp": "`ngram_vocab_size_base`",
    "qwen4_exp_text": "`ngram_vocab_size_base`",
    "reformer": "`lm_head.bias` does not follow",
    "marian": "`decoder_vocab_size`",
    "mllama": "rows in its embedding and",
    "moshi": "rows in its embedding and",
    "molmo2": "rows in its embedding and",
    "blip": "`text_decoder.cls.predictions.bias` does not follow",
    "blip-2": "does not run on text alone",
    "kosmos-2": "does not run on text alone",
    "chameleon": "`num_embeddings`",
    "janus": "`num_embeddings`",
    "diffusion_gemma": "gives other logits",
    "idefics": "`additional_vocab_size`",
    "instructblip": "`qformer.embeddings.word_embeddings.weight` does not follow",
    "instructblipvideo": "`qformer.embeddings.word_embeddings.weight` does not follow",
    "nemotron_h_omni": "does not follow",
    "roc_bert": "`pronunciation_vocab_size`",
    "ovis2": "`model.vision_tower.head_linear.weight` does not follow",
}
NAMES = [(kind, name) for kind, names in (("causal", zoo.CAUSAL), ("image-text", zoo.IMAGE_TEXT)) for name in names]


def make_tokenizer(num_tokens):
    backend = Tokenizer(models.WordLevel({f"t{number}": number for number in range(num_tokens)}, unk_token="t0"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="t0")


def shrink_ids(model):
    """Ids of tokens in the configs, which are those of the published models, become some that the tiny one has."""
    num_tokens = model.get_input_embeddings().weight.shape[0]
    for config in (model.config, model.generation_config):
        ids = {each for named in ids_in(config).values() for each in named}
        renumber(config, {each: each % num_tokens for each in ids})


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        pytest.param(*each, marks=[] if each[1] in QUICK else [pytest.mark.slow], id=each[1])
        for each in NAMES
        if each[1].partition("@")[0] not in zoo.UNBUILT
    ],
)
def test_the_same_logits_or_a_refusal_by_name(kind, name):
    model = zoo.make(name, AUTO[kind])
    shrink_ids(model)
    inputs = zoo.make_inputs(model, name)
    whole = copy.deepcopy(model)
    tokenizer = make_tokenizer(model.get_input_embeddings().weight.shape[0])
    words = [" ".join(f"t{number}" for number in ids) for ids in inputs["input_ids"].tolist()]
    try:
        smaller = trim_vocabulary(model, tokenizer, words, 3 * len(tokenizer) // 4)
    except VocabularyError as error:
        assert REFUSED.get(name.partition("@")[0], "?") in str(error)
        return
    assert name.partition("@")[0] not in REFUSED
    old = [int(token[1:]) for token, _ in sorted(smaller.get_vocab().items(), key=lambda item: item[1])]
    new_inputs = inputs | {"input_ids": smaller(words, return_tensors="pt")["input_ids"]}
    expected, tolerance = zoo.logits(whole, inputs)[..., old], WIDE_TOLERANCE.get(name, TOLERANCE)
    assert (zoo.logits(model, new_inputs) - expected).abs().max() <= tolerance
    if name not in facts(kind).UNSOUND:
        with tempfile.TemporaryDirectory() as folder:
            model.save_pretrained(folder)
            loaded = AUTO[kind].from_pretrained(folder).eval()
        assert loaded.get_input_embeddings().weight.shape[0] == len(smaller) < len(tokenizer)
        assert (zoo.logits(loaded, new_inputs) - expected).abs().max() <= tolerance
    assert torch.isfinite(expected).all()
