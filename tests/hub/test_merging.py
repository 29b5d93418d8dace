"""What people changed in a published card stays, in the metadata as in the text; the rest is renewed."""

import json
import shutil

import pytest
import yaml
from hub import WRITE_TOKEN, HubServer
from hub.git_objects import Blob
from hub.repos import Repo
from publishing import command, make_trainer

from trim_trainer.hub.merging import BEGIN, END, Card, merge_cards

REPO = "me/tiny-trimmed"
WROTE = {
    "base_model": "org/base", "base_model_relation": "finetune", "license": "apache-2.0", "pipeline_tag": "text-generation",
    "tags": ["trl", "trimmed"], "datasets": ["org/data"],
}  # fmt: skip


def card(metadata, text="\n"):
    return f"---\n{yaml.safe_dump(metadata, sort_keys=False)}---\n{text}{BEGIN}\n# Tiny\n{END}{text}"


def number(value, metric="accuracy", dataset="org/data", name="accuracy (n = 24)"):
    metric = {"type": metric, "value": value, "name": name}
    return {"task": {"type": "multiple-choice"}, "dataset": {"type": dataset, "name": dataset}, "metrics": [metric]}


def edited(metadata, wrote=WROTE, new=None):
    """The metadata after people made `metadata` of `wrote`, and `new` was published over it."""
    published = merge_cards(None, card(wrote))
    head = published[: published.index("---\n", 4)]
    by_hand = published.replace(head, f"---\n{metadata if isinstance(metadata, str) else yaml.safe_dump(metadata)}", 1)
    merged = merge_cards(by_hand, card(new or wrote))
    assert merge_cards(merged, card(new or wrote)) == merged  # and again, which changes nothing
    return Card.read(merged).metadata


OWN = {"license": "other", "license_name": "own", "license_link": "https://own.example/license"}
CHANGES = {
    "the licence": {"license": "mit"},
    "a licence of their own": OWN,
    "the base": {"base_model": "org/base-instruct"},
    "a tag that they took out": {"tags": ["trl"]},
    "a tag that they put in": {"tags": ["mine", "trl", "trimmed"]},
    "the data": {"datasets": ["org/other", "org/data"]},
    "what is not ours": {"language": ["en", "no"], "extra_gated_prompt": "Please", "widget": [{"text": "x"}]},
    "the kind of task": {"pipeline_tag": "question-answering"},
}


@pytest.mark.parametrize("what", CHANGES)
def test_what_people_changed_stays_and_the_rest_is_renewed(what):
    new = WROTE | {"pipeline_tag": "text2text-generation", "library_name": "transformers"}
    found = edited(WROTE | CHANGES[what], new=new)
    assert found == new | CHANGES[what]


def test_what_people_took_out_stays_out():
    left = {name: value for name, value in WROTE.items() if name not in ("license", "datasets", "pipeline_tag")}
    assert edited(left) == left


def test_a_licence_with_its_name_and_place_is_one_thing():
    assert edited(WROTE | {"license": "mit"}, new=WROTE | OWN)["license"] == "mit"
    assert not {"license_name", "license_link"} & edited(WROTE | {"license": "mit"}, new=WROTE | OWN).keys()
    assert edited(WROTE, new=WROTE | OWN) == WROTE | OWN
    assert edited(WROTE | OWN, wrote=WROTE | OWN) == WROTE | OWN
    assert edited(WROTE | OWN, wrote=WROTE | OWN, new=WROTE) == WROTE  # the base has another licence now


def test_what_is_no_longer_ours_goes():
    assert edited(WROTE, new=WROTE | {"tags": ["trl", "new"], "datasets": []})["tags"] == ["trl", "new"]
    assert "datasets" not in edited(WROTE, new={key: WROTE[key] for key in WROTE if key != "datasets"})


def test_a_number_of_people_stays_and_ours_is_renewed_when_it_is_measured_anew():
    wrote = WROTE | {"model-index": [{"name": "tiny", "results": [number(0.5)]}]}
    theirs = WROTE | {"model-index": [{"name": "Tiny", "results": [number(0.5, name="accuracy"), number(0.9, "f1")]}]}
    assert edited(theirs, wrote) == theirs
    new = WROTE | {"model-index": [{"name": "tiny", "results": [number(0.75)]}]}
    index = edited(theirs, wrote, new)["model-index"][0]
    assert index["name"] == "Tiny"
    assert [(each["type"], each["value"]) for result in index["results"] for each in result["metrics"]] == [
        ("accuracy", 0.75), ("f1", 0.9),
    ]  # fmt: skip
    assert "model-index" not in edited(wrote, wrote, WROTE)  # not measured any more
    assert "model-index" not in edited(WROTE, wrote)  # taken out


def test_a_card_that_people_wrote_first_keeps_its_values():
    theirs = {"license": "mit", "tags": ["mine"], "pipeline_tag": "summarization", "extra_gated_prompt": "Please"}
    merged = Card.read(merge_cards(f"---\n{yaml.safe_dump(theirs)}---\n# Mine\n\nHand-made.\n", card(WROTE | OWN)))
    expected = WROTE | theirs | {"tags": ["mine", "trl", "trimmed"]}
    assert merged.metadata == expected  # their licence, without the name and the place of ours
    assert "Hand-made." in merged.after


