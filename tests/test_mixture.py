"""TRL's own recipes: what `trl sft --config` takes, `trim-trainer train --config` takes with the same meaning."""

import json
import subprocess
import sys
from dataclasses import MISSING, fields

import numpy as np
import pytest
import torch
import yaml
from accelerate.commands.launch import launch_command_parser
from datasets import Dataset
from tiny import make_examples, make_model, make_tokenizer
from transformers import AutoModelForCausalLM
from trl import DatasetMixtureConfig, ModelConfig, ScriptArguments, SFTConfig, get_dataset
from trl.scripts.sft import make_parser as make_trl_parser

from trim_trainer.cli.main import main
from trim_trainer.data.columns import ColumnError
from trim_trainer.evaluation.tasks import read_calibration, read_task
from trim_trainer.mixture import load_mixture
from trim_trainer.recipe import build_trainer, load_splits, make_parser, parse_recipe
from trim_trainer.records.settings import without_local_paths
from trim_trainer.training.hooks import actions_of, options_of
from trim_trainer.training.launching import LAUNCHED

TRL_PARTS = (ScriptArguments, SFTConfig, ModelConfig, DatasetMixtureConfig)


@pytest.fixture
def write(tmp_path):
    """Writes a recipe as TRL's users write it: two files, one with a column more, on a tiny model."""
    Dataset.from_list(make_examples(30, 0)).remove_columns(["choices", "answer"]).to_json(tmp_path / "one.jsonl")
    rows = [
        {"prompt": row["prompt"], "completion": row["completion"], "source": "b"} for row in make_examples(20, 100)
    ]
    Dataset.from_list(rows).to_json(tmp_path / "two.jsonl")
    Dataset.from_list(make_examples(40, 200)).to_json(tmp_path / "questions.jsonl")
    make_model().save_pretrained(tmp_path / "model")
    make_tokenizer().save_pretrained(tmp_path / "model")

    def entry(name, **more):
        return {"path": "json", "data_files": str(tmp_path / f"{name}.jsonl"), "split": "train"} | more

    def write(*entries, **settings):
        entries = entries or (entry("one"), entry("two", columns=["prompt", "completion"]))
        whole = {
            "model_name_or_path": str(tmp_path / "model"),
            "datasets": list(entries),
            "output_dir": str(tmp_path / "out"),
            "max_steps": 4,
            "bf16": False,
            "report_to": "none",
            "save_strategy": "no",
        } | settings
        path = tmp_path / "recipe.yaml"
        path.write_text(yaml.safe_dump({name: value for name, value in whole.items() if value is not MISSING}))
        return path

    write.entry = entry
    return write


def trl_reads(path):
    """What TRL's own parser makes of a recipe: script, training, model and data arguments."""
    return make_trl_parser().parse_args_and_config(["--config", str(path)])


def ours(path, *options):
    return parse_recipe(["--config", str(path), *options])


@pytest.mark.parametrize("part", TRL_PARTS, ids=lambda part: part.__name__)
def test_every_key_of_trl_is_a_key_here_of_the_same_type_and_default(part):
    theirs = {action.dest: action for action in actions_of(make_trl_parser())}
    here = {action.dest: action for action in actions_of(make_parser())}
    names = [field.name for field in fields(part) if field.init]
    assert set(names) <= options_of(make_parser())
    for name in names:
        assert (here[name].default, here[name].nargs) == (theirs[name].default, theirs[name].nargs), name
        assert set(theirs[name].option_strings) <= set(here[name].option_strings), name


def test_all_keys_at_once_mean_what_they_mean_to_trl(write):
    path = write(
        streaming=False, test_split_size=0.2, dataset_config="x", dataset_train_split="train", dataset_test_split="test",
        ignore_bias_buffers=True, learning_rate="1e-4", packing=False, eval_strategy="steps", eval_steps=2,
        model_init_kwargs={"attn_implementation": "eager"}, lora_target_modules="all-linear", use_peft=True, lora_r=4,
        load_in_4bit=False, dtype="bfloat16", gradient_checkpointing_kwargs={"use_reentrant": False}, use_cpu=True,
    )  # fmt: skip
    script, training, model, data = trl_reads(path)
    recipe = ours(path)
    for part, mine in ((script, recipe.script_args), (data, recipe.script_args), (model, recipe.model_args)):
        for field in fields(part):
            assert getattr(mine, field.name) == getattr(part, field.name), field.name
    for field in fields(training):
        left, right = getattr(recipe.training_args, field.name), getattr(training, field.name)
        assert str(left) == str(right), field.name


