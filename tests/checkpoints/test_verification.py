import copy
import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import make_model

from trim_trainer import drop_layers, verify_checkpoint
from trim_trainer.checkpoints.verification import VerificationError


@pytest.fixture
def saved(tmp_path):
    model = drop_layers(make_model("smollm3"), [1])
    model.save_pretrained(tmp_path)
    return model, tmp_path


def test_a_good_checkpoint_passes_and_nothing_changes(saved):
    model, folder = saved
    model.train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    verify_checkpoint(folder, model)
    assert model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_one_changed_bit_is_noticed(saved):
    model, folder = saved
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.2.mlp.up_proj.weight"][3, 4] += 1e-7
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(VerificationError, match="model.layers.2.mlp.up_proj.weight.*do not use or publish"):
        verify_checkpoint(folder, model)


def test_a_missing_tensor_is_noticed(saved):
    model, folder = saved
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.0.self_attn.q_proj.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(VerificationError, match="missing_keys.*layers.0.self_attn.q_proj"):
        verify_checkpoint(folder, model)


def test_a_list_that_was_cut_instead_of_selected_is_noticed(saved):
    """Same tensors, same shapes, another function: only the logits tell."""
    model, folder = saved
    path = folder / "config.json"
    config = json.loads(path.read_text())
    assert config["no_rope_layers"] == [1, 0, 1, 1, 0]
    config["no_rope_layers"] = [1, 0, 0, 1, 1]
    path.write_text(json.dumps(config))
    with pytest.raises(VerificationError, match="its logits differ"):
        verify_checkpoint(folder, model)


def test_a_checkpoint_in_lower_precision_is_compared_in_it(tmp_path):
    model = make_model()
    copy.deepcopy(model).to(torch.bfloat16).save_pretrained(tmp_path)
    verify_checkpoint(tmp_path, model)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["model.layers.2.mlp.up_proj.weight"][3, 4] *= 1.01
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(VerificationError, match="model.layers.2.mlp.up_proj.weight"):
        verify_checkpoint(tmp_path, model)


def test_in_bfloat16_it_is_verified_as_closely_as_it_rounds(tmp_path):
    model = make_model("qwen2").to(torch.bfloat16)
    model.save_pretrained(tmp_path)
    verify_checkpoint(tmp_path, model)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"layer_types": config["layer_types"][::-1]}))
    with pytest.raises(VerificationError, match="its logits differ"):
        verify_checkpoint(tmp_path, model)
