"""A checkpoint for another runtime: what came out is compared with it, and only what agrees is left."""

import dataclasses
import json
import os
import re
import signal
import subprocess
import sys

import exports
import pytest
import torch
import yaml
import zoo
from datasets import Dataset
from tiny import make_examples, make_model, make_tokenizer
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

from trim_trainer.checkpoints.loading import Source
from trim_trainer.cli.main import main
from trim_trainer.evaluation.tasks import find_task, read_task
from trim_trainer.exporting import environments, measuring
from trim_trainer.exporting import export as exporting
from trim_trainer.exporting.environments import ExportError
from trim_trainer.exporting.gptq import GPTQ
from trim_trainer.exporting.openvino import ENVIRONMENT
from trim_trainer.exporting.targets import TARGETS
from trim_trainer.records.export_report import ExportReport


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A trimmed checkpoint with its history, and a task with choices."""
    folder = tmp_path_factory.mktemp("export")
    exports.save_trimmed(folder)
    Dataset.from_list(make_examples(40)).to_json(folder / "colours.jsonl")
    task = {"dataset_name": str(folder / "colours.jsonl"), "dataset_test_split": "train"}
    (folder / "colours.yaml").write_text(yaml.safe_dump(task))
    return folder


@pytest.fixture
def target(monkeypatch):
    """Make `to="transformers"` known, with a model that is changed as asked."""
    exports.let_cards_know(monkeypatch)

    def let(*spoiling):
        for module in (exporting, measuring):
            monkeypatch.setitem(module.TARGETS, "transformers", exports.make_target(*spoiling))

    return let


def test_quality_is_that_of_the_command_that_evaluates(folder, target, tmp_path, capsys):
    target()
    task = read_task(folder / "colours.yaml")
    report = exporting.export(folder / "trimmed", "transformers", tmp_path / "out", task=task)
    assert (report.weights, report.num_layers) == ("int8", 4)
    assert report.num_bytes == report.num_bytes_before == os.path.getsize(folder / "trimmed" / "model.safetensors")
    assert report.agreement.num_equal == report.agreement.num_tokens == 8 * 32
    assert report.agreement.loss_after == pytest.approx(report.agreement.loss_before, abs=1e-5)
    assert report.after.accuracy == report.before.accuracy
    assert report.after.loss == pytest.approx(report.before.loss, abs=1e-5)
    assert json.loads((tmp_path / "out" / "export.json").read_text()) == report.to_plain()
    card = (tmp_path / "out" / "README.md").read_text()
    assert "4 of 6 decoder layers" in card and "256 of 256 greedy tokens" in card and "(95 % interval, n = 40)" in card
    capsys.readouterr()
    models = [str(folder / "trimmed"), str(tmp_path / "out")]
    assert main(["evaluate", *models, "--task", str(folder / "colours.yaml"), "--json"]) == 0
    checkpoint, exported = json.loads(capsys.readouterr().out)
    for name in ("accuracy", "macro_f1", "majority_accuracy", "num_examples"):
        assert exported["quality"]["colours"][name] == checkpoint["quality"]["colours"][name]
    assert exported["quality"]["colours"]["loss"] == pytest.approx(report.before.loss, abs=1e-5)
    assert exported["depth"] == checkpoint["depth"] == 4 and exported["decode_tokens_per_second"] > 0
    assert exported["num_sequences"] is None and checkpoint["num_sequences"] > 0


def negate(model):
    model.model.layers[1].mlp.down_proj.weight.neg_()


def confuse(model):
    model.lm_head.weight.copy_(30 * model.lm_head.weight.flip(0))


def test_what_gives_other_tokens_is_not_kept(folder, target, tmp_path):
    target(negate)
    with pytest.raises(ExportError, match="other tokens than Transformers: .* of 128"):
        exporting.export(folder / "trimmed", "transformers", tmp_path / "out", weights="fp32")
    assert not list(tmp_path.iterdir())
    report = exporting.export(folder / "trimmed", "transformers", tmp_path / "out")  # fewer bits may, and it says so
    assert report.agreement.num_equal < 128 and not report.agreement.is_equal


def test_another_model_is_not_taken_for_a_rounded_one(folder, target, tmp_path):
    target(confuse)
    with pytest.raises(ExportError, match="nats per token.* not rounding: .* tokens agree, so it is another model"):
        exporting.export(folder / "trimmed", "transformers", tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_rounding_that_costs_much_is_kept_and_said(folder, target, tmp_path, caplog):
    """With fewer bits the loss is as high as that of another model, in single precision every token agrees."""
    target(confuse, ("int8",))
    report = exporting.export(folder / "trimmed", "transformers", tmp_path / "out")
    assert report.agreement.loss_after > report.agreement.loss_before + exporting.MAX_RISE
    assert "It is rounding: with weights in fp32 every token agrees. More bits cost less." in caplog.text
    assert ExportReport.load(tmp_path / "out").agreement_exact.num_equal == 128
    card = (tmp_path / "out" / "README.md").read_text()
    assert "what rounding costs it: an export in single precision gave 128 of 128" in card
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]


def test_where_no_export_is_exact_a_high_loss_is_refused(folder, target, tmp_path, monkeypatch):
    target(confuse)
    monkeypatch.setitem(
        exporting.TARGETS, "transformers", dataclasses.replace(exporting.TARGETS["transformers"], exact=None)
    )
    with pytest.raises(ExportError, match="nats per token.* It is another model .* take more bits"):
        exporting.export(folder / "trimmed", "transformers", tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_weights_in_pickles_are_copied_for_whoever_exports(folder, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(folder / "trimmed")
    model.config.save_pretrained(tmp_path / "old")
    torch.save(model.state_dict(), tmp_path / "old" / "pytorch_model.bin")
    make_tokenizer().save_pretrained(tmp_path / "old")
    source = Source.of(str(tmp_path / "old"))
    with exporting._as_folder(source, source.load_tokenizer(), tmp_path) as copy:
        assert {"model.safetensors", "tokenizer.json"} <= {path.name for path in copy.iterdir()}
    with exporting._as_folder(Source.of(str(folder / "trimmed")), make_tokenizer(), tmp_path) as same:
        assert same == folder / "trimmed"


def test_two_tokens_that_are_as_likely_may_change_places(folder, target, tmp_path):
    """The rows of two tokens in the head are the same in the checkpoint, and nudged apart by rounding elsewhere."""
    model = AutoModelForCausalLM.from_pretrained(folder / "trimmed")
    first = model(torch.tensor([[5, 6]])).logits[0, -1].argmax().item()
    with torch.no_grad():
        model.lm_head.weight[95 - first] = model.lm_head.weight[first]
    model.save_pretrained(tmp_path / "tied")
    make_tokenizer().save_pretrained(tmp_path / "tied")

    def nudge(model):
        model.lm_head.weight[95 - first] *= 1 + 1e-6
        model.lm_head.weight[first] *= 1 - 1e-6

    target(nudge)
    report = exporting.export(tmp_path / "tied", "transformers", tmp_path / "out", weights="fp32")
    assert report.agreement.is_equal


def test_the_recipe_beside_a_checkpoint_names_the_task(folder, tmp_path):
    assert find_task(Source.of(str(folder / "trimmed"))) is None
    model = tmp_path / "model"
    model.mkdir()
    (model / "recipe.yaml").write_text((folder / "colours.yaml").read_text())
    task = find_task(Source.of(str(model)), 7)
    assert task.name == "eval" and len(task.examples(make_tokenizer())) == 7
    assert len(task.training_texts(make_tokenizer(), 5)) == 5
    (model / "recipe.yaml").write_text("dataset_name: ./gone\n")
    with pytest.raises(ValueError, match="--task none"):
        find_task(Source.of(str(model)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--to", "opnvino"], "`to` is 'opnvino', expected one of openvino, onnx, gptq"),
        (["--to", "openvino", "--weights", "int2"], "`weights` is 'int2', expected one of int8, int4, fp32"),
        (["--to", "openvino", "--python", "no-such-python"], "`--python` is 'no-such-python', expected a Python"),
        (["--to", "openvino", "--python", sys.executable], "cannot export to openvino: .*No module named"),
        (["--to", "gptq"], "`task` is needed for 'gptq'"),
        (["--to", "onnx", "--limit", "0"], "expected a whole number of at least 1"),
    ],
)
def test_what_cannot_be_made_is_refused_in_a_line(folder, options, message, tmp_path, capsys):
    try:
        status = main(["export", str(folder / "trimmed"), "--output", str(tmp_path / "out"), *options])
    except SystemExit as ended:
        status = ended.code
    said = capsys.readouterr().err
    assert status == 2 and "Traceback" not in said and re.search(message, said), said
    assert not (tmp_path / "out").exists()


def test_a_folder_that_holds_something_is_left_alone(folder, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").touch()
    assert main(["export", str(folder / "trimmed"), "--to", "openvino", "--output", str(tmp_path / "out")]) == 2
    assert "expected a new or an empty folder" in capsys.readouterr().err
    assert os.listdir(tmp_path / "out") == ["mine"]


def test_models_of_another_kind_are_refused_before_an_environment_is_made(tmp_path, monkeypatch):
    monkeypatch.setattr(exporting, "find_interpreter", lambda *_: pytest.fail("an environment was looked for"))
    zoo.make("gemma3", AutoModelForImageTextToText).save_pretrained(tmp_path / "image")
    with pytest.raises(ExportError, match="is an image-text model"):
        exporting.export(tmp_path / "image", "openvino", tmp_path / "out")
    make_model().save_pretrained(tmp_path / "quantized")
    path = tmp_path / "quantized" / "config.json"
    path.write_text(
        json.dumps(json.loads(path.read_text()) | {"quantization_config": {"quant_method": "gptq", "bits": 4}})
    )
    with pytest.raises(ExportError, match="has quantized weights"):
        exporting.export(tmp_path / "quantized", "openvino", tmp_path / "out")


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


@pytest.mark.parametrize("name", TARGETS)
def test_what_an_environment_lacks_makes_it_unfit(name, tmp_path):
    """Its check names packages that this one does not have, so this one does not pass for it."""
    environment = TARGETS[name].environment
    done = subprocess.run([sys.executable, "-I", "-c", environment.check], capture_output=True, text=True)
    assert done.returncode != 0 and "No module named" in done.stderr
    assert environment.name in environment.folder.name and environment.by_hand.count("==") >= 3


def test_gptq_needs_texts():
    with pytest.raises(ExportError, match="there are none. Name a recipe with --task"):
        GPTQ.make(None, None, None, "int4", [])


def test_a_killed_export_leaves_no_folder_that_looks_whole(folder, tmp_path):
    slow = tmp_path / "slow.py"
    slow.write_text(
        "import dataclasses, sys, time\n"
        "import exports\n"
        "from trim_trainer.exporting import export\n"
        "from trim_trainer.hub.export_card import LIBRARIES\n"
        "LIBRARIES['transformers'] = LIBRARIES['gptq']\n"
        "def make(interpreter, source, output, weights, texts):\n"
        "    output.mkdir(); (output / 'model.safetensors').touch(); print('made', flush=True); time.sleep(60)\n"
        "export.TARGETS['slow'] = dataclasses.replace(exports.make_target(), make=make)\n"
        "export.export(sys.argv[1], 'slow', sys.argv[2])\n"
    )
    process = subprocess.Popen(
        [sys.executable, slow, folder / "trimmed", tmp_path / "out"], stdout=subprocess.PIPE, text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([os.path.dirname(exports.__file__), *sys.path])},
    )  # fmt: skip
    said = iter(process.stdout.readline, "")
    assert any(line == "made\n" for line in said)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "out").exists()


def overflow(model):
    model.lm_head.weight.fill_(float("nan"))


def test_an_export_that_returns_no_numbers_is_not_kept(folder, target, tmp_path):
    target(overflow, ("int8",))
    with pytest.raises(ExportError, match="weights in int8 returns no numbers: its loss is nan.* take more bits"):
        exporting.export(folder / "trimmed", "transformers", tmp_path / "out")
    assert not list(tmp_path.iterdir())
