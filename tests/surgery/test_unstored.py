"""What a model computes from its config and no checkpoint holds follows the layers that are left."""

import copy

import pytest
import torch
import zoo
from sweep import with_layers_skipped
from torch import nn
from transformers import AutoModelForCausalLM
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaPreTrainedModel

from trim_trainer import drop_layers
from trim_trainer.surgery.backup import LayerBackup
from trim_trainer.surgery.blueprint import build
from trim_trainer.surgery.drop import SurgeryError
from trim_trainer.surgery.full_depth import full_depth_twin

# Types that make something outside the layers for each value, or each kind, that their layers have.
BY_THETA = ("granite_swa", "granitemoe_swa")
BY_KIND = ("gemma3_text", "olmo3", "modernbert-decoder", "lfm3", "laguna", "zaya", "mimo_v2_flash", "reformer@hashed")
# Two layers; all that share a kind; all but one.
DROP_SETS = ((2, 3), (0, 5), (0, 2, 3), (1, 4, 5), (0, 1, 2, 3, 4))
NEEDS_ALL_KINDS = {("modernbert-decoder", layers) for layers in DROP_SETS if 0 in layers}


def logits(model, name):
    return zoo.logits(model, zoo.make_inputs(model, name))


def unstored(model):
    """Buffers that are not in the state dict, by name."""
    return {name: buffer for name, buffer in model.named_buffers() if name not in model.state_dict()}


@pytest.mark.parametrize("layers", DROP_SETS, ids=str)
@pytest.mark.parametrize("name", BY_THETA)
def test_rotary_frequencies_follow_the_thetas_that_are_left(name, layers):
    model = zoo.make(name)
    expected = logits(with_layers_skipped(name, model, layers), name)
    drop_layers(model, layers)
    assert (logits(model, name) - expected).abs().max() < 1e-6
    left = sorted({theta for theta in model.config.layer_rope_theta if theta})
    size = model.config.hidden_size // model.config.num_attention_heads
    exponents = torch.arange(0, size, 2) / size
    assert [rotary.config.rope_parameters["rope_theta"] for rotary in model.model.rotary_embs] == left
    for rotary, theta in zip(model.model.rotary_embs, left, strict=True):
        assert torch.allclose(rotary.inv_freq, theta**-exponents)


@pytest.mark.parametrize(
    ("name", "layers"),
    [(name, layers) for name in BY_THETA + BY_KIND for layers in DROP_SETS if (name, layers) not in NEEDS_ALL_KINDS],
    ids=str,
)
def test_a_trimmed_model_computes_what_its_checkpoint_computes(name, layers, tmp_path):
    model = zoo.make(name)
    logits(model, name)  # whatever a first pass keeps for the next
    drop_layers(model, layers).save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(logits(model, name), logits(loaded, name))
    ours, theirs = unstored(model), unstored(loaded)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_frequencies_stay_in_the_precision_of_the_model():
    model = zoo.make("granite_swa").to(torch.bfloat16)
    drop_layers(model, [2, 3])
    assert {buffer.dtype for buffer in model.model.rotary_embs.buffers()} == {torch.bfloat16}


def test_buffers_that_others_changed_stay_as_they_are():
    """Only what differs for the layers that are left is made anew; a scaling for long texts is a state of the run."""
    model = zoo.make("gemma3_text")
    longer = model.model.rotary_emb.full_attention_inv_freq / 2
    model.model.rotary_emb.full_attention_inv_freq = longer
    drop_layers(model, [2, 3])
    assert torch.equal(model.model.rotary_emb.full_attention_inv_freq, longer)


@pytest.mark.parametrize("name", ["granite_swa", "lfm3", "gemma3_text"])
@pytest.mark.parametrize("layers", [(2, 3), (0, 2, 3), (0, 1, 2, 3, 4)], ids=str)
def test_a_backup_brings_them_back(name, layers):
    model = zoo.make(name)
    before, buffers, stored = logits(model, name), copy.deepcopy(unstored(model)), model.state_dict().keys()
    backup = LayerBackup(model)
    drop_layers(model, layers)
    backup.restore()
    assert torch.equal(logits(model, name), before)
    assert model.state_dict().keys() == stored
    assert {key: value.tolist() for key, value in unstored(model).items()} == {
        key: value.tolist() for key, value in buffers.items()
    }


@pytest.mark.parametrize("name", ["granite_swa", "gemma3_text", "gpt_neo", "codegen", "bert", "falcon"])
def test_a_rehearsed_model_knows_them_without_weights(name):
    model = zoo.make(name)
    built = build(type(model), model.config)
    expected = unstored(model)
    assert all(parameter.is_meta for parameter in built.parameters())
    assert {key: value.tolist() for key, value in unstored(built).items()} == {
        key: value.tolist() for key, value in expected.items()
    }


def test_the_generator_of_random_numbers_is_left_alone():
    model = zoo.make("granite_swa")
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    drop_layers(model, [2, 3])
    assert torch.equal(torch.rand(2), expected)


@torch.no_grad()
def test_a_twin_of_full_depth_has_its_own():
    model = zoo.make("granite_swa")
    config, whole = copy.deepcopy(model.config), unstored(model)
    twin = full_depth_twin(drop_layers(model, [2, 3]), config, kept=(0, 1, 4, 5))
    assert {key: value.tolist() for key, value in unstored(twin).items()} == {
        key: value.tolist() for key, value in whole.items()
    }


class Scaled(nn.Module):
    """Scales by a number that depends on the layer, and that is kept where no one looks for constants."""

    def __init__(self, scale):
        super().__init__()
        self.register_buffer("scale", torch.tensor(scale, device="cpu"), persistent=False)


def test_a_buffer_inside_a_layer_that_depends_on_its_number_is_noticed(monkeypatch):
    def construct(self, config, layer_idx, original=LlamaDecoderLayer.__init__):
        original(self, config, layer_idx)
        self.scaled = Scaled(1 / (1 + layer_idx))

    def initialize(self, module, original=LlamaPreTrainedModel._init_weights):
        if isinstance(module, Scaled):
            module.scale.fill_(next(layer for layer in self.layers if layer.scaled is module).self_attn.layer_idx)
        else:
            original(self, module)

    monkeypatch.setattr(LlamaDecoderLayer, "__init__", construct)
    monkeypatch.setattr(LlamaPreTrainedModel, "_init_weights", initialize)
    model = zoo.make("llama")
    with pytest.raises(SurgeryError, match=r"layers\.1\.scaled\.scale.* depends on the layer's number"):
        drop_layers(model, [1])
    assert len(model.model.layers) == 6
