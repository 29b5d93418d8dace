"""After publishing, each revision is loaded as a stranger would: fresh process, empty cache, plain loaders."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from hub import WRITE_TOKEN, HubServer
from hub.git_objects import Blob
from hub.repos import Repo
from peft import LoraConfig
from publishing import ADAPTER_LOADER, IDS, command, load_elsewhere, make_trainer
from torch.testing import assert_close

from trim_trainer import TrimTrainer
from trim_trainer.hub.layout import kind_of, stale_files
from trim_trainer.hub.staging import StagingError, stage

REPO = "me/tiny-trimmed"


class Watched(TrimTrainer):
    """Remembers what the model computed whenever it was saved."""

    seen: dict[str, torch.Tensor]

    def save_model(self, output_dir=None, _internal_call=False):
        super().save_model(output_dir, _internal_call)
        if self.is_writing_checkpoint:
            return
        was_training = self.model.training
        with torch.no_grad():
            self.__dict__.setdefault("seen", {})[Path(output_dir or "main").name] = self.model.eval()(IDS).logits
        self.model.train(was_training)


@pytest.fixture(scope="module")
def adapted(tmp_path_factory):
    """Base models and adapters apart, at three depths; and what was trained."""
    folder = tmp_path_factory.mktemp("adapted") / "out"
    lora = LoraConfig(task_type="CAUSAL_LM", r=4, init_lora_weights=False)
    trainer = make_trainer(folder, Watched, lora, save_depths=[5, 4], merge_adapter=False)
    trainer.train()
    trainer.save_model()
    return folder, trainer.seen


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained") / "out"
    trainer = make_trainer(folder, Watched, save_depths=[5])
    trainer.train()
    trainer.save_model()
    return folder, trainer.seen


@pytest.fixture
def server():
    with HubServer() as running:
        yield running


@pytest.fixture
def publish(server, tmp_path):
    def run(directory, repo_id=REPO):
        said = command(
            ["publish", str(directory), "--repo-id", repo_id], server.endpoint, WRITE_TOKEN, tmp_path / "home"
        )
        assert said.status == 0, said.errors
        return said.output

    return run


@pytest.mark.parametrize("repo_id", [REPO, "tiny-trimmed"], ids=["whole name", "bare name"])
def test_base_and_adapter_of_every_revision_are_what_was_trained(repo_id, adapted, server, publish, tmp_path):
    folder, seen = adapted
    publish(folder, repo_id)
    for revision in ("main", "depth-5", "depth-4"):
        config = json.loads(server.repo(REPO).files(revision)["adapter/adapter_config.json"])
        assert (config["base_model_name_or_path"], config["revision"]) == (REPO, revision)
    found = load_elsewhere(REPO, seen, server.endpoint, tmp_path / "fresh", loader=ADAPTER_LOADER)
    assert set(found) == {"main", "depth-5", "depth-4"}
    for revision, loaded in found.items():
        for logits in loaded:
            assert_close(torch.tensor(logits), seen[revision], atol=1e-5, rtol=1e-5)
    assert (seen["depth-5"] - seen["main"]).abs().max() > 0.1


# Left of another model: what loaders would take instead, or beside.
EARLIER = {
    "adapter_config.json": json.dumps({"base_model_name_or_path": "org/gone", "peft_type": "LORA"}),
    "adapter_model.safetensors": "x",
    "adapter/adapter_config.json": "{}",
    "model-00001-of-00002.safetensors": "x",
    "model.safetensors.index.json": '{"weight_map": {"a": "model-00001-of-00002.safetensors"}}',
    "pytorch_model.bin": "x",
    "pytorch_model-00001-of-00002.bin": "x",
    "pytorch_model.bin.index.json": "{}",
    "consolidated.safetensors": "x",
    "hf_quant_config.json": '{"quantization": {"quant_algo": "FP8"}}',
    "chat_template.jinja": "{{ 'of another model' }}",
    "tokenizer.model": "x",
}
PEOPLES = {
    "notes.md": "ours",
    "images/curve.png": "x",
    "gguf/tiny-q4.gguf": "x",
    "onnx/model.onnx": "x",
    "last-checkpoint/model.safetensors": "x",
    "training_args.bin": "x",
    ".gitignore": "x",
}


def make_repo(server, files):
    repo = server.repos["model", REPO] = Repo("model", REPO)
    repo.commit("main", {name: Blob(text.encode()) for name, text in files.items()}, "me", "Another model")
    return repo


def test_what_an_earlier_model_left_goes_in_the_same_commit_and_is_named(trained, server, publish, tmp_path):
    folder, seen = trained
    repo = make_repo(server, EARLIER | PEOPLES)
    said = publish(folder)
    for revision in ("main", "depth-5"):
        assert not EARLIER.keys() & repo.files(revision).keys()
        assert PEOPLES.keys() <= repo.files(revision).keys()
        commit = repo.commits(revision)[0]
        assert commit.title.startswith("Publish ")
        for name in EARLIER:
            assert name in commit.description and name in said
    found = load_elsewhere(REPO, seen, server.endpoint, tmp_path / "fresh")
    for revision, (depth, logits) in found.items():
        assert depth == {"main": 3, "depth-5": 5}[revision]
        assert_close(torch.tensor(logits), seen[revision], atol=1e-5, rtol=1e-5)
    assert publish(folder).count("unchanged at") == 2


def test_an_adapter_in_the_place_of_one_replaces_it(adapted, trained, server, publish, tmp_path):
    publish(adapted[0])
    folder, seen = trained
    publish(folder)
    assert not [name for name in server.repo(REPO).files("main") if "adapter" in name]
    assert [name for name in server.repo(REPO).files("depth-4") if "adapter" in name]  # a depth that stays as it was
    publish(adapted[0])
    found = load_elsewhere(REPO, ["main"], server.endpoint, tmp_path / "fresh", loader=ADAPTER_LOADER)
    for logits in found["main"]:
        assert_close(torch.tensor(logits), adapted[1]["main"], atol=1e-5, rtol=1e-5)


def test_what_people_add_to_a_published_model_stays_unless_it_is_another_model(trained, server, publish):
    publish(trained[0])
    repo = server.repo(REPO)
    added = {"chat_template.jinja": "{{ 'ours' }}", "pytorch_model.bin": "x", "notes.md": "x"}
    repo.commit("main", {name: Blob(text.encode()) for name, text in added.items()}, "me", "Add")
    said = publish(trained[0])
    assert "main: removed, since loaders would take them: pytorch_model.bin\n" in said
    assert {"chat_template.jinja", "notes.md", "model.safetensors"} <= repo.files("main").keys()


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("model-00002-of-00002.safetensors", "weights"),
        ("model.fp16.safetensors", "weights"),
        ("pytorch_model.bin.index.json", "weights"),
        ("adapter_model.bin", "adapter"),
        ("adapter/second/adapter_config.json", "adapter"),
        ("generation_config.json", "generation"),
        ("additional_chat_templates/rag.jinja", "tokenizer"),
        ("preprocessor_config.json", "processor"),
        ("adapter/README.md", None),
        ("last-checkpoint/model.safetensors", None),
        ("training_args.bin", None),
        ("model-q4.gguf", None),
    ],
)
def test_which_loader_looks_for_a_file(name, kind):
    assert kind_of(name) == kind


def test_a_tokenizer_that_people_brought_stays_where_none_is_published():
    there = ["config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"]
    staged = ["config.json", "model.safetensors"]
    assert stale_files(there, staged, ours=None) == []
    assert stale_files([*there, "merges.txt"], [*staged, "tokenizer.json"], None) == [
        "merges.txt",
        "tokenizer_config.json",
    ]


def test_code_without_which_a_model_does_not_load_goes_along_and_no_other(trained, tmp_path):
    folder = shutil.copytree(trained[0], tmp_path / "out")
    (folder / "scratch.py").write_text("TOKEN = 1\n")
    assert "scratch.py" not in stage(folder, REPO)[-1].files
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {"AutoConfig": "org/code--configuration_x.X", "AutoModelForCausalLM": "modeling_x.X"}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(StagingError, match="lacks modeling_x.py, which `auto_map` names"):
        stage(folder, REPO)
    (folder / "modeling_x.py").write_text("from .layers_x import Y\n")
    (folder / "layers_x.py").write_text("#!/usr/bin/env python\n")
    staged = stage(folder, REPO)[-1]
    assert {"modeling_x.py", "layers_x.py"} <= staged.files.keys() and staged.has_code
    (folder / "layers_x.py").write_text(f"TOKEN = 'hf_{'a' * 30}'\n")
    with pytest.raises(StagingError, match="layers_x.py' holds a secret"):
        stage(folder, REPO)
