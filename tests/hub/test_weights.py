"""Two layouts of weights in one folder: the one that was trained is published, whatever loaders would take first."""

import json
import shutil

import pytest
import torch
from hub import WRITE_TOKEN, HubServer
from peft import LoraConfig, PeftModel
from publishing import IDS, command, load_elsewhere, make_trainer
from safetensors.torch import load_file, save_file
from tiny import make_model
from torch.testing import assert_close
from transformers import AutoModelForCausalLM

from trim_trainer.hub.staging import StagingError, stage
from trim_trainer.hub.weights import digest, find_layouts, weights_digest

REPO = "me/tiny-trimmed"
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run's folder, and what its model computes."""
    folder = tmp_path_factory.mktemp("trained") / "out"
    trainer = make_trainer(folder)
    trainer.train()
    trainer.save_model()
    return folder, logits(trainer.model)


@pytest.fixture
def folder(trained, tmp_path):
    return shutil.copytree(trained[0], tmp_path / "out")


def logits(model):
    with torch.no_grad():
        return model.eval()(IDS).logits


def split(folder):
    """The same weights as shards, beside the file that they lie in."""
    AutoModelForCausalLM.from_pretrained(folder).save_pretrained(folder, max_shard_size="20KB")
    return set(json.loads((folder / INDEX).read_text())["weight_map"].values())


def spoil(path):
    """Other weights of the same names and shapes."""
    save_file({name: tensor + 1 for name, tensor in load_file(path).items()}, path, metadata={"format": "pt"})


def untrained(path):
    make_model().save_pretrained(path.parent / "base")
    shutil.move(path.parent / "base" / SINGLE, path)


def test_an_adapter_that_changed_since_it_was_measured_is_not_published(tmp_path):
    trainer = make_trainer(tmp_path / "out", peft_config=LoraConfig(r=2, init_lora_weights=False), merge_adapter=False)
    trainer.train()
    trainer.save_model()
    stage(tmp_path / "out", REPO)
    path = tmp_path / "out" / "trim_history.json"
    said = path.read_text()
    layout = find_layouts(tmp_path / "out")[0]
    before = json.loads(said)  # of a version that left adapters out
    before["card"]["weights"] = digest(tmp_path / "out", layout.shards)
    path.write_text(json.dumps(before))
    stage(tmp_path / "out", REPO)
    path.write_text(said)
    spoil(tmp_path / "out" / "adapter" / "adapter_model.safetensors")
    with pytest.raises(StagingError, match="an adapter beside it holds other weights"):
        stage(tmp_path / "out", REPO)


def test_an_index_that_names_no_files_is_damaged(folder):
    split(folder)
    (folder / INDEX).write_text("{}")
    with pytest.raises(StagingError, match="index.json' is cut short or damaged: its `weight_map` does not name"):
        stage(folder, REPO)


@pytest.mark.parametrize(
    "age", [spoil, pytest.param(untrained, marks=pytest.mark.slow)], ids=["of the same depth", "of another depth"]
)
def test_shards_go_up_and_an_older_single_file_is_named(age, trained, folder, tmp_path):
    shards = split(folder)
    age(folder / SINGLE)
    shutil.rmtree(folder / "base", ignore_errors=True)
    assert not torch.equal(
        logits(AutoModelForCausalLM.from_pretrained(folder, ignore_mismatched_sizes=True)), trained[1]
    )
    with HubServer() as server:
        said = command(["publish", str(folder), "--repo-id", REPO], server.endpoint, WRITE_TOKEN, tmp_path / "home")
        assert said.status == 0, said.errors
        names = server.repo(REPO).files().keys()
        assert f"main: not sent, since loaders would take them instead: {SINGLE}\n" in said.output
        assert {INDEX, *shards} <= names and SINGLE not in names
        found = load_elsewhere(REPO, ["main"], server.endpoint, tmp_path / "fresh")["main"]
    assert found[0] == 3
    assert_close(torch.tensor(found[1]), trained[1], atol=1e-5, rtol=1e-5)


