"""What was exported, on a branch of its own beside the checkpoint: only as it was compared, with a card that states that."""

import json
import shutil

import pytest
from exports import save_trimmed
from hub import WRITE_TOKEN, HubServer
from publishing import command

from trim_trainer.hub.export_card import LIBRARIES, write_export_card
from trim_trainer.hub.staging import sha256
from trim_trainer.records.export_report import Agreement, ExportReport
from trim_trainer.records.history import TrimHistory
from trim_trainer.records.measurement import Quality

REPO = "me/tiny-trimmed"
FILES = {
    "openvino": {"openvino_model.xml": "<net/>", "openvino_model.bin": "weights", "config.json": "{}"},
    "onnx": {"model.onnx": "graph", "model.onnx.data": "weights", "genai_config.json": "{}"},
    "gptq": {"model.safetensors": "weights", "config.json": '{"quantization_config": {"dataset": null}}'},
}


@pytest.fixture(scope="module")
def trimmed(tmp_path_factory):
    return save_trimmed(tmp_path_factory.mktemp("trimmed"), "out")


@pytest.fixture
def export(trimmed, tmp_path):
    """What `export` leaves, as far as publishing looks at it."""

    def make(target="openvino", weights="int8"):
        folder = tmp_path / f"{target}-{weights}"
        folder.mkdir()
        for name, text in FILES[target].items():
            (folder / name).write_text(text)
        quality = [Quality(40, 80, loss, accuracy) for loss, accuracy in ((0.5, 0.75), (0.625, 0.725))]
        report = ExportReport(
            target, weights, str(trimmed), 4, 1000, 7, 28, Agreement(128, 96, False, 0.5, 0.53125), "eval", *quality,
            versions={"optimum-intel": "2.2.0"}, files={name: sha256(folder / name) for name in FILES[target]},
        )  # fmt: skip
        history = TrimHistory.load(trimmed)
        history.save(folder)
        report.save(folder)
        write_export_card(folder, report, history, folder.name)
        return folder

    return make


@pytest.fixture
def server():
    with HubServer() as running:
        yield running
        assert running.violations == []


@pytest.fixture
def publish(server, tmp_path):
    def run(directory):
        return command(["publish", str(directory), "--repo-id", REPO], server.endpoint, WRITE_TOKEN, tmp_path / "home")

    return run


def read(server, branch, name):
    return server.repo(REPO).files(branch)[name].decode()


def test_exports_are_branches_beside_the_checkpoint(server, publish, trimmed, export):
    assert publish(trimmed).status == 0
    main_before = server.repo(REPO).branches["main"]
    for target, weights in (("openvino", "int8"), ("onnx", "int4"), ("gptq", "int4")):
        said = publish(export(target, weights))
        assert said.status == 0, said.errors
        branch = f"{target}-{weights}"
        assert f"{branch}: 4 layers" in said.output and f"tag v1-{branch}" in said.output
        there = server.repo(REPO).files(branch).keys()
        assert set(FILES[target]) | {"export.json", "trim_history.json", "README.md"} <= there
        assert ("model.safetensors" in there) == (target == "gptq")
        card = read(server, branch, "README.md")
        assert f'revision="{branch}"' in card and "96 of 128 greedy tokens" in card
        assert "| 75.0 % (59.8–85.8 %) | 72.5 %" in card and "0.531 nats per token for its own 0.500" in card
        report = json.loads(read(server, branch, "export.json"))
        assert report["source"] == "./out"
    assert server.repo(REPO).branches["main"] == main_before
    assert set(server.repo(REPO).tags) == {"v1-depth-4", "v1-openvino-int8", "v1-onnx-int4", "v1-gptq-int4"}


def test_a_second_time_nothing_is_sent_and_a_new_version_has_a_new_tag(server, publish, export):
    folder = export()
    assert publish(folder).status == 0
    assert "unchanged at" in publish(folder).output
    (folder / "openvino_model.bin").write_text("other weights")
    said = publish(folder)
    assert said.status == 2 and "openvino_model.bin is missing or has changed. Export it again." in said.errors
    report = ExportReport.load(folder)
    files = report.files | {"openvino_model.bin": sha256(folder / "openvino_model.bin")}
    ExportReport(**vars(report) | {"files": files}).save(folder)
    assert "tag v2-openvino-int8" in publish(folder).output
    assert read(server, "openvino-int8", "openvino_model.bin") == "other weights"


def test_what_was_not_trimmed_here_is_not_published(publish, export, server):
    folder = export()
    (folder / "trim_history.json").unlink()
    said = publish(folder)
    assert said.status == 2 and "was exported from a model that was not trimmed here" in said.errors
    folder = shutil.move(folder, folder.with_name("damaged"))
    (folder / "export.json").write_text("{}")
    said = publish(folder)
    assert said.status == 2 and "is no report of an export" in said.errors
    assert server.repos == {}


def test_a_card_says_how_each_kind_is_loaded(trimmed, export):
    for target in LIBRARIES:
        folder = export(target, "int4")
        card = (folder / "README.md").read_text()
        assert f'"{folder.name}"' in card and "```python" in card and "on its own card" in card
