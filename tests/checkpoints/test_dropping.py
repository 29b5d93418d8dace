import json
import re

import pytest
import torch
import zoo
from tiny import make_model
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoTokenizer,
    LlamaForSequenceClassification,
)

from trim_trainer import drop_layers
from trim_trainer.checkpoints.dropping import parse_layers
from trim_trainer.cli.main import main


@pytest.fixture
def checkpoint(tmp_path, tokenizer):
    folder = tmp_path / "model"
    make_model("qwen3").to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_layers_are_dropped_and_everything_else_comes_along(checkpoint, tmp_path, tokenizer, capsys):
    assert main(["drop", str(checkpoint), "--layers", "1,4", "--output", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    assert "6 → 4 layers" in printed and "with tokenizer" in printed and str(tmp_path / "out") in printed
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    expected = drop_layers(AutoModelForCausalLM.from_pretrained(checkpoint), [1, 4])
    assert loaded.dtype == torch.bfloat16  # as stored
    assert torch.equal(loaded(zoo.INPUT_IDS).logits, expected(zoo.INPUT_IDS).logits)
    assert AutoTokenizer.from_pretrained(tmp_path / "out")("the cat sat") == tokenizer("the cat sat")


def test_a_vision_tower_stays(tmp_path, capsys):
    zoo.make("gemma3", AutoModelForImageTextToText).save_pretrained(tmp_path / "model")
    assert main(["drop", str(tmp_path / "model"), "--layers", "0,3", "--output", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    assert "without a tokenizer" in printed
    assert "Note: llama.cpp assumes of 'gemma3_text' that every 6th layer attends fully" in printed
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["text_config"]["num_hidden_layers"] == 4
    assert config["vision_config"]["num_hidden_layers"] == zoo.TOWER_LAYERS


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ("1,x", "`layers` contains 'x', expected numbers and ranges"),
        ("4-2", "expected a range that rises"),
        ("3-9", r"contains \[6, 7, 8, 9\], expected numbers from 0 to 5"),
    ],
)
def test_wrong_layers_are_refused_in_one_sentence(layers, message, checkpoint, tmp_path, capsys):
    assert main(["drop", str(checkpoint), "--layers", layers, "--output", str(tmp_path / "out")]) == 2
    assert re.search(message, capsys.readouterr().err)
    assert not (tmp_path / "out").exists()


def test_layers_that_have_to_stay_are_refused_before_weights_are_loaded(tmp_path, capsys):
    zoo.make_config("modernbert-decoder").save_pretrained(tmp_path / "model")  # no weights there at all
    assert main(["drop", str(tmp_path / "model"), "--layers", "0", "--output", str(tmp_path / "out")]) == 2
    assert "layer 0 of this 'modernbert-decoder' model: layer 0 has to stay" in capsys.readouterr().err


def test_a_folder_that_holds_something_is_not_overwritten(checkpoint, tmp_path, capsys):
    before = sorted(checkpoint.iterdir())
    assert main(["drop", str(checkpoint), "--layers", "1", "--output", str(checkpoint)]) == 2
    assert "is not an empty folder. Name another one" in capsys.readouterr().err
    assert sorted(checkpoint.iterdir()) == before


def test_a_checkpoint_without_a_head_is_refused(checkpoint, tmp_path, capsys):
    model = make_model("llama")
    classifier = LlamaForSequenceClassification(model.config)
    classifier.save_pretrained(tmp_path / "classifier")
    assert main(["drop", str(tmp_path / "classifier"), "--layers", "1", "--output", str(tmp_path / "out")]) == 2
    assert "holds no lm_head.weight: it is not a whole LlamaForCausalLM" in capsys.readouterr().err


def test_ranges():
    assert parse_layers("3, 17,20-22") == [3, 17, 20, 21, 22]
