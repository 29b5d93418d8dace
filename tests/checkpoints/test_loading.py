"""One way to load a model for every command."""

import pytest
import zoo
from tiny import make_model
from transformers import AutoModelForImageTextToText

from trim_trainer.checkpoints.loading import Source


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
