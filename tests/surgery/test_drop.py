import copy
import json

import pytest
import torch
import zoo
from peft import LoraConfig, PeftModel, get_peft_model
from tiny import FULL, NUM_LAYERS, SLIDING, make_model
from torch.testing import assert_close
from transformers import AutoModelForCausalLM, T5Config, T5ForConditionalGeneration, ViTConfig, ViTModel

from trim_trainer import drop_layers, droppable_layers
from trim_trainer.architectures.errors import LayerConstraintError, UnsupportedArchitectureError
from trim_trainer.architectures.kept import Kept
from trim_trainer.architectures.modules import find_layers
from trim_trainer.architectures.table import ARCHITECTURES
from trim_trainer.surgery.backup import LayerBackup
from trim_trainer.surgery.drop import SurgeryError, trimmed_config

IDS = torch.arange(3, 29).view(2, 13)


@torch.no_grad()
def logits(model):
    return model(IDS, use_cache=False).logits


@torch.no_grad()
def greedy(model, use_cache=True):
    options = {"attention_mask": torch.ones_like(IDS), "do_sample": False, "min_new_tokens": 8, "max_new_tokens": 8}
    return model.generate(IDS, use_cache=use_cache, pad_token_id=0, **options)


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
    cross = make_model("gpt2", add_cross_attention=True)
    with pytest.raises(UnsupportedArchitectureError, match="add_cross_attention.*half of an encoder-decoder"):
        drop_layers(cross, [1])
    t5 = T5ForConditionalGeneration(T5Config(d_model=16, d_ff=16, num_layers=2, num_heads=2, vocab_size=32))
    with pytest.raises(UnsupportedArchitectureError, match="'t5'.*encoder-decoder"):
        drop_layers(t5, [1])
    vit = ViTModel(ViTConfig(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=8, patch_size=4))
    with pytest.raises(UnsupportedArchitectureError, match="'vit'.*AutoModelForCausalLM.*would not load"):
        drop_layers(vit, [1])


def test_layers_that_others_need_are_refused_by_number_and_reason():
    model = zoo.make("gemma4_text")
    with pytest.raises(
        LayerConstraintError, match=r"layers 2, 3 of this 'gemma4_text' model: layer \d reads the keys"
    ):
        drop_layers(model, [2, 3])
    droppable = droppable_layers(model)
    assert droppable == droppable_layers(model.config)
    assert 2 not in droppable and 5 not in droppable  # it stores keys and values; the last one has to attend fully
    assert droppable_layers(model, droppable[:1]) == droppable[1:]
    hybrid = zoo.make("lfm2")
    attending = [layer for layer, kind in enumerate(hybrid.config.layer_types) if kind == FULL]
    *others, last = attending
    assert last in droppable_layers(hybrid) and last not in droppable_layers(hybrid, others)
    with pytest.raises(LayerConstraintError, match=f"keep one of {', '.join(map(str, attending))}"):
        drop_layers(hybrid, attending)


def test_a_hybrid_keeps_both_of_its_kinds_where_its_config_wants_both():
    model = zoo.make("olmo_hybrid")
    linear = [layer for layer, kind in enumerate(model.config.layer_types) if kind == "linear_attention"]
    *others, last = linear
    assert last in droppable_layers(model) and last not in droppable_layers(model, others)
    with pytest.raises(LayerConstraintError, match="one `linear_attention` layer has to stay"):
        drop_layers(model, linear)


def test_the_last_layer_stays(tiny_model):
    assert droppable_layers(tiny_model(), [0, 1, 2, 4, 5]) == ()


def test_a_constant_that_depends_on_the_number_is_noticed_without_a_row(monkeypatch):
    """DiffLlama without its row: names and shapes agree, but each layer would subtract another share of attention."""
    model = zoo.make("diffllama")
    monkeypatch.delitem(ARCHITECTURES, "diffllama")
    before = logits(model)
    with pytest.raises(SurgeryError, match="self_attn.lambda_init depends on the layer's number"):
        drop_layers(model, [1])
    assert torch.equal(logits(model), before)


