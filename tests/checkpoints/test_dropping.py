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

from trim_trainer import TrimHistory, drop_layers
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


def test_halves_are_joined_and_it_is_said_which(checkpoint, tmp_path, capsys):
    arguments = ["drop", str(checkpoint), "--layers", "5", "--seams", "0-1, 2-3", "--output", str(tmp_path / "out")]
    assert main(arguments) == 0
    assert "6 → 3 layers" in capsys.readouterr().out
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    expected = drop_layers(AutoModelForCausalLM.from_pretrained(checkpoint), [5], [(0, 1), (2, 3)])
    assert torch.equal(loaded(zoo.INPUT_IDS).logits, expected(zoo.INPUT_IDS).logits)
    history = TrimHistory.load(tmp_path / "out")
    assert history.halves == ((0, 1), (2, 3), (4, 4)) and history.named == (5, (0, 1), (2, 3))
    card = (tmp_path / "out" / "README.md").read_text()
    assert "Layers kept: 0 | 1, 2 | 3, 4. Each pair is one layer" in card
    assert "without 3 of its 6 decoder layers" in card


def test_a_joined_layer_goes_by_the_numbers_of_the_untrimmed_model(checkpoint, tmp_path):
    steps = (["--seams", "1-2"], ["--seams", "1-2"], ["--layers", "1"])
    source = checkpoint
    for number, asked in enumerate(steps):
        target = tmp_path / str(number)
        assert main(["drop", str(source), *asked, "--output", str(target)]) == 0
        source = target
    history = TrimHistory.load(source)
    assert history.dropped == ((1, 2), (2, 3), 1) and history.halves == ((0, 0), (4, 4), (5, 5))
    expected = drop_layers(AutoModelForCausalLM.from_pretrained(checkpoint), [1, 2, 3])
    loaded = AutoModelForCausalLM.from_pretrained(source)
    assert torch.equal(loaded(zoo.INPUT_IDS).logits, expected(zoo.INPUT_IDS).logits)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (["--seams", "1"], "`seams` contains '1', expected pairs of neighbouring layers, such as 18-19,21-22"),
        (["--seams", "1-3"], "`seams` contains '1-3', expected pairs"),
        (["--seams", "5-6"], r"`seams` contains \(5, 6\), expected pairs.*from \(0, 1\) to \(4, 5\)"),
        (["--seams", "1-2", "--layers", "2"], "a half of layer 2 would go twice"),
    ],
)
def test_wrong_seams_are_refused_in_one_sentence(asked, message, checkpoint, tmp_path, capsys):
    assert main(["drop", str(checkpoint), *asked, "--output", str(tmp_path / "out")]) == 2
    assert re.search(message, " ".join(capsys.readouterr().err.split()))
    assert not (tmp_path / "out").exists()


def test_nothing_to_drop_is_refused(checkpoint, tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["drop", str(checkpoint), "--output", str(tmp_path / "out")])
    assert (
        "name what is to go: --layers, such as 3,17,20-24, --seams, such as 18-19, or --vocab-size"
        in capsys.readouterr().err
    )


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
