"""What a trimming run writes loads as the model that was trained, whoever asks for it."""

import pytest
import torch
from peft import LoraConfig
from tiny import make_model
from torch.testing import assert_close
from transformers import AutoModelForCausalLM


def came_apart():
    model = make_model(tie_word_embeddings=True)
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach() * 1.5)
    return model


def resized():
    model = make_model(tie_word_embeddings=True)
    model.resize_token_embeddings(104)
    return model


@pytest.mark.parametrize("model", [came_apart, resized])
@pytest.mark.parametrize("is_adapted", [False, True])
def test_embeddings_that_came_apart_or_were_resized_load_as_they_were_trained(
    model, is_adapted, make_trainer, tmp_path
):
    config = LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"], init_lora_weights=False)
    trainer = make_trainer(model=model(), max_steps=4, target_layers=4, peft_config=config if is_adapted else None)
    trainer.train()
    trainer.save_model(str(tmp_path / "out"))
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert loaded.config.tie_word_embeddings == (model is resized)  # what every loader goes by
    ids = torch.arange(10, 40).view(2, 15)
    with torch.no_grad():
        assert_close(loaded(ids).logits, trainer.model.eval()(input_ids=ids).logits, atol=1e-5, rtol=1e-4)


def test_a_buffer_that_a_checkpoint_would_lose_is_refused_before_training(make_trainer):
    model = make_model()
    model.register_buffer("extra", torch.ones(3))
    with pytest.raises(RuntimeError, match="persistent=False.*extra"):
        make_trainer(model=model, target_layers=4)
    model = make_model()
    model.register_buffer("extra", torch.ones(3), persistent=False)
    make_trainer(model=model, target_layers=4)