def test_an_unknown_list_with_an_entry_per_layer_is_refused(tiny_model):
    model = tiny_model()
    model.config.window_of_layer = [4, 8, 4, 8, 4, 8]
    with pytest.raises(LayerConstraintError, match="`window_of_layer` has an entry per layer and is not known"):
        drop_layers(model, [1])


@pytest.mark.parametrize(
    ("name", "stale"),
    [
        ("gemma3_text@pattern", ("sliding_window_pattern", "_sliding_window_pattern")),
        ("exaone4@pattern", ("sliding_window_pattern",)),
        ("llama4_text@interval", ("interleave_moe_layer_step", "no_rope_layer_interval")),
        ("qwen3_next@interval", ("full_attention_interval",)),
        ("modernbert-decoder@interval", ("global_attn_every_n_layers",)),
        ("glm_moe_dsa@pattern", ("index_topk_pattern",)),
        ("zamba@period", ("attn_layer_period", "attn_layer_offset")),
        ("nemotron_h@pattern", ("hybrid_override_pattern",)),
    ],
)
def test_legacy_fields_that_a_list_overrides_are_not_written(name, stale, tmp_path):
    model = zoo.make(name)
    drop_layers(model, droppable_layers(model)[1:2]).save_pretrained(tmp_path)
    assert not set(stale) & set(json.loads((tmp_path / "config.json").read_text()))


def test_kimi_counts_its_layers_from_one(tmp_path):
    model = zoo.make("kimi_linear@legacy")
    before = model.config.linear_attn_config
    drop_layers(model, [1, 4]).save_pretrained(tmp_path)
    after = json.loads((tmp_path / "config.json").read_text())["linear_attn_config"]
    new_number = {1: 1, 3: 2, 4: 3, 6: 4}
    for name in ("full_attn_layers", "kda_layers"):
        assert after[name] == [new_number[layer] for layer in before[name] if layer in new_number]


def test_layer_numbers_in_a_quantization_config_follow():
    model = make_model("llama")
    model.config.quantization_config = {
        "quant_method": "compressed-tensors",
        "ignore": ["lm_head", "model.layers.0.mlp", "model.layers.3.self_attn.q_proj", "model.layers.5.mlp.up_proj"],
        "config_groups": {"group_0": {"targets": ["model.layers.1.mlp.down_proj", "Linear"], "num_bits": 4}},
        "modules_to_not_convert": ["model.vision_tower.layers.1.mlp", "model.layers.1"],
    }
    drop_layers(model, [1, 4])
    assert model.config.quantization_config == {
        "quant_method": "compressed-tensors",
        "ignore": ["lm_head", "model.layers.0.mlp", "model.layers.2.self_attn.q_proj", "model.layers.3.mlp.up_proj"],
        "config_groups": {"group_0": {"targets": ["Linear"], "num_bits": 4}},
        "modules_to_not_convert": ["model.vision_tower.layers.1.mlp"],
    }


def test_adapters_of_dropped_layers_go_and_the_others_are_renumbered(tiny_model, tmp_path):
    base = tiny_model("qwen3")
    config = LoraConfig(
        r=4,
        target_modules=["q_proj", "v_proj"],
        layers_to_transform=[0, 1, 3, 5],
        rank_pattern={"model.layers.3.self_attn.q_proj": 2, "model.layers.1.self_attn.q_proj": 3},
        init_lora_weights=False,
    )
    model = get_peft_model(base, config).eval()
    expected = copy.deepcopy(model).merge_and_unload()
    drop_layers(expected, [1, 4])
    assert drop_layers(model, [1, 4]) is model
    assert_close(logits(model), logits(expected))
    adapter = model.peft_config["default"]
    assert adapter.layers_to_transform == [0, 2, 3]
    assert adapter.rank_pattern == {"model.layers.2.self_attn.q_proj": 2}

    model.save_pretrained(tmp_path / "adapter")
    model.unload().save_pretrained(tmp_path / "base")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    loaded = PeftModel.from_pretrained(loaded, tmp_path / "adapter").eval()
    assert_close(logits(loaded), logits(expected))


