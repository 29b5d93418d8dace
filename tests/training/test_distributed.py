"""Two processes and one: the same history, the same weights."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from accelerate.commands.config.config_args import load_config_from_file
from peft import LoraConfig
from safetensors.torch import load_file
from tiny import make_model
from torch.testing import assert_close
from transformers import AutoModelForCausalLM

from trim_trainer import TrimConfig, TrimHistory
from trim_trainer.training.checks import check_model, check_sharded

CONFIGS = Path(__file__).parents[2] / "recipes" / "accelerate"
SCRIPT = Path(__file__).parents[1].joinpath("helpers", "run_distributed.py")


def launch(folder, num_processes, **settings):
    """Run the script and return its losses."""
    launcher = ["-m", "torch.distributed.run", f"--nproc_per_node={num_processes}", "--standalone"]
    launcher = launcher if num_processes > 1 else []
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *launcher, str(SCRIPT), str(folder), json.dumps(settings)],
        capture_output=True, text=True, env=environment, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.strip().splitlines()[-1])


def assert_same_run(one, other):
    first, second = TrimHistory.load(one), TrimHistory.load(other)
    assert [entry.dropped for entry in first.rounds] == [entry.dropped for entry in second.rounds]
    assert [entry.trained_layers for entry in first.rounds] == [entry.trained_layers for entry in second.rounds]
    for left, right in zip(first.rounds, second.rounds, strict=True):
        assert_close(left.scores, right.scores, atol=1e-4, rtol=1e-3)
    expected, found = load_file(one / "model.safetensors"), load_file(other / "model.safetensors")
    assert expected.keys() == found.keys()
    for name, tensor in expected.items():
        # AdamW makes steps of one size of gradients that are nothing but rounding: 1.4e-4 on an Intel Xeon, with steps of 5e-3.
        assert_close(found[name], tensor, atol=5e-4, rtol=1e-3)


@pytest.mark.slow
def test_two_processes_log_the_accuracy_of_each_set_as_one_does(tmp_path):
    settings = {"target_layers": 5, "max_steps": 4, "eval_strategy": "steps", "eval_steps": 2, "named_sets": True}
    found = []
    for number in (1, 2):
        launch(tmp_path / str(number), number, save_strategy="no", **settings)
        state = json.loads((tmp_path / str(number) / "final" / "trainer_state.json").read_text())
        entries = [entry for entry in state["log_history"] if "eval_first_loss" in entry or "eval_other_loss" in entry]
        assert len(entries) == 4
        names = ("eval_first_accuracy", "eval_other_accuracy")
        found.append([(entry["step"], name, entry[name]) for entry in entries for name in names if name in entry])
    assert len(found[0]) == 4
    assert found[0] == found[1]


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({"target_layers": 4, "calibration_metric": "loss"}, marks=pytest.mark.slow),
        {
            "target_layers": 4,
            "calibration_metric": "loss",
            "compensation_size": 30,
            "importance": "sensitivity",
            "max_steps": 6,
            "sparse_update_ratio": None,
        },
        pytest.param(
            {"target_layers": 4, "sparse_update_ratio": None, "gradient_accumulation_steps": 2, "max_steps": 6},
            marks=pytest.mark.slow,
        ),
        pytest.param(
            {
                "target_layers": 3,
                "calibration_metric": "loss",
                "compensation_size": 30,
                "importance": "sensitivity",
                "trim_unit": "sublayer",
                "max_steps": 6,
                "sparse_update_ratio": None,
                "protected_layers": [],
            },
            marks=pytest.mark.slow,
        ),
    ],
    ids=["sparse update", "compensation", "all parameters", "sublayers"],
)
def test_two_processes_train_as_one_does(settings, tmp_path):
    one = launch(tmp_path / "one", 1, save_strategy="no", **settings)
    two = launch(tmp_path / "two", 2, save_strategy="no", **settings)
    assert_close(two, one, atol=1e-4, rtol=1e-3)
    assert_same_run(tmp_path / "one" / "final", tmp_path / "two" / "final")


@pytest.mark.slow
def test_two_processes_roll_back_and_resume(tmp_path):
    """A floor that any drop crosses, and a run that goes on from its middle."""
    settings = {"target_layers": 4, "calibration_metric": "loss", "max_metric_drop": 0.0, "save_steps": 4}
    launch(tmp_path / "run", 2, **settings)
    whole = TrimHistory.load(tmp_path / "run" / "final")
    resumed = launch(tmp_path / "run", 2, resume=str(tmp_path / "run" / "checkpoint-8"), **settings)
    assert len(resumed) >= 4
    history = TrimHistory.load(tmp_path / "run" / "final")
    assert [entry.dropped for entry in history.rounds] == [entry.dropped for entry in whole.rounds]
    assert history.stopped == whole.stopped


@pytest.mark.parametrize("stage", [1, 2])
def test_zero_trains_as_one_process_does(stage, tmp_path, monkeypatch):
    """Skipped without DeepSpeed, which is not among the packages of the tests."""
    pytest.importorskip("deepspeed")
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    auto = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping")
    zero = {"zero_optimization": {"stage": stage}, **dict.fromkeys(auto, "auto")}
    settings = {"target_layers": 4, "sparse_update_ratio": None, "calibration_metric": "loss", "save_steps": 6}
    one = launch(tmp_path / "one", 1, **settings)
    two = launch(tmp_path / "two", 2, deepspeed=zero, **settings)
    assert_close(two, one, atol=1e-4, rtol=1e-3)
    assert_same_run(tmp_path / "one" / "final", tmp_path / "two" / "final")
    checkpoint = str(tmp_path / "two" / "checkpoint-6")
    assert_close(launch(tmp_path / "two", 2, deepspeed=zero, resume=checkpoint, **settings), one, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("path", sorted(CONFIGS.iterdir()), ids=lambda path: path.name)
def test_configs_of_accelerate_are_whole(path):
    assert load_config_from_file(str(path)).num_processes == 8


SHARDED = {"fsdp": True, "fsdp_config": {"version": 2, "auto_wrap_policy": "TRANSFORMER_BASED_WRAP"}}


@pytest.mark.parametrize(
    "settings",
    [
        {"calibration_metric": "loss"},
        pytest.param({"save_steps": 6}, marks=pytest.mark.slow),
        pytest.param({"sparse_update_ratio": 0.5, "importance": "block_influence"}, marks=pytest.mark.slow),
        pytest.param({"save_depths": [5], "gradient_accumulation_steps": 2}, marks=pytest.mark.slow),
        pytest.param({"gradient_checkpointing": True, "eval_strategy": "epoch"}, marks=pytest.mark.slow),
    ],
    ids=["all parameters", "resumed", "sparse update", "depths", "checkpointed activations"],
)
def test_sharded_models_train_as_one_process_does(settings, tmp_path):
    settings = {
        "target_layers": 4,
        "compensation_size": 0,
        "sparse_update_ratio": None,
        "save_strategy": "no",
    } | settings
    settings |= {"save_strategy": "steps"} if "save_steps" in settings else {}
    one = launch(tmp_path / "one", 1, **settings)
    two = launch(tmp_path / "two", 2, **SHARDED, **settings)
    assert_close(two, one, atol=1e-4, rtol=1e-3)
    assert_same_run(tmp_path / "one" / "final", tmp_path / "two" / "final")
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "two" / "final").config.num_hidden_layers == 4
    if "save_steps" in settings:
        resumed = launch(tmp_path / "two", 2, resume=str(tmp_path / "two" / "checkpoint-6"), **SHARDED, **settings)
        assert_close(resumed, one, atol=1e-4, rtol=1e-3)
        assert_same_run(tmp_path / "one" / "final", tmp_path / "two" / "final")


@pytest.mark.parametrize("told_by", ["the arguments", "accelerate launch"])
@pytest.mark.parametrize(
    ("fields", "sharding", "message"),
    [
        ({"max_metric_drop": 0.1}, {}, "`max_metric_drop` is 0.1, with FSDP: .*save_depths"),
        ({"trim_unit": "sublayer"}, {}, "`trim_unit` is 'sublayer', with FSDP: .*Set it to 'layer'"),
        (
            {"load_best_model_at_end": True, "eval_strategy": "steps", "eval_steps": 2, "save_steps": 2},
            {}, "`load_best_model_at_end` is True, with FSDP: .*save_depths",
        ),
        ({"vocab_size": 40}, {}, "`vocab_size` is 40, with FSDP, .*trim-trainer drop --vocab-size"),
        ({}, {"version": 1}, "`fsdp_version` is 1, .*fsdp_version: 2"),
        ({}, {"activation_checkpointing": True}, "`fsdp_activation_checkpointing` is True, .*`gradient_checkpointing` to True"),
        ({"sparse_update_ratio": 0.5}, {}, None),
    ],
)  # fmt: skip
def test_what_sharded_layers_do_not_allow_is_refused_first(fields, sharding, message, told_by, tmp_path, monkeypatch):
    sharding = {"version": 2} | sharding
    if told_by == "accelerate launch":  # which tells its processes so, and leaves the arguments alone
        monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
        for name, value in sharding.items():
            monkeypatch.setenv(f"FSDP_{name.upper()}", str(value).lower())
    else:
        fields = {"fsdp": True, "fsdp_config": sharding} | fields
    args = TrimConfig(output_dir=str(tmp_path), target_layers=4, use_cpu=True, bf16=False, report_to="none", **fields)
    if message is None:
        assert check_model(make_model(), args) == (6, 4)
    else:
        with pytest.raises(ValueError, match=message):
            check_model(make_model(), args)


def test_adapters_on_sharded_layers_are_refused_first(tmp_path):
    fields = {"target_layers": 4, "use_cpu": True, "bf16": False, "report_to": "none"}
    args = TrimConfig(output_dir=str(tmp_path), **fields, **SHARDED)
    with pytest.raises(ValueError, match="`peft_config` is a LoraConfig, with FSDP.* by DDP"):
        check_model(make_model(), args, LoraConfig(r=4))
    plain = TrimConfig(output_dir=str(tmp_path), **fields)
    assert check_model(make_model(), plain, LoraConfig(r=4)) == (6, 4)


def test_layers_that_are_not_sharded_one_by_one_are_refused():
    with pytest.raises(ValueError, match="FSDP shards 6 layers together .*TRANSFORMER_BASED_WRAP.* LlamaDecoderLayer"):
        check_sharded(make_model())


@pytest.mark.slow
def test_sharded_layers_are_scored_dropped_and_trained_on(tmp_path):
    """FSDP2 at the level of the surgery, without the Trainer and accelerate."""
    script = Path(__file__).parents[1].joinpath("helpers", "run_sharded.py")
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone", str(script), tmp_path],
        capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}, timeout=300,
    )  # fmt: skip
    assert "sharded as plain" in done.stdout, done.stderr[-3000:]
    assert AutoModelForCausalLM.from_pretrained(tmp_path).config.num_hidden_layers == 4