def test_a_single_file_goes_up_beside_older_shards_a_bin_and_an_adapter(folder):
    shards = split(folder)
    for name in shards:
        spoil(folder / name)
    others = {"pytorch_model.bin", "adapter_config.json", "adapter_model.safetensors", "model.fp16.safetensors"}
    for name in others:
        (folder / name).write_bytes(b"{}")
    (staged,) = stage(folder, REPO)
    assert SINGLE in staged.files
    assert set(staged.left_out) == {INDEX, *shards, *others} and not {INDEX, *shards, *others} & staged.files.keys()


def test_an_index_whose_shards_are_gone_is_no_layout(folder):
    shards = split(folder)
    for name in shards:
        (folder / name).unlink()
    (staged,) = stage(folder, REPO)
    assert SINGLE in staged.files and staged.left_out == (INDEX,)


def test_where_nothing_says_which_is_the_trained_one_it_is_refused(folder):
    history = json.loads((folder / "trim_history.json").read_text())
    history["card"]["weights"] = None
    (folder / "trim_history.json").write_text(json.dumps(history))
    split(folder)
    assert SINGLE in stage(folder, REPO)[0].files  # the same tensors: either will do
    spoil(folder / SINGLE)
    with pytest.raises(StagingError, match=f"'{SINGLE}' and the shards of '{INDEX}', and nothing says which"):
        stage(folder, REPO)


def test_weights_of_another_depth_than_the_history_s_are_refused(folder):
    untrained(folder / SINGLE)
    with pytest.raises(StagingError, match="holds no weights of 3 layers, of which trim_history.json speaks"):
        stage(folder, REPO)


def test_a_digest_is_that_of_the_tensors_however_they_lie_in_files(folder):
    before = weights_digest(folder)
    assert before == json.loads((folder / "trim_history.json").read_text())["card"]["weights"]
    split(folder)
    (folder / SINGLE).unlink()
    assert weights_digest(folder) == before
    spoil(folder / sorted(path.name for path in folder.glob("model-*.safetensors"))[0])
    assert weights_digest(folder) != before


def test_saving_over_an_earlier_save_leaves_one_model(make_trainer, tmp_path):
    run = tmp_path / "run"
    trainer = make_trainer(target_layers=4)
    trainer.train()
    run.mkdir(exist_ok=True)
    make_model(num_layers=4, seed=5).save_pretrained(run, max_shard_size="20KB")  # an earlier model, in shards
    (run / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "base_model_name_or_path": "org/gone"}))
    trainer.save_model()
    assert_close(logits(AutoModelForCausalLM.from_pretrained(run)), logits(trainer.model))
    assert not (run / INDEX).exists() and not (run / "adapter_config.json").exists()
    assert (run / "adapter_config.json.old").exists()
    assert stage(run, REPO)[0].left_out == ()


def test_a_merged_model_over_one_with_its_adapter_apart_sets_that_aside(make_trainer, tmp_path):
    trainer = make_trainer(target_layers=4, merge_adapter=False, peft_config=LoraConfig(task_type="CAUSAL_LM", r=2))
    trainer.train()
    trainer.save_model()
    run = tmp_path / "run"
    apart = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(run), run / "adapter")
    assert_close(logits(apart), logits(trainer.model), atol=1e-5, rtol=1e-5)
    assert "PeftModel.from_pretrained" in (run / "README.md").read_text()
    trainer.args.merge_adapter = True
    trainer.save_model()
    assert (run / "adapter.old").is_dir() and not (run / "adapter").exists()
    assert "PeftModel" not in (run / "README.md").read_text()
    assert not [name for name in stage(run, REPO)[0].files if "adapter" in name]
    assert_close(logits(AutoModelForCausalLM.from_pretrained(run)), logits(trainer.model), atol=2e-4, rtol=1e-3)
