"""What `trim-trainer drop` leaves, the next command takes: history and card say what is known, and nothing more."""

import json

import pytest
import torch
from datasets import Dataset
from hub import WRITE_TOKEN, HubServer
from publishing import IDS, command, load_elsewhere
from tiny import make_examples, make_model
from transformers import AutoModelForCausalLM

from trim_trainer import drop_layers
from trim_trainer.cli.main import main
from trim_trainer.hub.staging import StagingError, stage
from trim_trainer.records.history import TrimHistory


@pytest.fixture
def base(tmp_path, tokenizer):
    folder = tmp_path / "base"
    make_model().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def drop(model, layers, folder, *others):
    assert main(["drop", str(model), "--layers", layers, *others, "--output", str(folder)]) == 0
    return folder


def test_history_and_card_say_what_was_dropped_and_claim_nothing(base, tmp_path):
    (base / "README.md").write_text("---\nlicense: other\nlicense_name: own\nbase_model: org/base\n---\n# Base\n")
    folder = drop(base, "1,4", tmp_path / "small")
    history = TrimHistory.load(folder)
    assert (history.num_layers, history.depth, history.dropped, history.kept) == (6, 4, (1, 4), (0, 2, 3, 5))
    assert history.trimmed.num_parameters == AutoModelForCausalLM.from_pretrained(folder).num_parameters()
    assert history.untrimmed.num_parameters == make_model().num_parameters()
    assert (history.card.base_model, history.card.license, history.card.license_name) == ("org/base", "other", "own")
    card = (folder / "README.md").read_text()
    for said in (
        "without 2 of its 6 decoder layers, and not trained since",
        "Layers 1, 4 were named by hand",
        "| 6 | 4 |",
    ):
        assert said in card
    for unsaid in ("accuracy", "loss", "fine-tuned", "recipe.yaml", ".png", "None", "nan"):
        assert unsaid not in card.split("## Citation")[0], unsaid
    assert not (folder / "recipe.yaml").exists()


def test_a_second_drop_counts_on_in_the_numbers_of_the_untrimmed_model(base, tmp_path):
    folder = drop(drop(base, "1,4", tmp_path / "one"), "2", tmp_path / "two")
    history = TrimHistory.load(folder)
    assert (history.num_layers, history.dropped, history.kept) == (6, (1, 4, 3), (0, 2, 5))
    expected = drop_layers(AutoModelForCausalLM.from_pretrained(base), [1, 3, 4])
    assert torch.equal(AutoModelForCausalLM.from_pretrained(folder)(IDS).logits, expected(IDS).logits)


@pytest.mark.parametrize(("layers", "seams"), [("1,4", ()), ("4", (1, 2))], ids=["layers", "a layer and a seam"])
def test_it_is_published_and_loads(layers, seams, base, tmp_path):
    folder = drop(base, layers, tmp_path / "small", *(["--seams", "{}-{}".format(*seams)] if seams else []))
    with HubServer() as server:
        said = command(
            ["publish", str(folder), "--repo-id", "me/small"], server.endpoint, WRITE_TOKEN, tmp_path / "home"
        )
        assert said.status == 0, said.errors
        assert "v1-depth-4" in server.repo("me/small").tags
        (depth, logits) = load_elsewhere("me/small", ["main"], server.endpoint, tmp_path / "fresh")["main"]
        assert b"me/small" in server.repo("me/small").files()["README.md"]
    numbers = [int(layer) for layer in layers.split(",")]
    expected = drop_layers(AutoModelForCausalLM.from_pretrained(base), numbers, [seams] if seams else [])
    assert depth == 4
    torch.testing.assert_close(torch.tensor(logits), expected(IDS).logits, atol=1e-5, rtol=1e-5)


def test_it_is_trained_on_scanned_and_the_card_remembers(base, make_trainer, tmp_path, capsys):
    (base / "README.md").write_text("---\nlicense: mit\nbase_model: org/base\n---\n")
    folder = drop(base, "4", tmp_path / "small", "--seams", "1-2")
    data = tmp_path / "data.jsonl"
    Dataset.from_list(make_examples(8)).to_json(data)
    assert main(["scan", str(folder), "--data", str(data), "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out.splitlines()[-1])["scores"]) == 4
    trainer = make_trainer(model=str(folder), target_layers=3)
    trainer.train()
    trainer.save_model()
    history = TrimHistory.load(tmp_path / "run")
    assert (history.num_layers, history.depth) == (4, 3)
    assert (history.card.base_model, history.card.license) == ("org/base", "mit")
    card = (tmp_path / "run" / "README.md").read_text()
    assert "fine-tuned while 1 of its 4 decoder layers were dropped" in card
    assert "The model that training began with had lost 2 of 6 layers before: 1 | 2, 4." in card


def test_a_drop_of_a_trained_model_does_not_boast_with_what_was_measured_before(make_trainer, tmp_path):
    trainer = make_trainer(target_layers=4)
    trainer.train()
    trainer.save_model()
    before = TrimHistory.load(tmp_path / "run")
    folder = drop(tmp_path / "run", "0", tmp_path / "smaller")
    history = TrimHistory.load(folder)
    assert history.dropped == (*before.dropped, before.kept[0]) and history.depth == 3
    assert history.trimmed.evaluation is None and history.measured(4) == before.trimmed
    card = (folder / "README.md").read_text()
    assert "1 more were dropped afterwards, without training" in card
    assert f"measured before layers {before.kept[0]} were dropped, and does not hold of this model" in card
    assert "accuracy" not in card.split("---")[1] and "accuracy on the evaluation set" not in card


def test_publish_says_the_way_out_of_what_it_cannot_take(base, tmp_path):
    drop_layers(AutoModelForCausalLM.from_pretrained(base), [1]).save_pretrained(tmp_path / "in-memory")
    adapter, compared, unfinished = (tmp_path / name for name in ("adapter", "compared", "unfinished"))
    for folder, name in ((adapter, "adapter_config.json"), (compared, "comparison.json"), (unfinished, "x")):
        folder.mkdir()
        (folder / name).write_text("{}")
    (unfinished / "checkpoint-8").mkdir()
    for folder, way_out in (
        (tmp_path / "in-memory", "trim-trainer drop MODEL --layers 3,17 --output DIR"),
        (adapter, "Resume the run from it and call `save_model`"),
        (compared, "`trim-trainer compare` leaves numbers and no model"),
        (unfinished, r"checkpoint-8.* Resume it .*or publish one of them"),
        (tmp_path / "nowhere", "there is no such folder"),
    ):
        with pytest.raises(StagingError, match=way_out):
            stage(folder, "me/model")


def test_a_checkpoint_to_resume_from_is_published_with_the_pictures_of_its_card(make_trainer, tmp_path):
    trainer = make_trainer(target_layers=4, save_strategy="steps", save_steps=8)
    trainer.train()
    staged = stage(tmp_path / "run" / "checkpoint-16", "me/model")[0]
    assert staged.history.depth == 4
    assert {"trim_importance.png", "trim_metric.png", "model.safetensors"} <= staged.files.keys()
    assert not [name for name in staged.files if name.endswith((".pt", ".bin", ".pth"))]
