"""What SFTTrainer can do, TrimTrainer does: the same scenarios with both, then with a target."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, PrefixTuningConfig
from tiny import make_examples, make_model
from transformers import AutoModelForCausalLM, EarlyStoppingCallback
from trl import SFTConfig, SFTTrainer

from trim_trainer import TrimConfig, TrimHistory, TrimTrainer
from trim_trainer.architectures.modules import find_layers

CHAT_TEMPLATE = (
    "{% for message in messages %}{% if message.role == 'assistant' %}Answer : "
    "{% generation %}{{ message.content }} </s>{% endgeneration %} {% else %}Question : {{ message.content }} "
    "{% endif %}{% endfor %}{% if add_generation_prompt %}Answer : {% endif %}"
)
BASE = {
    "use_cpu": True, "bf16": False, "max_steps": 8, "per_device_train_batch_size": 4, "learning_rate": 5e-3,
    "logging_steps": 1, "report_to": "none", "save_strategy": "no", "disable_tqdm": True, "seed": 3,
}  # fmt: skip


def turns(example):
    return [
        {"role": "user", "content": example["prompt"]},
        {"role": "assistant", "content": example["completion"].strip()},
    ]


# Formats of TRL, from the multiple-choice examples of the tests.
FORMATS: dict[str, Callable[[dict, Any], dict]] = {
    "choices": lambda e, tokenizer: e,
    "prompt_completion": lambda e, tokenizer: {"prompt": e["prompt"], "completion": e["completion"]},
    "conversational_prompt": lambda e, tokenizer: {"prompt": turns(e)[:1], "completion": turns(e)[1:]},
    "messages": lambda e, tokenizer: {"messages": turns(e)},
    "text": lambda e, tokenizer: {"text": e["prompt"] + e["completion"]},
    "content": lambda e, tokenizer: {"content": e["prompt"] + e["completion"]},
    "columns": lambda e, tokenizer: {"question": e["prompt"], "solution": e["completion"]},
    "tokenized": lambda e, tokenizer: {"input_ids": tokenizer(e["prompt"] + e["completion"])["input_ids"]},
}


@dataclass(frozen=True)
class Scenario:
    """A use of SFTTrainer: the format of the data, settings, and arguments of the trainer."""

    format: str = "prompt_completion"
    settings: dict = field(default_factory=dict)
    options: Callable[[], dict] = dict
    is_streaming: bool = False
    with_target: dict = field(default_factory=dict)  # settings that only a run with a target has


SAVING = {"eval_strategy": "steps", "eval_steps": 2, "save_strategy": "steps", "save_steps": 2}
SCENARIOS = {
    "multiple choice": Scenario("choices"),
    "prompt and completion": Scenario(),
    "conversational prompt": Scenario("conversational_prompt"),
    "messages": Scenario("messages"),
    "assistant only": Scenario("messages", {"assistant_only_loss": True}),
    "text": Scenario("text"),
    "text field": Scenario("content", {"dataset_text_field": "content"}),
    "formatting function": Scenario(
        "columns", options=lambda: {"formatting_func": lambda e: f"{e['question']}{e['solution']}"}
    ),
    "tokenized": Scenario("tokenized"),
    "streaming": Scenario(is_streaming=True),
    "packing": Scenario("text", {"packing": True, "max_length": 24}),
    "packing, wrapped": Scenario("text", {"packing": True, "packing_strategy": "wrapped", "max_length": 24}),
    "padding-free": Scenario("text", {"padding_free": True, "max_length": None}),
    "loss on everything": Scenario(settings={"completion_only_loss": False}),
    "dft loss": Scenario(settings={"loss_type": "dft"}),
    "gradient accumulation": Scenario(settings={"gradient_accumulation_steps": 3}),
    "gradient checkpointing": Scenario(settings={"gradient_checkpointing": True}),
    "no gradient checkpointing": Scenario(settings={"gradient_checkpointing": False}),
    "bf16": Scenario(settings={"bf16": True}),
    "torch.compile": Scenario(settings={"torch_compile": True, "torch_compile_backend": "eager"}),
    "epochs": Scenario(settings={"max_steps": -1, "num_train_epochs": 2}, with_target={"trim_strategy": "epoch"}),
    "evaluation": Scenario("choices", {"eval_strategy": "epoch", "max_steps": -1, "num_train_epochs": 1}),
    "evaluation by steps, saved": Scenario("choices", {**SAVING, "save_total_limit": 2}),
    "save only the model": Scenario(settings={**SAVING, "save_only_model": True}),
    "best model": Scenario(settings={**SAVING, "load_best_model_at_end": True}),
    "best model saved": Scenario(
        settings={"eval_strategy": "steps", "eval_steps": 2, "save_strategy": "best", "metric_for_best_model": "loss"}
    ),
    "early stopping": Scenario(
        settings={**SAVING, "load_best_model_at_end": True, "metric_for_best_model": "loss"},
        options=lambda: {"callbacks": [EarlyStoppingCallback(3)]},
    ),
    "cosine schedule": Scenario(settings={"lr_scheduler_type": "cosine", "warmup_steps": 0.2}),
    "plateau schedule": Scenario(
        settings={"lr_scheduler_type": "reduce_lr_on_plateau", **SAVING, "metric_for_best_model": "loss"}
    ),
    "neftune": Scenario(settings={"neftune_noise_alpha": 5.0}),
    "no clipping, weight decay": Scenario(settings={"max_grad_norm": 0.0, "weight_decay": 0.1}),
    "lora": Scenario(settings={"learning_rate": 1e-2}, options=lambda: {"peft_config": LoraConfig(task_type="CAUSAL_LM")}),
    "lora, accumulated, saved": Scenario(
        settings={**SAVING, "gradient_accumulation_steps": 2, "load_best_model_at_end": True},
        options=lambda: {"peft_config": LoraConfig(task_type="CAUSAL_LM", layers_to_transform=[1, 2, 4])},
    ),
    **{
        f"optim {name}": Scenario(settings={"optim": name})
        for name in ("adamw_torch", "adamw_torch_fused", "adafactor", "sgd", "rmsprop")
    },
    "optim schedule_free_adamw": Scenario(
        settings={"optim": "schedule_free_adamw", "lr_scheduler_type": "constant"}
    ),
}  # fmt: skip


# Near relatives of others above.
SLOW = {
    "text field", "packing, wrapped", "bf16", "torch.compile", "evaluation by steps, saved", "best model saved",
    "cosine schedule", "plateau schedule", "no clipping, weight decay", "optim adamw_torch", "optim sgd", "optim rmsprop",
}  # fmt: skip
NAMES = [pytest.param(name, marks=pytest.mark.slow if name in SLOW else ()) for name in SCENARIOS]


@pytest.fixture
def train(tokenizer, tmp_path):
    """Returns a function that trains a fresh tiny model in a scenario."""
    tokenizer.chat_template = CHAT_TEMPLATE

    def dataset(scenario, number, first):
        rows = [FORMATS[scenario.format](example, tokenizer) for example in make_examples(number, first)]
        made = Dataset.from_list(rows)
        return made.to_iterable_dataset() if scenario.is_streaming else made

    def run(scenario, trainer_class, config_class, **more):
        settings = BASE | scenario.settings | more
        name = f"{trainer_class.__name__}-{'target_layers' in more}"
        trainer = trainer_class(
            model=make_model(),
            args=config_class(output_dir=str(tmp_path / name), **settings),
            train_dataset=dataset(scenario, 64, 0),
            eval_dataset=dataset(scenario, 16, 100),
            processing_class=tokenizer,
            **scenario.options(),
        )
        trainer.train()
        return trainer

    return run


def losses(trainer):
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


@pytest.mark.parametrize("name", NAMES)
def test_without_a_target_every_loss_is_that_of_sft_trainer(name, train):
    expected = train(SCENARIOS[name], SFTTrainer, SFTConfig)
    trainer = train(SCENARIOS[name], TrimTrainer, TrimConfig)
    assert losses(trainer) == losses(expected) and len(losses(trainer)) >= 4
    for key, tensor in expected.model.state_dict().items():
        assert torch.equal(trainer.model.state_dict()[key], tensor)


@pytest.mark.parametrize("name", NAMES)
def test_with_a_target_the_same_scenario_ends_in_a_checkpoint_that_loads(name, train, tmp_path):
    scenario = SCENARIOS[name]
    trainer = train(scenario, TrimTrainer, TrimConfig, target_layers=4, calibration_size=6, **scenario.with_target)
    trainer.save_model(str(tmp_path / "out"))
    assert len(trainer.history.drops) == 2
    depth = TrimHistory.load(tmp_path / "out").depth
    # The best checkpoint may come from before a drop; without `load_best_model_at_end` it is the target.
    assert depth == 4 or trainer.args.load_best_model_at_end
    model, info = AutoModelForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert model.config.num_hidden_layers == len(find_layers(model)) == depth
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))


def test_the_best_checkpoint_of_another_depth_loads(train, tmp_path):
    """Where few tokens seen are called best, the first checkpoint is, before any drop."""
    best = {"load_best_model_at_end": True, "metric_for_best_model": "num_tokens", "greater_is_better": False}
    trainer = train(Scenario("choices", SAVING | best), TrimTrainer, TrimConfig, target_layers=4, trim_steps=3)
    assert trainer.state.best_global_step == 2 and len(trainer.state.log_history) > 8
    assert trainer.history.depth == trainer.model.config.num_hidden_layers == 6
    best = AutoModelForCausalLM.from_pretrained(trainer.state.best_model_checkpoint)
    for key, tensor in best.state_dict().items():
        assert torch.equal(trainer.model.state_dict()[key], tensor)
    trainer.save_model(str(tmp_path / "out"))
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out").config.num_hidden_layers == trainer.history.depth


def test_a_prompt_that_is_trained_is_refused(train):
    scenario = Scenario(
        options=lambda: {"peft_config": PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)}
    )
    with pytest.raises(ValueError, match="`peft_config` is a PrefixTuningConfig.*LoraConfig"):
        train(scenario, TrimTrainer, TrimConfig, target_layers=4)


def test_layers_of_the_same_weights_are_refused(train):
    scenario = Scenario(
        options=lambda: {"peft_config": LoraConfig(task_type="CAUSAL_LM", layer_replication=[(0, 4), (2, 6)])}
    )
    with pytest.raises(ValueError, match=r"`layer_replication` of `peft_config` is \[\(0, 4\), \(2, 6\)\]"):
        train(scenario, TrimTrainer, TrimConfig, target_layers=3)


def test_drops_depth_and_importance_appear_in_tensorboard(train, tmp_path, monkeypatch):
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "events"))
    train(Scenario(settings={"report_to": "tensorboard"}), TrimTrainer, TrimConfig, target_layers=3, layers_per_trim=2)
    events = event_accumulator.EventAccumulator(str(next((tmp_path / "events").rglob("events*")).parent))
    events.Reload()
    depths = [event.value for event in events.Scalars("train/trim_depth")]
    assert depths == [4, 3]
    assert len(events.Scalars("train/importance/layer_00")) >= 1
    assert {"train/trim_layer", "train/trim_layer_2", "train/trim_score"} <= set(events.Tags()["scalars"])


def test_and_in_trackio(train):
    storage = pytest.importorskip("trackio.sqlite_storage")
    settings = {"report_to": "trackio", "project": "tiny", "run_name": "trimmed"}
    train(Scenario(settings=settings), TrimTrainer, TrimConfig, target_layers=4)
    logs = storage.SQLiteStorage.get_logs("tiny", "trimmed")
    assert [entry["train/trim_depth"] for entry in logs if "train/trim_depth" in entry] == [5, 4]
    assert sum("train/importance/layer_00" in entry for entry in logs) >= 1
