"""One way to load a model for every command."""

import json

import pytest
import torch
import zoo
from histories import make_history
from peft import LoraConfig, get_peft_model
from tiny import make_model
from torch.testing import assert_close
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, AutoTokenizer

from trim_trainer import drop_layers
from trim_trainer.checkpoints.loading import Source, SourceError
from trim_trainer.cli.main import main
from trim_trainer.records.history import TrimHistory


def test_a_name_may_hold_a_revision():
    assert Source.of("me/model") == Source("me/model", "main")
    assert Source.of("me/model@depth-26") == Source("me/model", "depth-26")
    assert Source.of("me/model", "v1") == Source("me/model", "v1")
    with pytest.raises(ValueError, match="`model` is 'me/model@a' and `revision` is 'b': name one revision"):
        Source.of("me/model@a", "b")
    with pytest.raises(ValueError, match="is no known source"):
        Source.of("pypi:nothing")


def test_a_folder_may_hold_an_at_sign(tmp_path):
    folder = tmp_path / "a@b"
    make_model().save_pretrained(folder)
    assert Source.of(str(folder)).load_model().config.num_hidden_layers == 6


def test_text_and_image_models_load_alike(tmp_path):
    zoo.make("gemma3", AutoModelForImageTextToText).save_pretrained(tmp_path / "images")
    make_model().save_pretrained(tmp_path / "text")
    names = [type(Source.of(str(tmp_path / name)).load_model()).__name__ for name in ("images", "text")]
    assert names == ["Gemma3ForConditionalGeneration", "LlamaForCausalLM"]


def test_a_checkpoint_that_lacks_weights_is_refused(tmp_path):
    make_model().model.save_pretrained(tmp_path)
    model = make_model(tie_word_embeddings=False)
    model.model.save_pretrained(tmp_path)
    model.config.architectures = ["LlamaForCausalLM"]
    model.config.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="holds no lm_head.weight: it is not a whole LlamaForCausalLM"):
        Source.of(str(tmp_path)).load_model()


def test_a_folder_without_a_model_says_so_and_names_its_last_checkpoint(tmp_path):
    with pytest.raises(SourceError, match="has no config.json, so there is no model in it. A training run"):
        Source.of(str(tmp_path)).load_config()
    for step in (5, 10):
        (tmp_path / f"checkpoint-{step}").mkdir()
    with pytest.raises(SourceError, match="Its last checkpoint is '.*checkpoint-10'"):
        Source.of(str(tmp_path)).load_model()


def test_the_tokenizer_beside_an_adapter_is_the_one_it_was_trained_with(tokenizer, tmp_path):
    make_model().save_pretrained(tmp_path / "base")
    tokenizer.chat_template = "{{ messages[0].content }}"
    tokenizer.save_pretrained(tmp_path / "base")
    adapted = get_peft_model(
        AutoModelForCausalLM.from_pretrained(tmp_path / "base"), LoraConfig(task_type="CAUSAL_LM", r=2)
    )
    adapted.save_pretrained(tmp_path / "adapter")
    assert (
        Source.of(str(tmp_path / "adapter")).load_tokenizer().chat_template == tokenizer.chat_template
    )  # of the base
    tokenizer.chat_template = "{{ messages[0].role }}: {{ messages[0].content }}"
    tokenizer.save_pretrained(tmp_path / "adapter")
    assert Source.of(str(tmp_path / "adapter")).load_processing_class().chat_template == tokenizer.chat_template
    assert main(["drop", str(tmp_path / "adapter"), "--layers", "1", "--output", str(tmp_path / "dropped")]) == 0
    assert AutoTokenizer.from_pretrained(tmp_path / "dropped").chat_template == tokenizer.chat_template


def test_an_adapter_apart_is_loaded_as_what_was_trained(make_trainer, tmp_path):
    lora = LoraConfig(task_type="CAUSAL_LM", r=2, init_lora_weights=False)
    trainer = make_trainer(target_layers=4, merge_adapter=False, peft_config=lora)
    trainer.train()
    trainer.save_model()
    run = tmp_path / "run"

    def logits(model):
        with torch.no_grad():
            return model.eval()(zoo.INPUT_IDS).logits

    expected = logits(trainer.model)
    for name in (run, run / "adapter"):
        source = Source.of(str(name))
        assert source.load_config().num_hidden_layers == 4
        assert_close(logits(source.load_model()), expected, atol=2e-4, rtol=1e-3)
        assert source.load_tokenizer()("the cat").input_ids
        dropped = tmp_path / f"dropped-{name.name}"
        assert main(["drop", str(name), "--layers", "1", "--output", str(dropped)]) == 0
        assert TrimHistory.load(dropped).num_layers == 6  # goes on with the run's history
        merged = drop_layers(trainer.model.merge_and_unload() if name.name == "adapter" else source.load_model(), [1])
        assert_close(logits(AutoModelForCausalLM.from_pretrained(dropped)), logits(merged), atol=2e-4, rtol=1e-3)


def test_an_adapter_of_a_checkpoint_to_resume_from_is_not_put_on_the_untrimmed_model(tmp_path):
    base, folder = tmp_path / "base", tmp_path / "checkpoint-16"
    make_model().save_pretrained(base)
    get_peft_model(make_model(num_layers=4), LoraConfig(task_type="CAUSAL_LM", r=2)).save_pretrained(folder)
    config = json.loads((folder / "adapter_config.json").read_text()) | {"base_model_name_or_path": str(base)}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    make_history().save(folder)  # four of six layers are left
    with pytest.raises(
        ValueError, match="is an adapter of 4 layers, its base model .* has 6: it is a checkpoint to resume"
    ):
        Source.of(str(folder)).load_model()
