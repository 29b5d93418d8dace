"""A trimmed model in OpenVINO, made by optimum-intel in an environment of its own: the same tokens."""

import json
import subprocess

import pytest
import zoo
from tiny import make_model, make_tokenizer

from trim_trainer import drop_layers, export
from trim_trainer.cli.main import main
from trim_trainer.exporting.environments import ExportError, find_interpreter
from trim_trainer.exporting.openvino import ENVIRONMENT

pytestmark = pytest.mark.slow
LOAD = (
    "import sys, json; from optimum.intel import OVModelForCausalLM; from transformers import AutoTokenizer; "
    "model = OVModelForCausalLM.from_pretrained(sys.argv[1]); tokenizer = AutoTokenizer.from_pretrained(sys.argv[1]); "
    "ids = tokenizer('the cat', return_tensors='pt'); print(json.dumps(model.generate(**ids, max_new_tokens=4).shape))"
)


@pytest.fixture(scope="module")
def interpreter():
    """Python of the environment, made once and kept in the cache."""
    try:
        return find_interpreter(ENVIRONMENT)
    except ExportError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module", params=["llama", "qwen3", "gpt2"])
def trimmed(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("openvino") / request.param
    drop_layers(make_model(request.param), [2, 4]).save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


def test_every_greedy_token_is_that_of_transformers(interpreter, trimmed, tmp_path):
    report = export(str(trimmed), "openvino", tmp_path / "out", weights="fp32")
    assert report.agreement.is_equal and report.agreement.num_tokens == 128
    loaded = subprocess.run(
        [interpreter, "-c", LOAD, tmp_path / "out"], capture_output=True, text=True, check=True
    ).stdout
    assert json.loads(loaded.splitlines()[-1])[0] == 1


def test_eight_bits_say_how_many_tokens_agree(interpreter, trimmed, tmp_path, capsys):
    assert main(["export", str(trimmed), "--to", "openvino", "--output", str(tmp_path / "out")]) == 0
    report = json.loads((tmp_path / "out" / "export.json").read_text())
    assert report["weights"] == "int8" and 0 <= report["agreement"]["num_equal"] <= 128
    assert report["num_bytes"] < 0.5 * report["num_bytes_before"]
    assert f"Greedy tokens as in Transformers: {report['agreement']['num_equal']} of 128" in capsys.readouterr().out


def test_an_architecture_that_it_does_not_know_is_refused_by_name(interpreter, tmp_path, capsys):
    zoo.make("xlstm").save_pretrained(tmp_path / "model")
    make_tokenizer().save_pretrained(tmp_path / "model")
    assert main(["export", str(tmp_path / "model"), "--to", "openvino", "--output", str(tmp_path / "out")]) == 2
    assert "does not export 'xlstm' models to OpenVINO" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
