"""A family of depths on a Hub: complete or not there, what was measured and nothing else, no token where it must not be."""

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from hub import OTHER_TOKEN, READ_TOKEN, STORAGE_LIMIT, WRITE_TOKEN, HubServer
from hub.git_objects import Blob
from huggingface_hub import ModelCard
from huggingface_hub.utils import filter_repo_objects
from peft import LoraConfig
from publishing import IDS, command, compare_elsewhere, load_elsewhere, make_trainer, train_and_push
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.trainer_utils import HubStrategy

from trim_trainer import TrimHistory
from trim_trainer.hub.card import BEGIN, END
from trim_trainer.hub.staging import StagingError, check_text, stage
from trim_trainer.training.pushing import start_pushes

REPO = "me/tiny-trimmed"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained") / "out"
    trainer = make_trainer(folder, save_depths=[5, 4])
    trainer.train()
    trainer.save_model()
    return folder


@pytest.fixture
def folder(trained, tmp_path):
    return shutil.copytree(trained, tmp_path / "out")


@pytest.fixture
def server():
    with HubServer() as running:
        yield running
        assert running.violations == []  # the storage never saw a token of the Hub


@pytest.fixture
def publish(server, folder, tmp_path):
    def run(token=WRITE_TOKEN, repo_id=REPO, has_xet=False, directory=folder):
        arguments = ["publish", str(directory), "--repo-id", repo_id]
        return command(arguments, server.endpoint, token, tmp_path / "home", has_xet)

    return run


@pytest.mark.parametrize("has_xet", [pytest.param(False, marks=pytest.mark.slow), True], ids=["lfs", "xet"])
def test_a_family_is_published_and_every_depth_loads(has_xet, publish, server, folder, tmp_path):
    said = publish(has_xet=has_xet)
    assert said.status == 0, said.errors
    repo = server.repo(REPO)
    assert set(repo.branches) == {"main", "depth-5", "depth-4"}
    assert set(repo.tags) == {"v1-depth-3", "v1-depth-4", "v1-depth-5"}
    for line, (revision, depth) in zip(
        said.output.splitlines(), (("depth-5", 5), ("depth-4", 4), ("main", 3)), strict=True
    ):
        assert line.startswith(f"{revision}: {depth} layers, commit {repo.head(revision)[:8]}, tag v1-depth-{depth}")
    found = load_elsewhere(REPO, ["main", "depth-5", "v1-depth-4"], server.endpoint, tmp_path / "fresh", has_xet)
    for revision, depth, local in (("main", 3, "."), ("depth-5", 5, "depth-5"), ("v1-depth-4", 4, "depth-4")):
        with torch.no_grad():
            logits = AutoModelForCausalLM.from_pretrained(folder / local)(input_ids=IDS).logits
        assert found[revision][0] == depth
        torch.testing.assert_close(torch.tensor(found[revision][1]), logits, atol=1e-5, rtol=1e-5)


def test_only_what_loads_and_what_was_measured_is_sent(publish, server, folder):
    (folder / "optimizer.pt").write_bytes(b"state")
    (folder / "checkpoint-8").mkdir()
    (folder / "checkpoint-8" / "model.safetensors").write_bytes(b"")
    assert publish().status == 0
    for revision in ("main", "depth-5"):
        names = set(server.repo(REPO).files(revision))
        assert {"config.json", "model.safetensors", "README.md", "trim_history.json", "recipe.yaml"} <= names
        assert not {name for name in names if name.endswith((".bin", ".pt", ".pth")) or "checkpoint" in name}
    sent = b"".join(
        content for revision in ("main", "depth-5") for content in server.repo(REPO).files(revision).values()
    )
    assert str(folder).encode() not in sent and WRITE_TOKEN.encode() not in sent