@pytest.mark.parametrize("settings", [{}, {"test_split_size": 0.2}, {"test_split_size": 7}, {"streaming": True}])
def test_a_mixture_has_the_rows_that_trl_gives(write, settings):
    path = write(**settings)
    *_, data = trl_reads(path)
    np.random.seed(0)  # from which TRL draws the test split
    theirs = get_dataset(data)
    np.random.seed(5)
    mine = load_splits(ours(path).script_args)
    assert {name: list(split) for name, split in mine.items()} == {name: list(split) for name, split in theirs.items()}
    assert sum(len(list(split)) for split in mine.values()) == 50
    assert np.random.get_state()[1][0] == 5  # whoever draws next is not touched


def test_fractions_are_those_of_trl(write):
    path = write(
        write.entry("one", fraction=0.25), write.entry("two", fraction=0.75, columns=["prompt", "completion"])
    )
    *_, data = trl_reads(path)
    mine = load_splits(ours(path).script_args)["train"]
    assert len(mine) == 27 and list(mine) == list(get_dataset(data)["train"])


def test_the_test_split_is_the_same_for_all_who_ask(write):
    path = write(test_split_size=0.2)
    first, again = (load_splits(ours(path).script_args) for _ in range(2))
    assert list(first["test"]) == list(again["test"]) == list(read_task(path).load())
    assert {row["prompt"] for row in first["test"]} == {row["prompt"] for row in read_task(path).subset()}


def test_a_run_on_a_mixture_trains_on_what_trl_trains_on_and_can_be_repeated(write, tmp_path):
    torch.set_num_threads(1)
    path = write(
        test_split_size=0.2, target_layers=4, calibration_size=8, model_init_kwargs={"attn_implementation": "eager"}
    )
    assert main(["train", "--config", str(path)]) == 0
    saved = yaml.safe_load((tmp_path / "out" / "recipe.yaml").read_text())
    written = yaml.safe_load(path.read_text())
    wanted = [{name: value for name, value in entry.items() if name != "split"} for entry in written["datasets"]]
    assert saved["datasets"] == wanted and saved["test_split_size"] == 0.2  # `split` is at its default
    assert saved["model_init_kwargs"] == {"attn_implementation": "eager"} and "dataset_name" not in saved
    again = ["--config", str(tmp_path / "out" / "recipe.yaml"), "--output_dir", str(tmp_path / "again")]
    assert main(["train", *again]) == 0
    one, other = (AutoModelForCausalLM.from_pretrained(tmp_path / name).state_dict() for name in ("out", "again"))
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def test_the_model_is_loaded_with_what_trl_gives(write):
    trainer = build_trainer(ours(write(dtype="bfloat16", attn_implementation="eager"), "--trust_remote_code"))
    given = trainer.args.model_init_kwargs
    assert given == {
        "revision": "main", "trust_remote_code": True, "attn_implementation": "eager", "dtype": "bfloat16",
    }  # fmt: skip
    assert trainer.model.dtype == torch.bfloat16 and trainer.model.config._attn_implementation == "eager"


def test_without_a_target_nothing_is_evaluated_that_trl_does_not_evaluate(write):
    assert build_trainer(ours(write(test_split_size=0.2))).eval_dataset is None
    assert len(build_trainer(ours(write(test_split_size=0.2, eval_strategy="steps"))).eval_dataset) == 10


def test_columns_and_numbers_of_rows_go_with_a_mixture(write):
    path = write(
        write.entry("questions"), test_split_size=0.25, max_train_samples=12, max_eval_samples=5,
        doc_to_text="Ask: {{prompt}}", doc_to_choice="choices", doc_to_target="answer", target_delimiter="",
    )  # fmt: skip
    splits = load_splits(ours(path).script_args)
    assert {name: len(split) for name, split in splits.items()} == {"train": 12, "test": 5}
    assert all(row["prompt"].startswith("Ask: ") for row in splits["train"])
    assert read_task(path, 3).subset().num_rows == 3
    assert len(read_calibration(path)[0]) == 12 and len(read_calibration(path, "test")[0]) == 5
    with pytest.raises(ValueError, match="`split` is 'dev', but the mixture"):
        read_calibration(path, "dev")
    with pytest.raises(ColumnError, match="nothing"):
        load_splits(ours(path, "--doc_to_text", "{{nothing}}").script_args)


