"""What people do with a trimmed model afterwards: it drafts for its parent, and learns soft prompts."""

import pytest
import torch
from datasets import Dataset
from peft import PeftModel, PrefixTuningConfig, PromptTuningConfig
from tiny import TRAINING, make_examples, make_model, make_tokenizer
from transformers import AutoModelForCausalLM
from trl import SFTConfig, SFTTrainer

from trim_trainer import drop_layers


@pytest.fixture
def folder(tmp_path):
    make_model().save_pretrained(tmp_path / "whole")
    drop_layers(make_model(), [2, 4]).save_pretrained(tmp_path / "trimmed")
    for name in ("whole", "trimmed"):
        make_tokenizer().save_pretrained(tmp_path / name)
    return tmp_path


@pytest.mark.parametrize("num_drafted", [1, 4])
def test_what_it_drafts_for_its_parent_changes_no_token(num_drafted, folder):
    parent = AutoModelForCausalLM.from_pretrained(folder / "whole")
    drafter = AutoModelForCausalLM.from_pretrained(folder / "trimmed")
    drafter.generation_config.num_assistant_tokens = num_drafted
    calls = []
    drafter.register_forward_hook(lambda *_: calls.append(1))
    for prompt in ([5, 6, 7], [9], [20, 21, 22, 23, 24]):
        options = {"input_ids": torch.tensor([prompt]), "max_new_tokens": 24, "do_sample": False, "eos_token_id": None}
        alone = parent.generate(**options)
        assert parent.generate(**options, assistant_model=drafter).tolist() == alone.tolist()
    assert calls


@pytest.mark.parametrize("kind", [PromptTuningConfig, PrefixTuningConfig])
def test_it_learns_soft_prompts(kind, folder, tmp_path):
    trainer = SFTTrainer(
        model=str(folder / "trimmed"),
        args=SFTConfig(
            output_dir=str(tmp_path / "out"), **TRAINING | {"learning_rate": 0.3, "gradient_checkpointing": False}
        ),
        train_dataset=Dataset.from_list(make_examples(60)).select_columns(["prompt", "completion"]),
        peft_config=kind(task_type="CAUSAL_LM", num_virtual_tokens=4),
    )
    trainer.train()
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    assert sum(losses[-4:]) < sum(losses[:4])
    trainer.save_model()
    base = AutoModelForCausalLM.from_pretrained(folder / "trimmed")
    loaded = PeftModel.from_pretrained(base, tmp_path / "out").eval()
    if kind is PrefixTuningConfig:
        assert loaded.active_peft_config.num_layers == 4
    ids = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        expected = trainer.model.eval()(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
        assert torch.equal(loaded(input_ids=ids, attention_mask=torch.ones_like(ids)).logits, expected)