def test_weights_are_not_edited_under_an_adapter():
    model = get_peft_model(zoo.make("gpt2@inv_idx"), LoraConfig(target_modules=["c_attn"]))
    with pytest.raises(LayerConstraintError, match="c_attn.*adapter.*Merge"):
        drop_layers(model, [1])


def test_image_features_keep_their_layers():
    config = zoo.make_config("granite4_vision")
    config.deepstack_layer_map, config.spatial_target_layers = [[0, 1], [1, 4]], [2]
    assert droppable_layers(config) == (0, 3, 5)
    trimmed = trimmed_config(config, Kept((1, 2, 4, 5), 6))
    assert [list(pair) for pair in trimmed.deepstack_layer_map] == [[0, 0], [1, 2]]
    assert list(trimmed.spatial_target_layers) == [1]
    assert trimmed.text_config.num_hidden_layers == 4


def test_nothing_changes_when_the_config_cannot_say_what_is_left(tiny_model):
    model = tiny_model()
    find_layers(model)[3].extra = torch.nn.Linear(2, 2)  # no config describes this tensor
    before, config = logits(model), model.config.to_dict()
    with pytest.raises(SurgeryError, match="extra.weight.*Nothing was changed"):
        drop_layers(model, [1])
    assert torch.equal(logits(model), before)
    assert model.config.to_dict() == config


@pytest.mark.parametrize("name", ["gemma3_text", "gpt2@inv_idx", "zamba2", "gemma3n_text", "bart"])
def test_a_backup_brings_dropped_layers_back(name):
    model = zoo.make(name)
    before, config, parameters = logits(model), model.config.to_dict(), list(model.parameters())
    backup = LayerBackup(model)
    for _ in range(2):
        drop_layers(model, droppable_layers(model)[-1:])
    backup.restore()
    assert torch.equal(logits(model), before)
    assert model.config.to_dict() == config
    assert all(one is other for one, other in zip(model.parameters(), parameters, strict=True))
    assert torch.equal(greedy(model), greedy(model, use_cache=False))


@pytest.mark.parametrize("moves", [False, True], ids=["where it was", "where it is now"])
def test_layers_that_were_put_elsewhere_come_back_to_where_the_model_is(moves, tiny_model, monkeypatch):
    """A run puts dropped layers into main memory, and the Trainer may move the model behind the backup; played by words."""
    model = tiny_model()
    places = dict.fromkeys(model.modules(), "main memory" if moves else "gpu")

    def move(module, place):
        places.update(dict.fromkeys(module.modules(), place))

    monkeypatch.setattr(torch.nn.Module, "to", move)
    monkeypatch.setattr("trim_trainer.surgery.backup._device_of", lambda module: places[module])
    backup, dropped = LayerBackup(model), find_layers(model)[2]
    move(model, "gpu")
    drop_layers(model, [2])
    move(dropped, "main memory")
    backup.restore()
    assert find_layers(model)[2] is dropped and set(places.values()) == {"gpu"}


@pytest.mark.parametrize("moment", ["before", "between", "behind"])
@pytest.mark.parametrize("name", ["llama", "mixtral"])
def test_a_restored_model_records_each_state_once(name, moment):
    """Transformers puts hooks on the modules of a model once, when a state is first asked for."""
    model = zoo.make(name)

    def states():
        outputs = model(torch.arange(3, 9)[None], output_hidden_states=True, output_attentions=True)
        return {key: len(outputs[key]) for key in ("hidden_states", "attentions", "router_logits") if key in outputs}

    model.set_attn_implementation("eager")
    depth = model.config.num_hidden_layers
    if moment == "before":
        states()
    backup = LayerBackup(model)
    if moment == "between":
        states()
    drop_layers(model, [1])
    assert states()["hidden_states"] == depth
    backup.restore()
    expected = {"hidden_states": depth + 1, "attentions": depth, "router_logits": depth}
    assert states() == {key: number for key, number in expected.items() if key in states()}
