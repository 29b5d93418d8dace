"""Trimmed models in the runtimes themselves, made by their libraries in environments of their own: the same tokens."""

import json
import subprocess

import pytest
import yaml
import zoo
from datasets import Dataset
from exports import save_trimmed
from tiny import make_examples, make_model, make_tokenizer

from trim_trainer import export
from trim_trainer.cli.main import main
from trim_trainer.exporting.environments import ExportError, find_interpreter
from trim_trainer.exporting.targets import TARGETS

pytestmark = pytest.mark.slow
OPENVINO = (
    "import sys, json; from optimum.intel import OVModelForCausalLM; from transformers import AutoTokenizer; "
    "model = OVModelForCausalLM.from_pretrained(sys.argv[1]); tokenizer = AutoTokenizer.from_pretrained(sys.argv[1]); "
    "ids = tokenizer('the cat', return_tensors='pt')['input_ids']; "
    "print(json.dumps(model.generate(ids, max_new_tokens=4, min_new_tokens=4).shape))"
)
ONNX = (
    "import sys, json; import onnxruntime_genai as runtime; model = runtime.Model(sys.argv[1]); "
    "params = runtime.GeneratorParams(model); params.set_search_options(max_length=6, min_length=6); "
    "generator = runtime.Generator(model, params); generator.append_tokens([4, 5])\n"
    "while not generator.is_done(): generator.generate_next_token()\n"
    "print(json.dumps([1, len(generator.get_sequence(0))]))"
)
LOADING = {"openvino": OPENVINO, "onnx": ONNX}


@pytest.fixture(scope="module")
def interpreters():
    """Python of each environment, made once and kept in the cache."""
    found = {}

    def find(name):
        if name not in found:
            try:
                found[name] = find_interpreter(TARGETS[name].environment)
            except (ExportError, OSError) as error:
                pytest.skip(str(error))
        return found[name]

    return find


@pytest.fixture(scope="module")
def trimmed(tmp_path_factory):
    """A trimmed checkpoint of a type, with its history, and a recipe beside it."""
    folder = tmp_path_factory.mktemp("runtimes")

    def make(model_type):
        if not (folder / model_type).exists():
            # the attention of ONNX Runtime takes heads that are multiples of 16
            cuts = ("--layers", "4", "--seams", "1-2") if model_type == "llama" else ("--layers", "2,4")
            save_trimmed(folder, model_type, make_model(model_type, head_dim=16), cuts)
            Dataset.from_list(make_examples(40)).to_json(folder / "colours.jsonl")
            task = {"dataset_name": str(folder / "colours.jsonl"), "dataset_test_split": "train"}
            (folder / model_type / "recipe.yaml").write_text(yaml.safe_dump(task))
        return folder / model_type

    return make


@pytest.mark.parametrize("model_type", ["llama", "qwen3"])
@pytest.mark.parametrize("name", LOADING)
def test_every_greedy_token_is_that_of_transformers(name, model_type, interpreters, trimmed, tmp_path):
    interpreter = interpreters(name)
    report = export(trimmed(model_type), name, tmp_path / "out", weights="fp32")
    assert report.agreement.is_equal and report.agreement.num_tokens == 8 * 32
    loaded = subprocess.run([interpreter, "-c", LOADING[name], tmp_path / "out"], capture_output=True, text=True)
    assert json.loads(loaded.stdout.splitlines()[-1]) == [1, 6], loaded.stderr


@pytest.mark.parametrize("name", TARGETS)
def test_fewer_bits_say_what_they_cost(name, interpreters, trimmed, tmp_path, capsys):
    interpreters(name)
    assert main(["export", str(trimmed("llama")), "--to", name, "--output", str(tmp_path / "out")]) == 0
    report = json.loads((tmp_path / "out" / "export.json").read_text())
    assert report["weights"] == TARGETS[name].weights[0] and 0 <= report["agreement"]["num_equal"] <= 256
    assert report["after"]["num_examples"] == report["before"]["num_examples"] == 40
    said = capsys.readouterr().out
    assert f"Greedy tokens as in Transformers: {report['agreement']['num_equal']} of 256" in said
    assert "accuracy on eval (n = 40)" in said
    assert str(tmp_path.parent) not in (tmp_path / "out" / "README.md").read_text()
    for path in (tmp_path / "out").glob("*config.json"):  # no text that was trained on, no path of this machine
        said = path.read_text()
        assert str(tmp_path.parent) not in said and "colour" not in said and '"dataset": [' not in said, path


@pytest.mark.parametrize(
    "hidden_size", [32, 48, 64]
)  # an odd number of blocks of 32 weights, of 32 and of 16, of none
def test_rows_of_any_length_are_rounded_to_four_bits(hidden_size, interpreters, tmp_path):
    interpreters("onnx")
    model = make_model(head_dim=16, hidden_size=hidden_size)
    report = export(save_trimmed(tmp_path, model=model), "onnx", tmp_path / "out", weights="int4")
    assert report.weights == "int4" and report.agreement.loss_after < report.agreement.loss_before + 0.5


@pytest.mark.parametrize("name", TARGETS)
def test_an_architecture_that_it_does_not_know_is_refused_by_name(name, interpreters, trimmed, tmp_path, capsys):
    interpreters(name)
    zoo.make("xlstm").save_pretrained(tmp_path / "model")
    make_tokenizer().save_pretrained(tmp_path / "model")
    (tmp_path / "model" / "recipe.yaml").write_text((trimmed("llama") / "recipe.yaml").read_text())
    assert main(["export", str(tmp_path / "model"), "--to", name, "--output", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert "xlstm" in said.lower() and "Traceback" not in said
    assert not (tmp_path / "out").exists()