def test_options_of_the_command_line_replace_a_mixture(write, tmp_path):
    path = write()
    replaced = ours(path, "--datasets", "org/other", "--learning-rate=3e-4")
    assert [entry.path for entry in replaced.script_args.datasets] == ["org/other"]
    assert replaced.training_args.learning_rate == 3e-4
    single = ours(path, "--datasets", "none", "--dataset_name", str(tmp_path / "one.jsonl"))
    assert len(load_splits(single.script_args)["train"]) == 30


def test_a_mixture_goes_before_a_name_as_in_trl(write, caplog):
    script = ours(write(dataset_name="org/data")).script_args
    assert "`datasets` is set: `dataset_name`, 'org/data', is left out" in caplog.text
    assert script.dataset_name is None and len(load_splits(script)["train"]) == 50


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"datasets": "org/name"}, "`datasets` is 'org/name', expected a list"),
        ({"datasets": {"path": "org/name"}}, "`datasets` is {'path': 'org/name'}, expected a list"),
        ({"datasets": ["org/name"]}, "Entry 1 of `datasets` is 'org/name', expected a mapping with `path`"),
        ({"datasets": [{"data_files": "x"}]}, "Entry 1 of `datasets` is .*expected a mapping with `path`"),
        ({"datasets": [{"path": "a"}, {"path": "b", "colums": ["x"]}]}, "Entry 2.*`colums` .did you mean `columns`"),
        ({"datasets": [{"path": "a", "split": None}]}, "Entry 1 of `datasets`: `split` is None"),
        ({"datasets": [{"path": "a", "columns": 3}]}, "Entry 1 of `datasets`: `columns` is 3, expected a list"),
        ({"datasets": [{"path": "a", "fraction": 0.5}, {"path": "b"}]}, "`fraction` is 0.5, None in the entries"),
        ({"datasets": [{"path": "a", "fraction": 0}]}, "`fraction` is 0 in the entries of `datasets`.*above 0"),
        ({"datasets": [{"path": "a", "fraction": "1e-1"}]}, "`fraction` is '1e-1', expected a number"),
        ({"streaming": True, "test_split_size": 0.1}, "`streaming` is true and `test_split_size` is set"),
        ({"target_layers": [4]}, r"`target_layers` is \[4\], expected a whole number"),
        ({"max_steps": 3.5}, "`max_steps` is 3.5, expected a whole number"),
        ({"eval_strategy": False}, "`eval_strategy` is False, expected text.*put text in quotes"),
        ({"output_dir": 7}, "`output_dir` is 7, expected text"),
    ],
)
def test_what_trl_ends_on_with_a_traceback_is_said(write, settings, message):
    path = write()
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | settings))
    with pytest.raises(ValueError, match=message):
        ours(path)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dataset_calibration_split": "validation"}, r"`dataset_calibration_split` is 'validation', but the mixture"),
        (
            {"eval_strategy": "steps"},
            r"`dataset_test_split` is 'test', but the mixture `datasets` has the splits \['train'\]",
        ),
        ({"dataset_train_split": "train_sft"}, "`dataset_train_split` is 'train_sft', but the mixture"),
        ({"datasets": MISSING}, "Neither `dataset_name` nor `datasets` is set"),
        ({"model_name_or_path": MISSING}, "`model_name_or_path` is not set"),
    ],
)
def test_a_split_that_a_mixture_has_not_is_refused(write, settings, message):
    with pytest.raises(ValueError, match=message):
        build_trainer(ours(write(**settings)))


def test_a_mixture_is_published_without_paths_of_this_machine(write, tmp_path):
    entries = [
        write.entry("one"),
        {"path": "org/name", "data_files": {"train": [str(tmp_path / "two.jsonl"), "a.json"]}},
    ]
    shared = without_local_paths(ours(write(*entries)).settings)
    assert str(tmp_path) not in json.dumps(shared)
    assert shared["datasets"][0] == {"path": "json", "data_files": "./one.jsonl"}
    assert shared["datasets"][1] == {"path": "org/name", "data_files": {"train": ["./two.jsonl", "a.json"]}}


