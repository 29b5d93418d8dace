"""A checkpoint of which a JSON file is cut short or holds something else: named in one line, before anything is done."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from tiny import make_examples, make_model, make_tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

from trim_trainer import TrimConfig, TrimHistory, TrimTrainer
from trim_trainer.checkpoints.loading import Source
from trim_trainer.cli.main import main
from trim_trainer.comparison.cells import CellResult
from trim_trainer.hub.merging import Card, merge_cards
from trim_trainer.hub.staging import StagingError, stage
from trim_trainer.records.run_record import RunRecord

NAMES = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "trim_history.json")
WRONG = {"cut": b'{"a": ', "empty": b"", "list": b"[]", "null": b"null", "binary": b"\xff\xfe\x00\x80"}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A model of five layers that was trimmed by hand, with all that belongs to it."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("whole")
    make_model().save_pretrained(folder / "model")
    make_tokenizer().save_pretrained(folder / "model")
    assert main(["drop", str(folder / "model"), "--layers", "2", "--output", str(folder / "trimmed")]) == 0
    Dataset.from_list(make_examples(24)).to_json(folder / "data.jsonl")
    return folder / "trimmed"


@pytest.fixture
def broken(whole, tmp_path, monkeypatch):
    """Copies it as `model` into an empty working directory, with another content of one file."""
    monkeypatch.chdir(tmp_path)

    def make(name: str, content: bytes) -> Path:
        shutil.copytree(whole, "model")
        Path("model", name).write_bytes(content)
        return Path("model")

    return make


@pytest.mark.parametrize("how", WRONG)
@pytest.mark.parametrize("name", NAMES)
def test_a_damaged_file_is_named_before_anything_is_written_or_sent(name, how, broken, capsys):
    folder = broken(name, WRONG[how])
    assert main(["drop", "model", "--layers", "1", "--output", "out"]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("trim-trainer")]
    assert f"'model/{name}' is cut short or damaged" in line and not Path("out").exists()
    with pytest.raises(StagingError, match=f"{name}' is cut short or damaged"):
        stage(folder, "me/model")


@pytest.mark.parametrize("name", NAMES)
def test_training_does_not_begin_with_a_damaged_one(name, broken, whole, capsys):
    broken(name, WRONG["cut"])
    words = [
        "--model_name_or_path",
        "model",
        "--dataset_name",
        str(whole.parent / "data.jsonl"),
        "--output_dir",
        "out",
    ]
    words += ["--target_layers", "4", "--calibration_size", "4", "--bf16", "false"]
    assert main(["train", *words]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("trim-trainer")]
    assert f"'model/{name}' is cut short or damaged" in line and not Path("out").exists()


def test_a_script_that_brings_a_tokenizer_does_not_need_the_one_beside_the_model(broken, tmp_path):
    broken("tokenizer.json", WRONG["cut"])
    args = TrimConfig("out", target_layers=4, calibration_size=4, bf16=False, report_to="none")
    data = Dataset.from_list(make_examples(24))
    assert TrimTrainer("model", args, train_dataset=data, processing_class=make_tokenizer()).history.num_layers == 5


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("config.json", {"num_hidden_layers": "six"}, "expected int, got str"),
        ("config.json", {"num_attention_heads": 3}, "not a multiple of the number of attention heads"),
        ("config.json", {"hidden_act": "nonsense"}, "KeyError, 'nonsense'"),
        ("config.json", {"dtype": "float99"}, "float99"),
        ("tokenizer.json", {"added_tokens": 3}, "TypeError"),
        ("tokenizer.json", {"model": {"type": "nonsense"}}, "cannot be loaded: "),
    ],
)
def test_values_that_nothing_can_be_made_of_are_no_traceback(name, changes, message, broken, whole, capsys):
    broken(name, json.dumps(json.loads((whole / name).read_text()) | changes).encode())
    assert main(["drop", "model", "--layers", "1", "--output", "out"]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("trim-trainer")]
    assert "`model` 'model' cannot be loaded: " in line and message in line and not Path("out").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rounds": [{"a": 1}]}, "unexpected keyword argument 'a'"),
        ({"card": {"a": 1}}, "a"),
        ({"later": 1}, "unexpected keyword argument 'later'"),
        ({"format_version": None}, "`format_version` is None"),
        ({"measurements": None}, "not iterable"),
    ],
)
def test_a_history_of_other_content_is_named(changes, message, broken, whole):
    content = json.loads((whole / "trim_history.json").read_text()) | changes
    folder = broken("trim_history.json", json.dumps(content).encode())
    with pytest.raises(ValueError, match=f"'model/trim_history.json' is cut short or damaged: .*{message}"):
        TrimHistory.load(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_hidden_layers": 7}, "'model/config.json' is of 7 layers, and trim_history.json beside it speaks of 5"),
        ({"model_type": None}, "'model/config.json' has no `model_type`"),
    ],
)
def test_a_config_of_another_model_is_not_published(changes, message, broken, whole):
    content = json.loads((whole / "config.json").read_text()) | changes
    with pytest.raises(StagingError, match=message):
        stage(broken("config.json", json.dumps(content).encode()), "me/model")


def test_an_adapter_without_a_base_model_says_so(tmp_path):
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    with pytest.raises(ValueError, match="names no `base_model_name_or_path`"):
        Source.of(str(tmp_path)).load_config()


def test_other_records_are_named_too(tmp_path):
    (tmp_path / "trim_run.json").write_text("[1]")
    with pytest.raises(ValueError, match="trim_run.json' is cut short or damaged: an object"):
        RunRecord.load(tmp_path)
    (tmp_path / "result.json").write_text('{"cell": {}}')
    with pytest.raises(
        ValueError, match="result.json' is no result of a cell: .*Delete it, and the cell is run again"
    ):
        CellResult.load(tmp_path)


def test_a_card_whose_record_somebody_edited_is_merged_as_one_without():
    card = "---\nlicense: mit\n---\n<!-- trim-trainer: generated from here -->\n# A\n<!-- trim-trainer: generated to here -->\n"
    written = merge_cards(None, card)
    edited = written.replace('"metadata"', "metadata")
    assert Card.read(written).written == {"license": "mit"} and Card.read(edited).written is None
    assert merge_cards(edited, card.replace("# A", "# B")).count("# B") == 1


def test_the_history_beside_the_model_is_of_the_beginning_of_training(broken, tmp_path):
    folder = broken("README.md", b"")
    args = TrimConfig("out", target_layers=4, calibration_size=4, max_steps=3, bf16=False, report_to="none")
    trainer = TrimTrainer(str(folder), args, train_dataset=Dataset.from_list(make_examples(24)))
    trainer.train()
    (folder / "trim_history.json").write_bytes(WRONG["cut"])  # as where it is copied anew meanwhile
    trainer.save_model("out")
    assert any("had lost 1 of 6 layers before: 2" in caveat for caveat in TrimHistory.load("out").card.caveats)
    assert AutoModelForCausalLM.from_pretrained("out").config.num_hidden_layers == 4
    assert AutoTokenizer.from_pretrained("out")("the cat").input_ids