def test_a_second_run_sends_nothing_and_a_changed_card_stays(publish, server, folder):
    assert publish().status == 0
    repo = server.repo(REPO)
    heads = {name: repo.head(name) for name in repo.branches}
    uploaded = server.num_uploaded_bytes
    again = publish()
    assert again.status == 0 and again.output.count("unchanged at") == 3
    assert {name: repo.head(name) for name in repo.branches} == heads
    assert server.num_uploaded_bytes == uploaded

    card = repo.files("main")["README.md"].decode()
    edited = card.replace(BEGIN, f"A word from us.\n\n{BEGIN}").replace(END, f"{END}\n\n## Thanks\n\nTo all.\n")
    edited = edited.replace("library_name:", "language: en\nlibrary_name:").replace(
        "- trimmed\n", "- trimmed\n- mine\n"
    )
    repo.commit("main", {"README.md": Blob(edited.encode())}, "me", "Edit the card by hand")
    uploaded = server.num_uploaded_bytes
    (folder / "config.json").write_text((folder / "config.json").read_text().replace("\n}", ',\n  "note": 1\n}'))
    third = publish()
    assert third.status == 0 and third.output.count("unchanged at") == 2, third.errors
    assert [commit.title for commit in repo.commits("main")][1] == "Edit the card by hand"
    assert server.num_uploaded_bytes == uploaded  # the weights are there already
    files = repo.files("main")
    assert json.loads(files["config.json"])["note"] == 1
    for kept in ("A word from us.", "## Thanks", "To all.", "language: en", "- mine", "3 of its 6 decoder layers"):
        assert kept in files["README.md"].decode()


def test_the_card_names_the_repository_its_depths_and_the_base(publish, server):
    assert publish().status == 0
    cards = {name: server.repo(REPO).files(name)["README.md"].decode() for name in ("main", "depth-4")}
    assert f'from_pretrained("{REPO}")' in cards["main"]
    assert f'from_pretrained("{REPO}", revision="depth-4")' in cards["depth-4"]
    for card in cards.values():
        assert card.count("| `depth-5` | 5 |") == card.count("| `main` | 3 |") == 1
    assert "3 of its 6 decoder layers were dropped" in cards["main"]
    assert "2 of its 6 decoder layers were dropped" in cards["depth-4"]


