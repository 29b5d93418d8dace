"""A model with fewer tokens: the same logits for those that stayed, whatever holds a row for each."""

import copy

import pytest
import torch
import zoo
from peft import LoraConfig, get_peft_model
from tiny import make_model
from tokenizers_zoo import TEXTS, byte_level_bpe, sentencepiece_bpe
from transformers import AutoModelForCausalLM, AutoTokenizer

from trim_trainer import trim_vocabulary
from trim_trainer.vocabulary.errors import VocabularyError

WORDS = TEXTS[:3]
NUM_TOKENS = 500
LORA = {"r": 2, "task_type": "CAUSAL_LM", "init_lora_weights": False}
ADAPTERS = {
    "embedding and head": LoraConfig(**LORA, target_modules=["embed_tokens", "lm_head", "q_proj"]),
    "dora": LoraConfig(**LORA, target_modules=["lm_head", "v_proj"], use_dora=True),
    "trained whole": LoraConfig(**LORA, target_modules=["q_proj"], modules_to_save=["embed_tokens", "lm_head"]),
    "biases": LoraConfig(**LORA, target_modules=["lm_head"], lora_bias=True),
}


def model_for(tokenizer, model_type="llama", **options):
    ids = {"bos_token_id": 0, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    return make_model(model_type, vocab_size=len(tokenizer), **ids | options)


def check_same(before, after, tokenizer, smaller, texts=WORDS):
    """Logits of the tokens that stayed are those of the whole model, in a plain forward pass each."""
    vocab, left = tokenizer.get_vocab(), smaller.get_vocab()
    old = [vocab[token] for token, _ in sorted(left.items(), key=lambda item: item[1])]
    for text in texts:
        ids = torch.tensor([tokenizer(text)["input_ids"]])
        new = torch.tensor([smaller(text)["input_ids"]])
        with torch.no_grad():
            expected, found = before(input_ids=ids).logits[..., old], after(input_ids=new).logits
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("is_tied", [True, False])
@pytest.mark.parametrize("model_type", ["llama", "gpt2", "gemma3_text", "qwen3"])
def test_logits_are_the_same_and_the_checkpoint_loads(model_type, is_tied, tmp_path):
    tokenizer = byte_level_bpe()
    model = model_for(tokenizer, model_type, tie_word_embeddings=is_tied)
    whole = copy.deepcopy(model)
    smaller = trim_vocabulary(model, tokenizer, WORDS, NUM_TOKENS)
    check_same(whole, model, tokenizer, smaller)
    assert len(tokenizer) == 666  # as it was
    model.save_pretrained(tmp_path)
    smaller.save_pretrained(tmp_path)
    loaded, tokens = AutoModelForCausalLM.from_pretrained(tmp_path).eval(), AutoTokenizer.from_pretrained(tmp_path)
    check_same(whole, loaded, tokenizer, tokens)
    assert loaded.config.vocab_size == loaded.get_output_embeddings().weight.shape[0] == len(tokens) == NUM_TOKENS
    assert (loaded.get_output_embeddings().weight is loaded.get_input_embeddings().weight) == is_tied
    for named in (loaded.config, loaded.generation_config):
        assert named.eos_token_id == tokens.eos_token_id and named.pad_token_id == tokens.pad_token_id
    prompt = torch.tensor([tokens("The patient")["input_ids"]])
    again = torch.tensor([tokenizer("The patient")["input_ids"]])
    made = loaded.generate(prompt, max_new_tokens=4, do_sample=False)
    assert made.shape[1] <= prompt.shape[1] + 4 and again.shape == prompt.shape


@pytest.mark.parametrize("name", ADAPTERS)
def test_adapters_on_embedding_and_head_keep_their_rows(name):
    tokenizer = byte_level_bpe()
    torch.manual_seed(0)
    model = get_peft_model(model_for(tokenizer, tie_word_embeddings=False), ADAPTERS[name]).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    whole = copy.deepcopy(model)
    trains = {each for each, parameter in model.named_parameters() if parameter.requires_grad}
    smaller = trim_vocabulary(model, tokenizer, WORDS, NUM_TOKENS)
    check_same(whole, model, tokenizer, smaller)
    assert trains == {each for each, parameter in model.named_parameters() if parameter.requires_grad}
    assert not any(len(tokenizer) in tensor.shape for tensor in model.state_dict().values())
    if name == "biases":  # PEFT cannot merge one into a layer without
        return
    merged = model.merge_and_unload()
    check_same(whole, merged, tokenizer, smaller)


def test_rows_that_stand_for_no_token_go():
    tokenizer = byte_level_bpe()
    model = model_for(tokenizer)
    model.resize_token_embeddings(704, mean_resizing=False)
    whole = copy.deepcopy(model)
    check_same(whole, model, tokenizer, trim_vocabulary(model, tokenizer, WORDS, NUM_TOKENS))
    assert model.config.vocab_size == NUM_TOKENS


def test_image_token_of_a_composite_model_is_renumbered():
    tokenizer = byte_level_bpe()
    model = zoo.make("gemma3")
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    for part in (model.config, model.config.text_config, model.generation_config):
        part.bos_token_id, part.eos_token_id, part.pad_token_id = 0, 0, 0
    model.config.image_token_id, model.config.boi_token_index, model.config.eoi_token_index = 664, 665, 0
    smaller = trim_vocabulary(model, tokenizer, WORDS, NUM_TOKENS)
    assert model.config.image_token_id == smaller.get_vocab()["<|user|>"] == NUM_TOKENS - 2
    assert model.config.boi_token_index == NUM_TOKENS - 1 and model.config.text_config.vocab_size == NUM_TOKENS


def test_tokens_with_a_bias_are_renumbered():
    tokenizer = byte_level_bpe()
    model = model_for(tokenizer)
    first, last = tokenizer.convert_ids_to_tokens([300, 600])
    model.generation_config.sequence_bias = [[[300, 600], 10.0]]
    model.generation_config.bad_words_ids = [[600]]
    vocabulary = trim_vocabulary(model, tokenizer, WORDS, NUM_TOKENS).get_vocab()
    assert model.generation_config.sequence_bias == [[[vocabulary[first], vocabulary[last]], 10.0]]
    assert model.generation_config.bad_words_ids == [[vocabulary[last]]]


def test_tokens_of_the_chat_template_stay():
    tokenizer = byte_level_bpe()
    model = model_for(tokenizer)
    ids = tokenizer("user turn", add_special_tokens=False)["input_ids"]
    smaller = trim_vocabulary(model, tokenizer, WORDS[:1], NUM_TOKENS)
    assert len(smaller("user turn", add_special_tokens=False)["input_ids"]) == len(ids)


def test_a_corpus_says_what_is_frequent():
    tokenizer = byte_level_bpe()
    corpus = ["Der Vertrag kann von beiden Parteien gekündigt werden"] * 40
    sizes = []
    for named in ([], corpus):
        smaller = trim_vocabulary(model_for(tokenizer), tokenizer, WORDS[:1], 460, corpus=named)
        sizes.append(len(smaller(corpus[0])["input_ids"]))
    assert sizes[1] == len(tokenizer(corpus[0])["input_ids"]) < sizes[0]


def broken(model):
    """A head that answers by a token's number."""
    head = model.get_output_embeddings()
    head.register_forward_hook(lambda module, args, output: output + torch.arange(output.shape[-1]))


def with_counts(model):
    model.config.vocab_size_per_layer_input = 640


def with_other_eos(model):
    model.config.eos_token_id = 700


def with_short_embedding(model):
    model.resize_token_embeddings(600, mean_resizing=False)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (broken, "the model gives other logits for the tokens that stayed"),
        (with_counts, "`vocab_size_per_layer_input` 640 beside the 666 rows"),
        (with_other_eos, "names token 700 in `eos_token_id`, and the tokenizer has 666"),
        (with_short_embedding, "the tokenizer has 666 tokens, the model 600 rows"),
    ],
)
def test_what_counts_tokens_in_a_way_that_is_not_known_is_refused(spoil, words):
    tokenizer = byte_level_bpe()
    model = model_for(tokenizer, num_layers=2)
    spoil(model)
    with pytest.raises(VocabularyError, match=words):
        trim_vocabulary(model, tokenizer, WORDS, NUM_TOKENS)


def test_single_trained_tokens_are_refused():
    tokenizer = byte_level_bpe()
    model = get_peft_model(
        model_for(tokenizer), LoraConfig(**LORA, target_modules=["q_proj"], trainable_token_indices=[3])
    )
    with pytest.raises(VocabularyError, match="trainable_token_indices"):
        trim_vocabulary(model, tokenizer, WORDS, NUM_TOKENS)


def test_no_texts_are_refused():
    tokenizer = sentencepiece_bpe()
    with pytest.raises(VocabularyError, match="no texts"):
        trim_vocabulary(model_for(tokenizer), tokenizer, [], NUM_TOKENS)


def test_a_tokenizer_without_a_file_is_refused():
    class Slow:
        def __len__(self):
            return 100

    with pytest.raises(VocabularyError, match="Slow has no `tokenizer.json`"):
        trim_vocabulary(make_model(), Slow(), ["a"], 10)