def test_words_are_read_as_the_hub_reads_them():
    found = edited("language: no\ncreated: 2024-05-01\nlicense: apache-2.0\nextra_gated_heading: yes\n")
    assert (found["language"], found["created"], found["extra_gated_heading"]) == ("no", "2024-05-01", "yes")


@pytest.mark.parametrize("head", ["- a\n- b\n", "a: [1\n"])
def test_metadata_that_are_none_are_said_to_be(head):
    with pytest.raises(ValueError, match="the metadata of README.md are"):
        merge_cards(f"---\n{head}---\n# x\n", card(WROTE))


def test_text_of_people_stays_where_they_changed_it_last():
    first = merge_cards(None, card(WROTE, "\nFrom here.\n"))
    assert merge_cards(first, card(WROTE, "\nFrom here, later.\n")).count("From here, later.") == 2
    on_the_hub = first.replace("From here.", "From there.")
    assert merge_cards(on_the_hub, card(WROTE, "\nFrom here, later.\n")).count("From there.") == 2


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained") / "out"
    trainer = make_trainer(folder)
    trainer.recipe = {"base_model": "org/base", "target_layers": 3}
    trainer.train()
    trainer.save_model()
    return folder


@pytest.fixture
def folder(trained, tmp_path):
    return shutil.copytree(trained, tmp_path / "out")


@pytest.fixture
def server():
    with HubServer() as running:
        base = running.repos["model", "org/base"] = Repo("model", "org/base")
        said = {"license": "other", "license_name": "base-1.0", "license_link": "LICENSE.md"}
        base.commit("main", {"README.md": Blob(f"---\n{yaml.safe_dump(said)}---\n".encode())}, "org", "Card")
        yield running


def head_of(server):
    return yaml.safe_load(server.repo(REPO).files()["README.md"].decode().split("---")[1])


def test_the_base_s_licence_comes_with_its_name_and_place_and_people_s_stays(server, folder, tmp_path):
    def publish():
        said = command(["publish", str(folder), "--repo-id", REPO], server.endpoint, WRITE_TOKEN, tmp_path / "home")
        assert said.status == 0, said.errors
        return said.output

    publish()
    head = head_of(server)
    assert (head["license"], head["license_name"]) == ("other", "base-1.0")
    assert head["license_link"] == f"{server.endpoint}/org/base/blob/main/LICENSE.md"
    repo = server.repo(REPO)
    text = repo.files()["README.md"].decode()
    lines = [line for line in text.splitlines(keepends=True) if not line.startswith(("license_", "- trl"))]
    by_hand = "".join(lines).replace("license: other", "license: mit")
    repo.commit("main", {"README.md": Blob(by_hand.encode())}, "me", "Our licence")
    (folder / "config.json").write_text((folder / "config.json").read_text().replace("\n}", ',\n  "note": 1\n}'))
    for _ in range(2):
        publish()
        head = head_of(server)
        assert head["license"] == "mit" and "license_name" not in head and "trl" not in head["tags"]
    assert "unchanged at" in publish()


def test_what_people_changed_in_the_folder_s_card_is_published(server, folder, tmp_path):
    path = folder / "README.md"
    path.write_text(path.read_text().replace("---\n", "---\nlicense: mit\n", 1).replace(BEGIN, f"From us.\n\n{BEGIN}"))
    said = command(["publish", str(folder), "--repo-id", REPO], server.endpoint, WRITE_TOKEN, tmp_path / "home")
    assert said.status == 0, said.errors
    assert head_of(server)["license"] == "mit" and "license_name" not in head_of(server)
    assert "From us." in server.repo(REPO).files()["README.md"].decode()
    path.write_text("---\n- a\n---\n")
    said = command(["publish", str(folder), "--repo-id", REPO], server.endpoint, WRITE_TOKEN, tmp_path / "home")
    assert said.status == 2 and "README.md': the metadata of README.md are a list" in said.errors


def test_saving_again_keeps_what_people_changed_in_the_card(make_trainer, tmp_path):
    trainer = make_trainer(target_layers=4)
    trainer.train()
    trainer.save_model()
    path = tmp_path / "run" / "README.md"
    path.write_text(path.read_text().replace(END, f"{END}\n\n## Thanks\n").replace("---\n", "---\nlicense: mit\n", 1))
    trainer.save_model()
    assert "## Thanks" in path.read_text() and Card.read(path.read_text()).metadata["license"] == "mit"
    assert json.loads((tmp_path / "run" / "trim_history.json").read_text())["card"]["license"] is None


def test_figures_of_several_evaluation_sets_stay_apart():
    def index(easy, hard):
        results = [number(easy, name="accuracy on easy (n = 24)"), number(hard, name="accuracy on hard (n = 9)")]
        return WROTE | {"model-index": [{"name": "tiny", "results": results}]}

    again = edited(index(0.5, 0.25), index(0.5, 0.25), index(0.75, 0.375))["model-index"][0]["results"]
    assert {each["name"]: each["value"] for result in again for each in result["metrics"]} == {
        "accuracy on easy (n = 24)": 0.75, "accuracy on hard (n = 9)": 0.375,
    }  # fmt: skip
