"""What is written holds the fields that readers before Transformers 5 look for, and Transformers 5 reads it as before."""

import json

import pytest
import torch
import zoo
from peft import LoraConfig
from tiny import make_model, make_tokenizer
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText, AutoTokenizer

from trim_trainer.checkpoints.older_readers import READ_RIGHT, oldest_reader, write_older_fields
from trim_trainer.cli.main import main

LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LLAMA3 |= {"original_max_position_embeddings": 32}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
BOTH = {
    "sliding_attention": {"rope_type": "default", "rope_theta": 777.0},
    "full_attention": {"rope_type": "linear", "factor": 4.0, "rope_theta": 100000.0},
}
# Model type, its `rope_parameters`, and the fields by which Transformers 4.57 computes the same.
WRITTEN = {
    "llama": ("llama", {"rope_theta": 100000.0}, {"rope_theta": 100000.0}),
    "llama3": ("llama", LLAMA3 | {"rope_theta": 5e5}, {"rope_theta": 5e5, "rope_scaling": LLAMA3}),
    "yarn": ("qwen3", YARN | {"rope_theta": 1e6}, {"rope_theta": 1e6, "rope_scaling": YARN}),
    "a base per kind": (
        "gemma3_text", BOTH,
        {"rope_theta": 100000.0, "rope_local_base_freq": 777.0, "rope_scaling": {"rope_type": "linear", "factor": 4.0}},
    ),
    "a part": (
        "phi", {"rope_theta": 5e4, "partial_rotary_factor": 0.25}, {"rope_theta": 5e4, "partial_rotary_factor": 0.25}
    ),
    "other names": (
        "gpt_neox", {"rope_theta": 5e4, "partial_rotary_factor": 0.5}, {"rotary_emb_base": 5e4, "rotary_pct": 0.5}
    ),
    "experts": ("qwen3_moe", {"rope_theta": 5e4}, {"rope_theta": 5e4, "num_experts": 4}),
}  # fmt: skip


def save(model_type, rope, folder):
    config = zoo.make_config(model_type)
    config = type(config).from_dict(config.to_dict() | {"rope_parameters": {"rope_type": "default"} | rope})
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return json.loads((folder / "config.json").read_text())


@pytest.mark.parametrize("name", WRITTEN)
def test_older_fields_are_added_and_nothing_is_read_otherwise(name, tmp_path):
    model_type, rope, expected = WRITTEN[name]
    if name == "a base per kind":
        rope = {kind: dict(settings) for kind, settings in rope.items()}
    before = save(model_type, rope, tmp_path)
    read, model = AutoConfig.from_pretrained(tmp_path), AutoModelForCausalLM.from_pretrained(tmp_path)
    assert not expected.keys() & before.keys()  # Transformers 5 does not write them
    write_older_fields(tmp_path)
    after = json.loads((tmp_path / "config.json").read_text())
    assert {key: after[key] for key in expected} == expected
    assert after["torch_dtype"] == after["dtype"] == "float32"
    assert {key: after[key] for key in before} == before
    assert AutoConfig.from_pretrained(tmp_path).to_dict() == read.to_dict()
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(
        zoo.logits(again, {"input_ids": zoo.INPUT_IDS}), zoo.logits(model, {"input_ids": zoo.INPUT_IDS})
    )
    assert oldest_reader(read) == "4.57"


def test_the_text_part_of_a_composite_has_them_too(tmp_path):
    zoo.make("gemma3", AutoModelForImageTextToText).save_pretrained(tmp_path / "model")
    assert main(["drop", str(tmp_path / "model"), "--layers", "0", "--output", str(tmp_path / "out")]) == 0
    text = json.loads((tmp_path / "out" / "config.json").read_text())["text_config"]
    rope = text["rope_parameters"]
    assert text["rope_theta"] == rope["full_attention"]["rope_theta"]
    assert text["rope_local_base_freq"] == rope["sliding_attention"]["rope_theta"]


def test_a_type_that_cannot_say_it_is_not_promised():
    config = zoo.make_config("olmo3")  # knew one base only
    for number, settings in enumerate(config.rope_parameters.values()):
        settings["rope_theta"] = 500.0 * (number + 1)
    assert "olmo3" not in READ_RIGHT and oldest_reader(config).startswith("5.")
    config = make_model("llama").config
    config.rope_parameters = {"rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [2.0] * 4}
    config.rope_parameters |= {"factor": 4.0, "rope_theta": 1e4, "original_max_position_embeddings": 64}
    assert oldest_reader(config).startswith("5.")  # the same fields, another factor of attention


def test_an_infinity_in_a_config_is_none_of_our_business(tmp_path):
    zoo.make("falcon_h1").save_pretrained(tmp_path)
    write_older_fields(tmp_path)
    after = json.loads((tmp_path / "config.json").read_text())
    assert after["rope_theta"] == after["rope_parameters"]["rope_theta"]
    assert AutoConfig.from_pretrained(tmp_path).time_step_limit[1] == float("inf")


def test_a_tokenizer_is_written_in_names_that_both_know(tmp_path):
    tokenizer = make_tokenizer()
    tokenizer.add_special_tokens({"extra_special_tokens": ["<x>", "<y>"]})
    tokenizer.save_pretrained(tmp_path)
    write_older_fields(tmp_path)
    said = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert said["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert said["additional_special_tokens"] == ["<x>", "<y>"] and "extra_special_tokens" not in said
    read = AutoTokenizer.from_pretrained(tmp_path)
    assert type(read) is type(tokenizer) and read.all_special_tokens == tokenizer.all_special_tokens
    assert read("the cat <x>").input_ids == tokenizer("the cat <x>").input_ids


@pytest.mark.parametrize("kind", ["whole", "merged", "apart"])
def test_every_folder_that_a_run_leaves_is_written_so(kind, make_trainer, tmp_path):
    model = make_model(rope_parameters={"rope_type": "default", "rope_theta": 100000.0})
    options = {} if kind == "whole" else {"peft_config": LoraConfig(task_type="CAUSAL_LM", r=2)}
    trainer = make_trainer(model=model, target_layers=4, save_depths=[5], merge_adapter=kind == "merged", **options)
    trainer.train()
    trainer.save_model()
    for folder in (tmp_path / "run", tmp_path / "run" / "depth-5"):
        config = json.loads((folder / "config.json").read_text())
        assert config["rope_theta"] == 100000.0
        dim = config["head_dim"]
        older = 1 / config["rope_theta"] ** (torch.arange(0, dim, 2) / dim)
        loaded = AutoModelForCausalLM.from_pretrained(folder)
        torch.testing.assert_close(loaded.model.rotary_emb.inv_freq, older)
        tokenizer = json.loads((folder / "tokenizer_config.json").read_text())
        assert tokenizer["tokenizer_class"] == "PreTrainedTokenizerFast"
        assert "It loads right from Transformers 4.57 on." in (folder / "README.md").read_text()
