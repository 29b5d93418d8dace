import copy
import json

import pytest
import torch
from conftest import CONFIGS, FULL, NUM_LAYERS, SLIDING, make_model
from torch.testing import assert_close
from transformers import AutoModelForCausalLM, BertConfig, BertLMHeadModel, T5Config, T5ForConditionalGeneration

from trim_trainer import drop_layers
from trim_trainer.architectures import ARCHITECTURES, UnsupportedArchitectureError, find_layers
from trim_trainer.surgery import LayerBackup, SurgeryError

DROP_SETS = [[1, 4], [0, 5], [2, 3]]
IDS = torch.arange(3, 29).view(2, 13)


@torch.no_grad()
def logits(model):
    return model(IDS, use_cache=False).logits


@torch.no_grad()
def greedy(model, use_cache=True):
    options = {"attention_mask": torch.ones_like(IDS), "do_sample": False, "min_new_tokens": 8, "max_new_tokens": 8}
    return model.generate(IDS, use_cache=use_cache, pad_token_id=0, **options)


def with_layers_skipped(model, layers):
    """The untouched model, in which some layers return what they are given: the truth that does not need surgery."""
    model = copy.deepcopy(model)
    for number in layers:
        model_layer = find_layers(model)[number]
        model_layer.forward = lambda hidden, *args, **kwargs: hidden
    return model


def test_every_architecture_has_a_tiny_model():
    assert set(CONFIGS) == set(ARCHITECTURES)


@pytest.mark.parametrize("layers", DROP_SETS, ids=str)
@pytest.mark.parametrize("model_type", CONFIGS)
def test_trimmed_equals_skipped_equals_reloaded(model_type, layers, tiny_model, tmp_path):
    model = tiny_model(model_type)
    expected = logits(with_layers_skipped(model, layers))
    assert drop_layers(model, layers) is model
    assert_close(logits(model), expected)

    model.save_pretrained(tmp_path)
    loaded, info = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info[name] for name in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert loaded.config.num_hidden_layers == len(find_layers(loaded)) == NUM_LAYERS - len(layers)
    assert_close(logits(loaded), expected)


@pytest.mark.parametrize("model_type", CONFIGS)
def test_generate_with_cache_works_right_after_a_drop_and_reloaded(model_type, tiny_model, tmp_path):
    model = tiny_model(model_type)
    greedy(model)  # a cache was used before the drop
    drop_layers(model, [0, 3])
    expected = greedy(model, use_cache=False)
    assert torch.equal(greedy(model), expected)
    model.save_pretrained(tmp_path)
    assert torch.equal(greedy(AutoModelForCausalLM.from_pretrained(tmp_path)), expected)


def test_two_drops_equal_one(tiny_model):
    one, two = tiny_model("gemma3_text"), tiny_model("gemma3_text")
    drop_layers(drop_layers(one, [1]), [3])  # 3 of the five that are left is 4 of the six
    drop_layers(two, [1, 4])
    assert torch.equal(logits(one), logits(two))
    assert one.config.to_dict() == two.config.to_dict()


def test_lists_are_selected_from_and_not_cut(tiny_model, tmp_path):
    model = tiny_model("gemma3_text")
    drop_layers(model, [0, 3]).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["layer_types"] == [FULL, SLIDING, FULL, FULL]
    assert "sliding_window_pattern" not in config

    model = tiny_model("smollm3")
    assert drop_layers(model, [0, 1]).config.no_rope_layers == [0, 1, 1, 0]
    model = tiny_model("qwen2")
    assert drop_layers(model, [0, 5]).config.max_window_layers == 2


def test_a_tied_head_stays_tied(tmp_path):
    model = make_model("llama", tie_word_embeddings=True)
    drop_layers(model, [2]).save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight
    assert torch.equal(logits(loaded), logits(model))


@pytest.mark.parametrize(
    ("layers", "message"),
    [([6], "from 0 to 5"), ([-1], "from 0 to 5"), ([1, 1], "once"), (list(range(6)), "at least one has to stay")],
)
def test_wrong_layer_numbers_are_refused(layers, message, tiny_model):
    model = tiny_model()
    with pytest.raises(ValueError, match=message):
        drop_layers(model, layers)
    assert len(find_layers(model)) == NUM_LAYERS


def test_what_cannot_be_trimmed_is_refused_with_the_reason():
    inverse = make_model("gpt2", scale_attn_by_inverse_layer_idx=True)
    with pytest.raises(UnsupportedArchitectureError, match="scale_attn_by_inverse_layer_idx.*layer's number"):
        drop_layers(inverse, [1])
    t5 = T5ForConditionalGeneration(T5Config(d_model=16, d_ff=16, num_layers=2, num_heads=2, vocab_size=32))
    with pytest.raises(UnsupportedArchitectureError, match="encoder-decoder"):
        drop_layers(t5, [1])
    bert = BertLMHeadModel(BertConfig(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, vocab_size=32))
    with pytest.raises(UnsupportedArchitectureError, match="'bert'.*llama"):
        drop_layers(bert, [1])


def test_nothing_changes_when_the_config_cannot_say_what_is_left(tiny_model):
    model = tiny_model()
    find_layers(model)[3].extra = torch.nn.Linear(2, 2)  # no config describes this tensor
    before, config = logits(model), model.config.to_dict()
    with pytest.raises(SurgeryError, match="extra.weight.*Nothing was changed"):
        drop_layers(model, [1])
    assert torch.equal(logits(model), before)
    assert model.config.to_dict() == config


@pytest.mark.parametrize("model_type", ["gemma3_text", "gpt2"])
def test_a_backup_brings_dropped_layers_back(model_type, tiny_model):
    model = tiny_model(model_type)
    before, config = logits(model), model.config.to_dict()
    backup = LayerBackup(model)
    drop_layers(drop_layers(model, [1, 4]), [0])
    backup.restore(model)
    assert torch.equal(logits(model), before)
    assert model.config.to_dict() == config
    assert torch.equal(greedy(model), greedy(model, use_cache=False))