# What a user reads, and whether it can be there that something of the run is on the Hub already.
REFUSALS = {
    "no token": (None, REPO, "there is no Hub token (run `hf auth login`"),
    "wrong token": ("hf_wrong", REPO, "the Hub does not know this token"),
    "read token": (READ_TOKEN, REPO, "this token may not write there"),
    "somebody else's": (OTHER_TOKEN, REPO, "this token may not write there"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_without_the_right_nothing_is_sent(name, publish, server):
    token, repo_id, reason = REFUSALS[name]
    said = publish(token=token, repo_id=repo_id)
    assert said.status == 2
    assert reason in said.errors and "On the Hub now: nothing of this run." in said.errors
    assert "is safe. To go on" in said.errors and f"--repo-id {repo_id}`" in said.errors
    assert server.num_uploaded_bytes == 0
    assert publish().status == 0  # with the right token


# step, kind, how many requests pass before: struck for good, then switched off and repeated.
FAULTS = {
    "create 503": ("create", 503, 0),
    "validate-yaml 500": ("validate-yaml", 500, 0),
    "preupload 500": ("preupload", 500, 0),
    "batch 503": ("batch", 503, 0),
    "a weight file cut": ("put", "cut", 0),
    "quota": ("put", 403, 0),
    "commit 500": ("commit", 500, 0),
    "second commit 500": ("commit", 500, 1),
    "last commit cut": ("commit", "cut", 2),
    "tree 500 after the commit": ("tree", 500, 2),
    "branch 500": ("branch", 500, 0),
    "tag 503": ("tag", 503, 0),
}


@pytest.mark.parametrize("name", FAULTS)
def test_each_failure_says_where_things_stand_and_can_be_repeated(name, publish, server):
    step, kind, skip = FAULTS[name]
    server.faults.add(step, kind, skip=skip, message=STORAGE_LIMIT if name == "quota" else "asked for")
    said = publish()
    assert said.status == 2, said.output
    assert said.errors.startswith("trim-trainer: Could not ") and "is safe. To go on" in said.errors
    repos = [repo for repo in server.repos.values() if repo.id == REPO]
    done = [line for line in ("depth-5", "depth-4", "main") if f"{line} (commit" in said.errors]
    for revision in done:  # what it says is there is there, whole
        assert "model.safetensors" in repos[0].files(revision)
    if not done:
        assert "On the Hub now: nothing of this run" in said.errors
    for repo in repos:  # and nothing is half there: weights only with their card
        for revision in repo.branches:
            files = repo.files(revision)
            assert ("model.safetensors" in files) == ("trim_history.json" in files)

    server.faults.clear()
    uploaded = server.num_uploaded_bytes
    again = publish()
    assert again.status == 0, again.errors
    repo = server.repo(REPO)
    assert all("model.safetensors" in repo.files(revision) for revision in ("main", "depth-5", "depth-4"))
    titles = [commit.title for commit in repo.commits("main")]
    assert len(titles) == len(set(titles))  # no commit twice
    assert server.num_uploaded_bytes >= uploaded


def test_a_commit_whose_answer_is_lost_is_not_made_twice(publish, server):
    server.faults.add("commit", "lost", times=1)
    said = publish()
    assert said.status == 0, said.errors
    assert sum("Publish" in commit.title for commit in server.repo(REPO).commits("depth-5")) == 1


def test_what_cannot_be_published_is_refused_before_a_call(publish, server, folder):
    shutil.copy(folder / "recipe.yaml", folder / "recipe.kept")
    for text, what in (
        ("note: /home/me/data.jsonl", "a path of this machine"),
        (f"x: hf_{'a' * 30}", "a secret"),
        ("x: [1", "is not YAML"),
        ("", "expected a mapping of settings"),
    ):
        (folder / "recipe.yaml").write_text(text)
        said = publish()
        assert said.status == 2 and what in said.errors and "recipe.yaml" in said.errors
    shutil.copy(folder / "recipe.kept", folder / "recipe.yaml")
    weights = folder / "depth-4" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    said = publish()
    assert said.status == 2 and "is cut short or damaged" in said.errors
    assert server.log == []


def test_a_run_on_local_files_is_published_without_their_place(publish, server, folder):
    local = {"dataset_name": "/home/me/notes.jsonl", "distill_from": "/home/me/runs/teacher"}
    for each in (folder, folder / "depth-5", folder / "depth-4"):
        history = json.loads((each / "trim_history.json").read_text())
        history["card"] |= {"recipe": history["card"]["recipe"] | local, "dataset_name": local["dataset_name"]}
        (each / "trim_history.json").write_text(json.dumps(history))
        (each / "recipe.yaml").write_text(yaml.safe_dump(history["card"]["recipe"]))
    said = publish()
    assert said.status == 0, said.errors
    repo = server.repo(REPO)
    for revision in ("main", "depth-5"):
        files = repo.files(revision)
        recipe = yaml.safe_load(files["recipe.yaml"])
        assert (recipe["dataset_name"], recipe["distill_from"]) == ("./notes.jsonl", "./teacher")
        assert json.loads(files["trim_history.json"])["card"]["dataset_name"] == "./notes.jsonl"
        assert b"/home/me" not in b"".join(files[name] for name in ("README.md", "recipe.yaml", "trim_history.json"))
    assert local["dataset_name"] in (folder / "recipe.yaml").read_text()  # which still repeats the run here


def test_a_folder_that_is_no_checkpoint_is_refused(tmp_path):
    with pytest.raises(StagingError, match="holds no trim_history.json"):
        stage(tmp_path, REPO)


@pytest.mark.parametrize(
    "text", ["see https://huggingface.co/a/b/c", "and/or either/or/neither", "a ratio of 3/4/5", "~/x/y"]
)
def test_what_looks_like_a_path_and_is_none_is_let_through(text):
    check_text("card", text)


def test_history_of_the_published_revision_is_its_own(publish, server):
    assert publish().status == 0
    for revision, number in (("main", 3), ("depth-5", 1)):
        history = json.loads(server.repo(REPO).files(revision)["trim_history.json"])
        assert sum(len(entry["dropped"]) for entry in history["rounds"]) == number


PUSHING = {
    "push_to_hub": True,
    "hub_model_id": REPO,
    "save_strategy": "steps",
    "save_steps": 4,
    "hub_always_push": True,
}


@pytest.mark.parametrize(
    "strategy",
    [pytest.param("every_save", marks=pytest.mark.slow), "checkpoint", pytest.param("end", marks=pytest.mark.slow)],
)
def test_the_strategies_of_the_trainer_push_what_loads(strategy, server, tmp_path):
    settings = PUSHING | {"hub_strategy": strategy, "save_depths": [5]}
    said = train_and_push(tmp_path / "out", settings, server.endpoint, WRITE_TOKEN, tmp_path / "home")
    assert said.status == 0, said.errors
    assert said.output.splitlines() == ["depth-5 5", "main 3"]
    repo = server.repo(REPO)
    titles = [commit.title for commit in repo.commits("main")]
    assert any("Training in progress" in title for title in titles) == (strategy != "end")
    names = set(repo.files("main"))
    assert ("last-checkpoint/optimizer.pt" in names) == (strategy == "checkpoint")
    assert not any(name.endswith("training_args.bin") for name in names)
    found = load_elsewhere(REPO, ["main", "depth-5"], server.endpoint, tmp_path / "fresh")
    assert [found[revision][0] for revision in ("main", "depth-5")] == [3, 5]


def test_a_push_in_the_background_that_failed_is_told(server, tmp_path):
    server.faults.add("commit", 403, times=1)
    settings = PUSHING | {"hub_strategy": "every_save"}
    said = train_and_push(tmp_path / "out", settings, server.endpoint, WRITE_TOKEN, tmp_path / "home")
    assert said.status == 0
    assert said.errors.count("A push during training failed: this token may not write there") == 1
    assert "are safe; `push_to_hub` publishes the result" in said.errors


@pytest.mark.slow
def test_the_quickstart_publishes_three_depths_that_load_with_transformers_alone(server, tmp_path):
    """SmolLM2-135M by the quickstart recipe, shortened, with Xet: needs what `make install` installs."""
    folder, recipe = tmp_path / "quickstart", Path(__file__).parents[2] / "recipes" / "quickstart.yaml"
    options = {"--save_depths": "26 23", "--max_steps": "24", "--calibration_size": "8", "--output_dir": str(folder)}
    arguments = [word for option, values in options.items() for word in (option, *values.split())]
    subprocess.run([sys.executable, "-m", "trim_trainer.cli", "train", "--config", recipe, *arguments], check=True)
    said = command(
        ["publish", str(folder), "--repo-id", REPO], server.endpoint, WRITE_TOKEN, tmp_path / "home", has_xet=True
    )
    assert said.status == 0, said.errors
    revisions = {"main": 20, "depth-26": 26, "depth-23": 23}
    assert set(server.repo(REPO).branches) == revisions.keys()
    assert set(server.repo(REPO).tags) == {f"v1-depth-{depth}" for depth in revisions.values()}
    compare_elsewhere(server, REPO, folder, revisions, tmp_path / "fresh")


def test_the_way_out_repeats_all_that_was_asked_for(server, trained, tmp_path):
    """A repository that was to be private is not made public by the line that is pasted."""
    folder = shutil.copytree(trained, tmp_path / "my run")
    server.faults.add("create", 503)
    words = ["publish", str(folder), "--repo-id", REPO, "--private", "--commit-message", "First try"]
    said = command(words, server.endpoint, WRITE_TOKEN, tmp_path / "home", False)
    line = re.search("`trim-trainer (.*?)`", said.errors)[1]
    assert shlex.split(line) == words
    server.faults.clear()
    assert command(shlex.split(line), server.endpoint, WRITE_TOKEN, tmp_path / "home", False).status == 0
    assert server.repo(REPO).private


def test_weights_that_changed_since_they_were_measured_are_not_published(folder):
    model = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        model.model.norm.weight.mul_(1.5)
    model.save_pretrained(folder)
    with pytest.raises(StagingError, match="holds other weights than those that trim_history.json speaks of"):
        stage(folder, REPO)


def test_every_file_of_a_tokenizer_is_published_and_a_template_may_speak_of_paths(folder):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = {
        "default": "{% for m in messages %}{{ m.content }} /mnt/data/here {% endfor %}", "tool_use": "{{ messages }}"
    }  # fmt: skip
    tokenizer.save_pretrained(folder)
    (folder / "tekken.json").write_text("{}")
    (folder / "own.tiktoken").write_text("YQ== 0")
    wanted = {"chat_template.jinja", "additional_chat_templates/tool_use.jinja", "tekken.json", "own.tiktoken"}
    assert wanted <= stage(folder, REPO)[-1].files.keys()
    (folder / "additional_chat_templates" / "tool_use.jinja").write_text(f"hf_{'a' * 30}")
    with pytest.raises(StagingError, match="tool_use.jinja' holds a secret"):
        stage(folder, REPO)


class Recorder:
    """In place of the Hub: what a push on the way would send."""

    def __init__(self, **kwargs):
        self.sent = {}

    def upload_folder(self, folder_path, allow_patterns=None, ignore_patterns=None, **kwargs):
        names = [path.relative_to(folder_path).as_posix() for path in Path(folder_path).rglob("*") if path.is_file()]
        PUSHED.extend(filter_repo_objects(names, allow_patterns=allow_patterns, ignore_patterns=ignore_patterns))

    def create_commit(self, operations, **kwargs):
        RESUMABLE.extend(operations)


PUSHED, RESUMABLE = [], []


@pytest.mark.parametrize("peft_config", [None, LoraConfig(r=4, target_modules=["q_proj"])], ids=["whole", "lora"])
def test_what_is_pushed_on_the_way_loads_and_names_no_place(peft_config, tmp_path, monkeypatch):
    monkeypatch.setattr("trim_trainer.training.pushing.HfApi", Recorder)
    PUSHED.clear()
    RESUMABLE.clear()
    trainer = make_trainer(tmp_path / "out", peft_config=peft_config, save_strategy="steps", save_steps=6)
    trainer.recipe = {"dataset_name": "/home/me/patients.jsonl", "target_layers": 3}
    trainer.train()
    checkpoint = tmp_path / "out" / "checkpoint-6"
    assert "/home/me" in (checkpoint / "trim_history.json").read_text()
    trainer.push_in_progress, trainer.hub_model_id = None, REPO  # as of a run that pushes
    trainer.args.hub_strategy = HubStrategy.CHECKPOINT
    start_pushes(trainer, str(checkpoint))
    resumable = {each.path_in_repo: each.path_or_fileobj for each in RESUMABLE}
    assert {"last-checkpoint/trim_run.json", "last-checkpoint/optimizer.pt"} <= resumable.keys()
    assert "last-checkpoint/training_args.bin" not in resumable
    assert (
        json.loads(resumable["last-checkpoint/trim_history.json"])["card"]["recipe"]["dataset_name"]
        == "./patients.jsonl"
    )
    assert PUSHED == [] if peft_config else {"config.json", "model.safetensors", "tokenizer.json"} <= set(PUSHED)
    assert not {"trim_history.json", "trim_run.json", "adapter_config.json", "README.md"} & set(PUSHED)


def test_what_a_script_tells_the_card_stays_on_it(server, tmp_path, monkeypatch):
    trainer = make_trainer(tmp_path / "out")
    trainer.train()
    with pytest.raises(
        TypeError, match="`push_to_hub` knows no `licence`. The model is saved, in '.*out': `trim-trainer publish`"
    ):
        trainer.push_to_hub(licence="mit", tags="mine")
    assert "mine" in TrimHistory.load(tmp_path / "out").card.tags  # nothing that was trained or said is lost
    with pytest.raises(ValueError, match="leave `blocking`, `revision` and `hub_revision` out. The model is saved"):
        trainer.push_to_hub(blocking=False)
    monkeypatch.setattr("trim_trainer.training.trainer.publish_run", lambda *_: None)
    trainer.push_to_hub(dataset_name="me/data", tags=["mine"])
    for _ in range(2):
        card = ModelCard((tmp_path / "out" / "README.md").read_text())
        assert card.data.datasets == ["me/data"] and "mine" in card.data.tags
        assert TrimHistory.load(tmp_path / "out").card.dataset_name == "me/data"
        trainer.save_model()


def test_a_card_that_a_script_writes_itself_says_to_publish_what_it_says(tmp_path):
    trainer = make_trainer(tmp_path / "out", save_depths=[5])
    trainer.train()
    trainer.save_model()
    trainer.create_model_card(dataset_name="me/data", tags=["mine"])
    for staged in stage(tmp_path / "out", REPO):
        assert staged.history.card.dataset_name == "me/data" and "mine" in staged.history.card.tags
        assert staged.history.card.model_name == staged.folder.name


def test_cards_on_the_way_name_no_other_model_and_forget_nothing(tmp_path):
    """SFTTrainer writes a card beside each checkpoint, also where the run keeps a depth in a folder of its own."""
    trainer = make_trainer(tmp_path / "out", save_depths=[5])
    trainer.create_model_card(dataset_name="me/data")
    trainer.train()
    trainer.save_model()
    names = {place: TrimHistory.load(tmp_path / "out" / place).card.model_name for place in (".", "depth-5")}
    assert names == {".": "out", "depth-5": "depth-5"}
    assert TrimHistory.load(tmp_path / "out").card.dataset_name == "me/data"