def test_what_only_this_machine_knows_is_not_in_the_saved_recipe(write):
    given = {"token": "hf_secret", "cache_dir": "/home/me", "attn_implementation": "eager"}
    assert ours(write(model_init_kwargs=given)).settings["model_init_kwargs"] == {"attn_implementation": "eager"}


def test_other_commands_take_a_recipe_with_a_mixture(write, tmp_path, capsys):
    torch.set_num_threads(1)
    path, model = write(test_split_size=0.2), str(tmp_path / "model")
    assert main(["scan", model, "--data", str(path), "--size", "4", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["num_examples"] == 4
    assert main(["evaluate", model, "--task", str(path), "--limit", "6", "--json"]) == 0
    (report,) = json.loads(capsys.readouterr().out)
    assert report["quality"]["recipe"]["num_examples"] == 6


@pytest.mark.parametrize("settings", [{"streaming": True, "dataset_test_split": "train"}])
def test_a_stream_is_evaluated(write, settings):
    task = read_task(write(**settings), 6)
    assert len(task.examples(make_tokenizer())) == 6
    assert load_mixture(task.script)["train"].take(1) is not None


def test_keys_of_accelerate_launch_are_keys_of_a_recipe(write):
    options = launch_command_parser()
    of_the_script = {"help", "training_script", "training_script_args", "module", "no_python"}
    for action in actions_of(options):
        if action.dest in of_the_script | options_of(make_parser()) | {"env"}:
            continue
        value = True if action.nargs == 0 else 3
        words = ours(write(**{action.dest: value})).launch_words
        assert words == (f"--{action.dest}",) + (() if action.nargs == 0 else ("3",))
    both = ours(write(accelerate_config="multi_gpu", num_processes=2, multi_gpu=False), "--num-processes", "4")
    assert both.launch_words == ("--accelerate_config", "multi_gpu", "--num_processes", "2", "--num-processes", "4")
    assert ours(write(gradient_accumulation_steps=2, debug="underflow_overflow")).launch_words == ()  # ours, as TRL's


@pytest.mark.slow
def test_a_recipe_starts_the_processes_that_it_asks_for(write, tmp_path, monkeypatch):
    """Two real processes, and one line where what they are asked for is wrong."""
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    path = write(
        multi_gpu=True, num_processes=2, use_cpu=True, save_strategy="steps", save_steps=4, main_process_port=0,
        env={"TRL_EXPERIMENTAL_SILENCE": 1, "OMP_NUM_THREADS": 1}, target_layers=None, eval_strategy="no",
    )  # fmt: skip
    command = [sys.executable, "-m", "trim_trainer.cli", "train", "--config", str(path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    # one file of random numbers per process
    assert len(list((tmp_path / "out" / "checkpoint-4").glob("rng_state_*.pth"))) == 2
    wrong = subprocess.run([*command, "--learning_rate", "-1"], capture_output=True, text=True)
    assert wrong.returncode != 0 and "Traceback" not in wrong.stderr


@pytest.mark.parametrize(
    ("settings", "words", "message"),
    [
        ({"accelerate_config": "nowhere"}, (), "nowhere"),
        ({"num_proceses": 2}, (), "did you mean `num_processes`"),
        ({"env": ["A=1"]}, (), "`env` is ['A=1'], expected a mapping"),
        ({}, ("--num_processes", "1", "stray"), "'stray' is the value of no option"),
    ],
)
def test_what_cannot_be_launched_is_one_line(write, capfd, monkeypatch, settings, words, message):
    for name in LAUNCHED:
        monkeypatch.delenv(name, raising=False)
    assert main(["train", "--config", str(write(**settings)), *words]) == 2
    assert message in capfd.readouterr().err


def test_environment_is_set_before_libraries_are_loaded(write):
    path = write(env={"HF_HOME": "/nowhere/at/all"})
    code = (
        "import sys; from trim_trainer.cli.environment import set_environment; "
        f"set_environment(['--config={path}']); assert 'torch' not in sys.modules; "
        "from huggingface_hub.constants import HF_HOME; print(HF_HOME)"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "/nowhere/at/all"
