"""Halves of neighbouring layers joined to one; `seams.py` of the helpers has the truth, the sweep every architecture."""

import copy

import pytest
import torch
import zoo
from peft import LoraConfig, PeftModel, get_peft_model
from seams import with_skipped
from tiny import CONFIGS, FULL, NUM_LAYERS, SLIDING, make_model
from torch.testing import assert_close
from transformers import AutoModelForCausalLM

from trim_trainer import drop_layers, droppable_seams
from trim_trainer.architectures.droppable import droppable_cuts
from trim_trainer.architectures.errors import LayerConstraintError, UnsupportedArchitectureError
from trim_trainer.architectures.fields import HALF_OF
from trim_trainer.architectures.halves import HALVES
from trim_trainer.architectures.kept import Kept, Seam
from trim_trainer.architectures.modules import find_layers
from trim_trainer.surgery.backup import LayerBackup
from trim_trainer.surgery.joining import joined_twin
from trim_trainer.surgery.optimizer import ParameterGroups, sync_optimizer

IDS = torch.arange(3, 29).view(2, 13)


@torch.no_grad()
def logits(model):
    return model(IDS, use_cache=False).logits


@pytest.mark.parametrize("model_type", CONFIGS)
def test_a_joined_layer_has_the_halves_of_two(model_type, tmp_path):
    model = make_model(model_type)
    joined = drop_layers(copy.deepcopy(model), [5], seams=[(1, 2)])
    assert len(find_layers(joined)) == 4
    assert_close(logits(joined), logits(with_skipped(model, [Seam(1), 5])), atol=1e-5, rtol=1e-5)
    joined.save_pretrained(tmp_path)
    loaded, info = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values()) and torch.equal(logits(loaded), logits(joined))
    greedy = [m.generate(IDS, max_new_tokens=8, do_sample=False, pad_token_id=0) for m in (joined, loaded)]
    assert torch.equal(*greedy)


def test_two_steps_equal_one():
    one, two = make_model("gemma3_text"), make_model("gemma3_text")
    drop_layers(one, [], seams=[(1, 2), (2, 3)])
    drop_layers(drop_layers(two, [2]), [], seams=[(1, 2)])  # 3 of the six
    assert torch.equal(logits(one), logits(two))
    assert one.config.to_dict() == two.config.to_dict()
    drop_layers(one, [1])  # the joined layer itself
    drop_layers(two := make_model("gemma3_text"), [1, 2, 3])
    assert torch.equal(logits(one), logits(two))


def test_each_field_follows_its_half():
    assert drop_layers(make_model("gemma3_text"), [], [(0, 1)]).config.layer_types == [
        SLIDING,
        SLIDING,
        SLIDING,
        FULL,
        FULL,
    ]
    assert drop_layers(make_model("smollm3"), [], [(2, 3)]).config.no_rope_layers == [1, 0, 0, 1, 0]
    mixture = zoo.make("qwen3_moe")  # layers 0 and 3 and others are dense: see its row
    dense = [layer for layer in range(6) if not hasattr(find_layers(mixture)[layer].mlp, "experts")]
    back = next(layer for layer in range(1, 6) if (layer in dense) != (layer - 1 in dense))
    joined = drop_layers(mixture, [], [(back - 1, back)])
    is_dense = [not hasattr(layer.mlp, "experts") for layer in find_layers(joined)]
    assert is_dense == [layer in dense for layer in range(6) if layer != back - 1]
    assert joined.config.mlp_only_layers == [layer for layer, value in enumerate(is_dense) if value]


