import json

import pytest
import zoo
from datasets import Dataset
from tiny import make_examples, make_model
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

from trim_trainer import score_layers
from trim_trainer.cli.main import main


@pytest.fixture
def checkpoint(tmp_path, tokenizer):
    make_model("llama").save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    Dataset.from_list(make_examples(20)).to_json(tmp_path / "data.jsonl")
    return str(tmp_path / "model"), str(tmp_path / "data.jsonl")


def test_json_holds_the_scores_that_python_gives(checkpoint, tokenizer, capsys):
    model, data = checkpoint
    assert main(["scan", model, "--data", data, "--size", "20", "--metric", "loss", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    expected = score_layers(AutoModelForCausalLM.from_pretrained(model), tokenizer, make_examples(20), metric="loss")
    assert report["scores"] == pytest.approx(expected, abs=1e-5)
    assert report["num_examples"] == 20 and report["num_scored"] == [20] * 6 and report["droppable"] == [True] * 6


@pytest.mark.parametrize("criterion", ["sensitivity", "block_influence", "taylor"])
def test_a_table_and_a_picture(criterion, checkpoint, tmp_path, capsys):
    model, data = checkpoint
    output = tmp_path / "report"
    assert main(["scan", model, "--data", data, "--criterion", criterion, "--output", str(output)]) == 0
    printed = capsys.readouterr().out
    assert f"{criterion} by accuracy, 20 examples" in printed and "accuracy of the whole model" in printed
    report = json.loads((output / "layer_scores.json").read_text())
    least = min(range(6), key=report["scores"].__getitem__)
    first_row = next(line for line in printed.splitlines() if line.startswith("│ 1 "))
    assert first_row.split("│")[2].strip() == str(least)
    assert (output / "layer_scores.png").read_bytes().startswith(b"\x89PNG")


def test_a_race_says_what_each_score_comes_from(checkpoint, capsys):
    model, data = checkpoint
    assert main(["scan", model, "--data", data, "--metric", "loss", "--racing-confidence", "0.9", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert max(report["num_scored"]) == 20 and min(report["num_scored"]) >= 8


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--criterion", "magic"], "`importance` is 'magic', expected one of: activation_norm, angular"),
        (["--split", "test"], "`split` is 'test', but"),
    ],
)
def test_mistakes_are_one_sentence(options, message, checkpoint, capsys):
    model, data = checkpoint
    assert main(["scan", model, "--data", data, *options]) == 2
    assert message in capsys.readouterr().err


def test_the_text_decoder_of_an_image_model_is_scored(tmp_path, tokenizer, capsys):
    model = zoo.make("gemma3", AutoModelForImageTextToText)
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    Dataset.from_list(make_examples(6)).to_json(tmp_path / "data.jsonl")
    arguments = ["scan", str(tmp_path / "model"), "--data", str(tmp_path / "data.jsonl"), "--metric", "loss", "--json"]
    assert main(arguments) == 0
    report = json.loads(capsys.readouterr().out)
    assert len(report["scores"]) == model.config.get_text_config().num_hidden_layers
    assert report["scores"] == pytest.approx(score_layers(model, tokenizer, make_examples(6), metric="loss"), abs=1e-5)
