"""The private parts of the trainers that are hung on are as they were when this was tested; callbacks run when they did."""

import inspect

import pytest
from peft import PromptTuningConfig
from tiny import make_model
from transformers import Trainer, TrainingArguments
from trl import SFTTrainer, TrlParser

from trim_trainer import TrimConfig, TrimHistory, TrimTrainer
from trim_trainer.training import hooks
from trim_trainer.training.hooks import NUM_BEFORE, HookedTrainer, name_arguments

SIGNATURES = {
    "_init_training_state": "(self, max_steps, num_update_steps_per_epoch, num_train_epochs, resume_from_checkpoint, trial)"
    " -> tuple[int, int]",
    "_prepare_for_training": "(self, max_steps, train_dataloader, resume_from_checkpoint)",
    "_finalize_training": "(self, trial, num_train_samples, start_time)",
    "_load_best_model": "(self) -> None",
    "_save": "(self, output_dir: str | None = None, state_dict: dict | None = None) -> None",
    "_save_checkpoint": None,
    "_tune_save_checkpoint": "(self, checkpoint_dir: str) -> None",
    "_push_from_checkpoint": "(self, checkpoint_folder: str) -> None",
    "_finish_current_push": "(self) -> None",
    "_prepare_dataset": None,
}


def parameters(function):
    return list(inspect.signature(function).parameters)


@pytest.mark.parametrize("name", SIGNATURES)
def test_the_hook_has_the_signature_that_it_is_hung_on(name):
    found = getattr(SFTTrainer, name)
    if SIGNATURES[name] is not None:
        assert str(inspect.signature(found)).replace("'", "").replace('"', "") == SIGNATURES[name]
    if name in vars(HookedTrainer):
        assert parameters(getattr(HookedTrainer, name)) == parameters(found)


def test_nothing_else_that_is_private_is_overridden():
    own = {
        name for cls in (HookedTrainer,) for name in vars(cls) if name.startswith("_") and not name.startswith("__")
    }
    assert own - {"_writing_checkpoint"} == SIGNATURES.keys() - {"_prepare_dataset"}


def test_rows_are_prepared_by_the_arguments_that_are_handed_over():
    names = ["self", "dataset", "processing_class", "args", "packing", "formatting_func", "dataset_name"]
    assert parameters(SFTTrainer._prepare_dataset) == names
    assert parameters(SFTTrainer._save_checkpoint) == ["self", "model", "trial"]


def test_what_comes_by_position_is_named():
    names = list(inspect.signature(SFTTrainer).parameters)
    assert names[:NUM_BEFORE] == list(inspect.signature(TrimTrainer).parameters)[:NUM_BEFORE]
    values = list(range(len(names) - NUM_BEFORE))
    assert name_arguments(tuple(values), {}) == dict(zip(names[NUM_BEFORE:], values, strict=True))
    assert name_arguments((1,), {"callbacks": []}) == {names[NUM_BEFORE]: 1, "callbacks": []}
    for behind, named in ((tuple(values) + (0,), {}), ((1,), {names[NUM_BEFORE]: 1}), ((), {"callback": []})):
        with pytest.raises(TypeError):
            name_arguments(behind, named)


def test_adapters_that_come_by_position_are_seen(sets, tokenizer, tmp_path):
    prompt = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)
    args = TrimConfig(output_dir=str(tmp_path), target_layers=3, use_cpu=True, bf16=False)
    behind = (None, None, None, (None, None), None, None, None, prompt)
    with pytest.raises(ValueError, match="A target is set and `peft_config` is a PromptTuningConfig"):
        TrimTrainer(make_model(), args, None, *sets[:2], tokenizer, *behind)


def test_the_callbacks_run_right_before_logging_evaluating_and_saving():
    """In the text of the loop, each of the two calls stands in front of the one that logs, evaluates and saves."""
    text = "".join(inspect.getsource(Trainer).split())
    for event in ("on_step_end", "on_epoch_end"):
        call = f"self.control=self.callback_handler.{event}(self.args,self.state,self.control)"
        assert f"{call}self._maybe_log_save_evaluate(" in text


def test_private_attributes_are_there(make_trainer):
    trainer = make_trainer(target_layers=4)
    assert trainer.text_tokenizer is trainer.processing_class
    assert trainer.num_train_tokens == 0
    assert trainer._skip_prepare_dataset in (True, False) and trainer._formatting_func is None


def test_one_gpu_of_several_is_used(tmp_path):
    args = TrimConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False)
    args._n_gpu = 2
    hooks.use_one_gpu(args)
    assert args.n_gpu == 1 and isinstance(args, TrainingArguments)
    assert "learning_rate" in hooks.options_of(TrlParser((TrimConfig,)))


def test_layers_drop_before_what_a_step_logs_and_saves(make_trainer, tmp_path):
    fields = {"save_strategy": "steps", "save_steps": 1, "sparse_update_ratio": None}
    trainer = make_trainer(target_layers=5, trim_steps=1, max_steps=2, **fields)
    trainer.train()
    kinds = [
        (entry["step"], "drop" if "trim_depth" in entry else "loss")
        for entry in trainer.state.log_history
        if "loss" in entry or "trim_depth" in entry
    ]
    assert kinds == [(1, "drop"), (1, "loss"), (2, "loss")]
    assert TrimHistory.load(tmp_path / "run" / "checkpoint-1").depth == 5