@pytest.mark.parametrize(
    ("layers", "seams", "message"),
    [
        ([], [(1, 3)], r"`seams` contains \(1, 3\), expected pairs of neighbouring layers, from \(0, 1\) to \(4, 5\)"),
        ([], [(5, 6)], "`seams` contains"),
        ([], [(2, 1)], "`seams` contains"),
        ([], [(-1, 0)], "`seams` contains"),
        ([], [(1, 2), (1, 2)], "twice"),
        ([2], [(1, 2)], r"`layers` contains 2, and `seams` \(1, 2\): a half of layer 2 would go twice"),
        ([1], [(1, 2)], "a half of layer 1 would go twice"),
        ([0], [(layer, layer + 1) for layer in range(1, 5)] + [(4, 5)], "twice"),
        ([], [(1, 2, 3)], "`seams` contains"),
    ],
)
def test_wrong_seams_are_refused(layers, seams, message, tiny_model):
    model = tiny_model()
    with pytest.raises(ValueError, match=message):
        drop_layers(model, layers, seams)
    assert len(find_layers(model)) == NUM_LAYERS


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("gpt_neox", "'gpt_neox'.*`use_parallel_residual` is True: its attention and its MLP run side by side"),
        ("falcon", "'falcon'.*`parallel_attn` is True: its attention and its MLP run side by side"),
        ("cohere", "'cohere'.*side by side.*Drop whole layers"),
        ("mamba", "'mamba'.*one block, without halves"),
        ("gemma3n_text", "'gemma3n_text'.*embeddings of a layer"),
        ("dbrx", "'dbrx'.*not known which of its modules are which half"),
    ],
)
def test_what_has_no_halves_is_refused_by_its_name(name, reason):
    model = zoo.make(name)
    before = copy.deepcopy(model)
    with pytest.raises(UnsupportedArchitectureError, match=reason):
        drop_layers(model, [], [(1, 2)])
    assert torch.equal(logits(model), logits(before))
    drop_layers(model, [1])  # a layer can go


def test_parallel_residuals_are_a_setting(tmp_path):
    config = zoo.make_config("gpt_neox")
    config.use_parallel_residual = False
    model = AutoModelForCausalLM.from_config(config).eval()
    joined = drop_layers(copy.deepcopy(model), [], [(2, 3)])
    assert_close(logits(joined), logits(with_skipped(model, [Seam(2)])), atol=1e-5, rtol=1e-5)


def test_a_module_of_which_no_half_is_known_is_refused(tiny_model):
    model = tiny_model()
    find_layers(model)[2].extra = torch.nn.Identity()
    with pytest.raises(
        LayerConstraintError, match="LlamaDecoderLayer has extra.*not known to which half.*whole layers"
    ):
        drop_layers(model, [], [(1, 2)])


def test_a_field_of_which_no_half_is_known_is_refused(monkeypatch, tiny_model):
    monkeypatch.delitem(HALF_OF, "layer_types")
    with pytest.raises(LayerConstraintError, match="the seam of 0 | 1 .*`layer_types`.*not known of which half"):
        drop_layers(tiny_model("gemma3_text"), [], [(0, 1)])
    drop_layers(tiny_model("gemma3_text"), [], [(4, 5)])  # both attend fully: it says the same of either


def test_a_type_without_a_row_is_refused(monkeypatch, tiny_model):
    monkeypatch.delitem(HALVES, "llama")
    with pytest.raises(UnsupportedArchitectureError, match="not known"):
        drop_layers(tiny_model(), [], [(0, 1)])


def test_adapters_stay_with_their_halves(tmp_path):
    model = make_model("llama")
    config = LoraConfig(
        r=4, target_modules=["q_proj", "down_proj"], layers_to_transform=[1, 3],
        rank_pattern={"layers.1.self_attn.q_proj": 2, "layers.3.mlp.down_proj": 8},
    )  # fmt: skip
    peft = get_peft_model(make_model("llama"), config)
    with torch.no_grad():
        for name, parameter in peft.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    expected = logits(with_skipped(peft.get_base_model(), [Seam(1), Seam(2)]))
    drop_layers(peft, [], [(1, 2), (2, 3)])  # attention of 1, MLP of 3
    assert_close(logits(peft), expected, atol=1e-5, rtol=1e-5)
    saved = peft.peft_config["default"]
    assert saved.layers_to_transform == [1]  # of 3 there is the MLP half, and both are in one layer now
    peft.save_pretrained(tmp_path)
    base = drop_layers(model, [], [(1, 2), (2, 3)])
    loaded = PeftModel.from_pretrained(base, tmp_path)
    assert_close(logits(loaded), logits(peft), atol=1e-6, rtol=1e-6)


