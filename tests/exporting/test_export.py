"""A checkpoint for another runtime: what came out is compared with it, and only what agrees is left."""

import json
import os
import signal
import subprocess
import sys

import pytest
import torch
import yaml
from datasets import Dataset
from tiny import make_examples, make_model, make_tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

from trim_trainer import drop_layers
from trim_trainer.cli.main import main
from trim_trainer.evaluation.tasks import read_task
from trim_trainer.exporting import environments
from trim_trainer.exporting import export as exporting
from trim_trainer.exporting.environments import ExportError
from trim_trainer.exporting.openvino import ENVIRONMENT


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A trimmed checkpoint, and a task with choices."""
    folder = tmp_path_factory.mktemp("export")
    drop_layers(make_model(), [2, 4]).save_pretrained(folder / "trimmed")
    make_tokenizer().save_pretrained(folder / "trimmed")
    Dataset.from_list(make_examples(40)).to_json(folder / "colours.jsonl")
    (folder / "colours.yaml").write_text(
        yaml.safe_dump({"dataset_name": str(folder / "colours.jsonl"), "dataset_test_split": "train"})
    )
    return folder


class Runtime:
    """A target that needs nothing: the checkpoint again, run by Transformers; changed by `spoil`."""

    weights = ("int8", "fp32")
    spoil = staticmethod(lambda model: None)

    def __init__(self, python=None):
        pass

    def check(self, config):
        pass

    def make(self, source, output, weights):
        model = AutoModelForCausalLM.from_pretrained(source)
        self.spoil(model)
        model.save_pretrained(output)
        AutoTokenizer.from_pretrained(source).save_pretrained(output)
        (output / "openvino_model.bin").write_bytes(bytes(100))

    @torch.no_grad()
    def ask(self, folder, prompts, texts, num_tokens, is_exact):
        model, made, scored = AutoModelForCausalLM.from_pretrained(folder), [], []
        for prompt in prompts:
            ids = torch.tensor([prompt])
            for _ in range(num_tokens):
                ids = torch.cat([ids, model(ids).logits[:, -1:].argmax(-1)], dim=1)
            made.append(ids[0, len(prompt) :].tolist())
        for ids, start in texts:
            log_probs = model(torch.tensor([ids])).logits[0].log_softmax(-1)
            scored.append([log_probs[place - 1, ids[place]].item() for place in range(start, len(ids))])
        return {"continuations": made, "log_probs": scored}


@pytest.fixture
def runtime(monkeypatch):
    monkeypatch.setitem(exporting.TARGETS, "fake", Runtime)
    monkeypatch.setattr(Runtime, "spoil", staticmethod(lambda model: None))
    return Runtime


def test_quality_is_that_of_the_command_that_evaluates(folder, runtime, tmp_path, capsys):
    task = read_task(folder / "colours.yaml")
    report = exporting.export(str(folder / "trimmed"), "fake", tmp_path / "out", task=task)
    assert report.weights == "int8" and report.num_layers == 4
    assert report.agreement.num_equal == report.agreement.num_tokens == 4 * 32
    assert report.after["accuracy"] == report.before["accuracy"]
    assert report.after["loss"] == pytest.approx(report.before["loss"], abs=1e-5)
    assert json.loads((tmp_path / "out" / "export.json").read_text()) == report.to_plain()
    assert main(["evaluate", str(folder / "trimmed"), "--task", str(folder / "colours.yaml"), "--json"]) == 0
    (evaluated,) = json.loads(capsys.readouterr().out)
    assert evaluated["quality"]["colours"]["accuracy"] == report.before["accuracy"]
    assert evaluated["quality"]["colours"]["loss"] == pytest.approx(report.before["loss"], abs=1e-5)


def shuffle(model):
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight.neg_()


def test_what_gives_other_tokens_is_not_kept(folder, runtime, tmp_path, monkeypatch):
    monkeypatch.setattr(runtime, "spoil", staticmethod(shuffle))
    with pytest.raises(ExportError, match="other tokens than Transformers: .* of 128"):
        exporting.export(str(folder / "trimmed"), "fake", tmp_path / "out", weights="fp32")
    assert not list(tmp_path.iterdir())
    report = exporting.export(str(folder / "trimmed"), "fake", tmp_path / "out")  # fewer bits may, and it says so
    assert report.agreement.num_equal < 128 and not report.agreement.is_equal


def test_two_tokens_that_are_as_likely_may_change_places(folder, runtime, tmp_path, monkeypatch):
    """The rows of two tokens in the head are the same in the checkpoint, and nudged apart by rounding elsewhere."""
    model = AutoModelForCausalLM.from_pretrained(folder / "trimmed")
    first = model(torch.tensor([[5, 6]])).logits[0, -1].argmax().item()
    with torch.no_grad():
        model.lm_head.weight[95 - first] = model.lm_head.weight[first]
    model.save_pretrained(tmp_path / "tied")
    make_tokenizer().save_pretrained(tmp_path / "tied")

    def nudge(model):
        with torch.no_grad():
            model.lm_head.weight[95 - first] *= 1 + 1e-6
            model.lm_head.weight[first] *= 1 - 1e-6

    monkeypatch.setattr(runtime, "spoil", staticmethod(nudge))
    report = exporting.export(str(tmp_path / "tied"), "fake", tmp_path / "out", weights="fp32")
    assert report.agreement.is_equal


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--to", "opnvino"], "`to` is 'opnvino', expected one of openvino"),
        (["--to", "openvino", "--weights", "int2"], "`weights` is 'int2', expected one of int8, int4, fp32"),
        (["--to", "openvino", "--python", "no-such-python"], "`--python` is 'no-such-python', expected a Python"),
        (["--to", "openvino", "--python", sys.executable], "cannot export to openvino: .*No module named"),
    ],
)
def test_what_cannot_be_made_is_refused_in_a_line(folder, options, message, tmp_path, capsys):
    assert main(["export", str(folder / "trimmed"), "--output", str(tmp_path / "out"), *options]) == 2
    said = capsys.readouterr().err
    assert len(said.strip().splitlines()) == 1
    assert __import__("re").search(message, said), said
    assert not (tmp_path / "out").exists()


def test_a_folder_that_holds_something_is_left_alone(folder, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").touch()
    assert main(["export", str(folder / "trimmed"), "--to", "openvino", "--output", str(tmp_path / "out")]) == 2
    assert "expected a new or an empty folder" in capsys.readouterr().err
    assert os.listdir(tmp_path / "out") == ["mine"]


def test_an_environment_that_cannot_be_made_says_how_to_make_one(folder, tmp_path, monkeypatch, capsys):
    """No network: the packages are nowhere, and no half of an environment passes for a whole one."""
    monkeypatch.setenv("TRIM_TRAINER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    for name in ("PIP_FIND_LINKS", "PIP_EXTRA_INDEX_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_RETRIES", "0")
    monkeypatch.setattr(environments, "CPU_INDEX", "http://127.0.0.1:9/cpu")
    assert main(["export", str(folder / "trimmed"), "--to", "openvino", "--output", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert "could not be made" in said and "--python" in said and "'optimum-intel==2.2.0'" in said
    assert not ENVIRONMENT.is_made and not (tmp_path / "out").exists()


def test_a_killed_export_leaves_no_folder_that_looks_whole(folder, tmp_path):
    slow = tmp_path / "slow.py"
    slow.write_text(
        "import sys, time\n"
        "from trim_trainer.exporting import export\n"
        "class Slow:\n"
        "    weights = ('fp32',)\n"
        "    def __init__(self, python): pass\n"
        "    def check(self, config): pass\n"
        "    def make(self, source, output, weights):\n"
        "        output.mkdir(); (output / 'openvino_model.bin').touch(); print('made', flush=True); time.sleep(60)\n"
        "export.TARGETS['slow'] = Slow\n"
        "export.export(sys.argv[1], 'slow', sys.argv[2])\n"
    )
    process = subprocess.Popen(
        [sys.executable, slow, folder / "trimmed", tmp_path / "out"], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "made\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "out").exists()
