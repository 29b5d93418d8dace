"""The recipes as they are, but for the number of steps: thin models and small data under the published names, on a Hub."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hub import WRITE_TOKEN, HubServer, Repo
from hub.git_objects import Blob
from published import NAMES
from publishing import load_elsewhere
from safetensors.torch import load_file
from tiny import make_model, make_tokenizer

from trim_trainer import TrimHistory

RECIPES = Path(__file__).parents[1] / "recipes"
COMMAND = ["-m", "trim_trainer.cli"]
# As docs/pages/processes.md says, but for the processes, which are two, on CPUs.
SHARDED = [
    *("-m", "accelerate.commands.launch", "--config_file", str(RECIPES / "accelerate" / "fsdp2.yaml")),
    *("--num_processes", "2", "--mixed_precision", "no", str(Path(__file__).parent / "helpers" / "sharded_on_cpu.py")),
]


def model_repo(name, num_layers, folder):
    """The repository of a thin Qwen3 with as many layers as the one of this name."""
    make_model("qwen3", num_layers, tie_word_embeddings=True).save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    repo = Repo("model", name)
    repo.commit("main", {path.name: Blob(path.read_bytes()) for path in folder.iterdir()}, "me", "Upload")
    return repo


@pytest.fixture
def run(tmp_path):
    """Returns a function that runs a recipe in a process of its own, against a Hub that has what it names."""
    with HubServer() as server:

        def train(recipe, num_layers, *options, launcher=COMMAND):
            path = RECIPES / f"{recipe}.yaml"
            model, (data, published) = (
                yaml.safe_load(path.read_text())["model_name_or_path"],
                NAMES[recipe.split("-")[0]],
            )
            server.repos["model", model] = model_repo(model, num_layers, tmp_path / "model")
            server.repos["dataset", data] = published.repo(data)
            environment = os.environ | server.environment(tmp_path / "home", WRITE_TOKEN, xet=False)
            done = subprocess.run(
                [sys.executable, *launcher, "train", "--config", str(path), *options],
                env=environment | {"OMP_NUM_THREADS": "1"}, cwd=tmp_path, capture_output=True, text=True, timeout=300,
            )  # fmt: skip
            return done, server

        yield train


@pytest.mark.parametrize(
    "recipe", ["finance", *(pytest.param(name, marks=pytest.mark.slow) for name in ("medical", "legal"))]
)
def test_a_recipe_trains_publishes_and_its_revisions_load(recipe, run, tmp_path):
    options = ["--max_steps", "10", "--save_depths", "20", "--push_to_hub", "--hub_model_id", f"me/{recipe}"]
    done, server = run(recipe, 28, *options)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "28 → 14 layers" in done.stdout

    repo, folder = server.repo(f"me/{recipe}"), tmp_path / "out" / recipe
    assert len(TrimHistory.from_json(repo.files()["trim_history.json"].decode()).kept) == 14
    card = repo.files()["README.md"].decode()
    data, _ = NAMES[recipe]
    assert f"- {data}" in card and "Qwen/Qwen3-0.6B" in card
    found = load_elsewhere(f"me/{recipe}", ["main", repo.head(), "depth-20"], server.endpoint, tmp_path / "fresh")
    assert [depth for depth, _ in found.values()] == [14, 14, 20]
    for revision, path in (("main", folder), ("depth-20", folder / "depth-20")):
        published = repo.files(revision)["model.safetensors"]
        assert published == (path / "model.safetensors").read_bytes()
    assert load_file(folder / "model.safetensors")


@pytest.mark.slow
@pytest.mark.parametrize("recipe", NAMES)
def test_its_twin_for_8b_trains_sharded(recipe, run, tmp_path):
    done, _ = run(f"{recipe}-8b", 36, "--max_steps", "6", "--bf16", "false", launcher=SHARDED)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "36 → 18 layers" in done.stdout and done.stdout.count("Saved, reloaded and compared") == 1
    history = TrimHistory.load(tmp_path / "out" / f"{recipe}-8b")
    assert len(history.kept) == 18 and history.compensation_size == 0


@pytest.mark.slow
def test_its_twin_refuses_what_sharded_layers_do_not_allow(run):
    done, _ = run("medical-8b", 36, "--max_steps", "6", "--compensation_size", "64", launcher=SHARDED)
    assert done.returncode != 0
    assert (
        "`compensation_size` is 64, with FSDP, which spreads weights over all processes. Set it to 0." in done.stderr
    )