def test_a_backup_brings_halves_back(tiny_model):
    model = tiny_model("gemma3_text")
    before, backup, config = logits(model), LayerBackup(model), model.config.to_dict()
    drop_layers(model, [4], [(1, 2)])
    drop_layers(model, [], [(1, 2)])
    backup.restore()
    assert torch.equal(logits(model), before) and model.config.to_dict() == config


def test_a_twin_shares_weights_and_changes_nothing(tiny_model):
    model = tiny_model()
    before, layers = logits(model), find_layers(model)
    twin = joined_twin(layers[1], layers[2], HALVES["llama"])
    assert twin.mlp.down_proj.weight is layers[2].mlp.down_proj.weight
    assert twin.self_attn.q_proj.weight is layers[1].self_attn.q_proj.weight
    assert twin.self_attn.config is model.config
    twin.mlp.register_forward_hook(lambda *call: pytest.fail("a hook of the twin is none of the model"))
    assert torch.equal(logits(model), before)


def test_what_goes_together_shares_no_half(tiny_model):
    model = tiny_model()
    every = [0, Seam(0), 1, Seam(1), 2, Seam(2), 3, Seam(3), 4, Seam(4), 5]
    assert list(droppable_cuts(model, with_seams=True)) == every
    assert droppable_seams(model) == droppable_seams(model.config) == ((0, 1), (1, 2), (2, 3), (3, 4), (4, 5))
    assert droppable_seams(model, [0], [(2, 3)]) == ((1, 2), (3, 4), (4, 5))
    assert list(droppable_cuts(model, [Seam(1)], with_seams=True)) == [0, Seam(0), Seam(2), 3, Seam(3), 4, Seam(4), 5]
    assert list(droppable_cuts(model, [2], with_seams=True)) == [0, Seam(0), 1, 3, Seam(3), 4, Seam(4), 5]
    assert droppable_cuts(model, [0, Seam(1), Seam(2), 4, 5], with_seams=True) == ()


@pytest.mark.parametrize(
    ("kept", "text"),
    [
        (Kept.without(6, [3]), "layer 3"),
        (Kept.without(6, [5, 3]), "layers 3, 5"),
        (Kept.without(6, [Seam(1)]), "the seam of 1 | 2"),
        (Kept.without(6, [5, Seam(1), Seam(2)]), "layer 5 and the seam of 1 | 3"),
    ],
)
def test_what_went_is_named(kept, text):
    assert str(kept) == text


def test_the_optimizer_knows_of_the_halves_that_stay_what_it_knew(tiny_model):
    model = tiny_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    model(IDS, labels=IDS).loss.backward()
    optimizer.step()
    layers = list(find_layers(model))
    front, back, gone = layers[1].self_attn, layers[2].mlp, [layers[1].mlp, layers[2].self_attn]
    known = {parameter: dict(optimizer.state[parameter]) for half in (front, back) for parameter in half.parameters()}
    drop_layers(model, [], [(1, 2)])
    sync_optimizer(optimizer, model, ParameterGroups(lambda: []))
    joined = find_layers(model)[1]
    assert joined.self_attn is front and joined.mlp is back
    assert all(optimizer.state[parameter] == state for parameter, state in known.items())
    assert not {parameter for half in gone for parameter in half.parameters()} & set(optimizer.state)
    assert {p for group in optimizer.param_groups for p in group["params"]} == set(model.parameters())
