"""Checkpoints with different tokens are compared per character, never per token."""

import json

import forked  # noqa: F401  the server of all processes
import pytest
import yaml
from datasets import Dataset
from tiny import make_examples, make_model, make_tokenizer

from trim_trainer.cli.main import main


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """What `evaluate` says, as JSON and as a table, of a model and of one that has fewer of its tokens."""
    folder = tmp_path_factory.mktemp("tokens")
    make_model().save_pretrained(folder / "whole")
    make_tokenizer().save_pretrained(folder / "whole")
    Dataset.from_list(make_examples(12)).to_json(folder / "colours.jsonl")
    data = ["--data", str(folder / "colours.jsonl")]
    assert main(["drop", str(folder / "whole"), "--vocab-size", "24", *data, "--output", str(folder / "small")]) == 0
    lines = ["the cat sat on the mat", "one dog ran to the red road"]
    Dataset.from_list([{"text": line} for line in lines]).to_json(folder / "prose.jsonl")
    for name in ("colours", "prose"):
        task = {"dataset_name": str(folder / f"{name}.jsonl"), "dataset_test_split": "train"}
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(task))
    return folder


def evaluate(folder, models, tasks, *options):
    words = [str(folder / name) for name in models], [str(folder / f"{name}.yaml") for name in tasks]
    return main(["evaluate", *words[0], "--task", *words[1], *options])


def test_a_loss_per_character_is_that_of_all_scored_text(measured, tmp_path):
    assert evaluate(measured, ["whole", "small"], ["colours", "prose"], "--output", str(tmp_path / "n.json")) == 0
    whole, small = json.loads((tmp_path / "n.json").read_text())
    colours = sum(len(row["completion"].strip()) for row in make_examples(12))
    for report in (whole, small):
        assert report["quality"]["colours"]["num_characters"] == pytest.approx(colours, abs=12)  # spaces before words
        for each in report["quality"].values():
            assert each["loss_per_character"] == pytest.approx(
                each["loss"] * each["num_tokens"] / each["num_characters"]
            )
    assert whole["quality"]["colours"]["num_tokens"] == small["quality"]["colours"]["num_tokens"]


def test_the_table_has_no_perplexity_where_tokens_differ(measured, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    # the same text in other tokens: two words that are one token each, and one that is none
    path = measured / "small" / "tokenizer.json"
    plain = json.loads(path.read_text())
    plain["pre_tokenizer"] = {"type": "Split", "pattern": {"String": ""}, "behavior": "Isolated", "invert": False}
    assert evaluate(measured, ["whole", "small"], ["colours"]) == 0
    assert "perplexity" in capsys.readouterr().out
    path.write_text(json.dumps(plain))
    assert evaluate(measured, ["whole", "small"], ["prose"]) == 0
    said = capsys.readouterr().out
    assert "loss per character" in said and "perplexity" not in said
