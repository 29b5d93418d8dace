"""Training on images beside texts: layers are scored on texts, and what is left still sees."""

import io

import pytest
import torch
from datasets import Dataset, Image, List
from PIL import Image as Picture
from tiny import make_tokenizer
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    CLIPImageProcessorPil,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
)

from trim_trainer import TrimConfig, TrimTrainer

TEMPLATE = (
    "{% for m in messages %}{% if m.content is string %}{{ m.content }}{% else %}{% for part in m.content %}"
    "{% if part.type == 'image' %}<image> {% else %}{{ part.text }}{% endif %}{% endfor %}{% endif %} {% endfor %}"
)
COLOURS = ("red", "green", "blue")


def talk(question, answer):
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def picture(number):
    packed = io.BytesIO()
    Picture.new("RGB", (28, 28), COLOURS[number % 3]).save(packed, "PNG")
    return {"bytes": packed.getvalue(), "path": None}


@pytest.fixture(scope="module")
def seeing(tmp_path_factory):
    """The folder of a tiny model that sees, examples with pictures, and texts."""
    tokenizer = make_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    tokenizer.chat_template = TEMPLATE
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4}
    torch.manual_seed(0)
    model = LlavaForConditionalGeneration(
        LlavaConfig(
            text_config=sizes | {"model_type": "llama", "num_hidden_layers": 6, "vocab_size": 96, "pad_token_id": 0},
            vision_config=sizes
            | {"model_type": "clip_vision_model", "num_hidden_layers": 3, "image_size": 28, "patch_size": 14},
            image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        )
    )
    size = {"height": 28, "width": 28}
    processor = LlavaProcessor(
        image_processor=CLIPImageProcessorPil(size={"shortest_edge": 28}, crop_size=size),
        tokenizer=tokenizer,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=TEMPLATE,
    )
    folder = tmp_path_factory.mktemp("seeing")
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    rows = [{"messages": talk("what colour is it", COLOURS[i % 3]), "images": [picture(i)]} for i in range(12)]
    pictures = Dataset.from_list(rows).cast_column("images", List(Image()))
    numbers = "one two three four five six seven eight".split()
    return str(folder), pictures, Dataset.from_list([{"messages": talk(f"is {n} big", "yes")} for n in numbers])


def make(seeing, output, **settings):
    model, pictures, texts = seeing
    options = {name: settings.pop(name) for name in ("train_dataset", "eval_dataset") if name in settings}
    usual = {"target_layers": 4, "trim_steps": 2, "max_steps": 8, "max_length": None, "save_strategy": "no"}
    args = TrimConfig(output_dir=str(output), use_cpu=True, bf16=False, report_to="none", **usual | settings)
    return TrimTrainer(model, args, calibration_dataset=texts, **{"train_dataset": pictures} | options)


SAVING = {"save_strategy": "steps", "save_steps": 2}


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"trim_unit": "sublayer"},
        {"save_depths": [5]} | SAVING,
        {
            "load_best_model_at_end": True,
            "metric_for_best_model": "num_tokens",
            "eval_strategy": "steps",
            "eval_steps": 2,
        }
        | {"greater_is_better": False, **SAVING},  # the first, which has more layers
        {"max_metric_drop": 1e-6, "calibration_metric": "loss", "learning_rate": 0.5},
    ],
    ids=["plain", "sublayer", "save_depths", "best", "floor"],
)
def test_what_is_left_sees_as_the_saved_one_does(settings, seeing, tmp_path):
    trainer = make(seeing, tmp_path, eval_dataset=seeing[1].select(range(4)), **settings)
    trainer.train()
    trainer.save_model()
    loaded, processor = (each.from_pretrained(tmp_path) for each in (AutoModelForImageTextToText, AutoProcessor))
    assert loaded.config.text_config.num_hidden_layers == trainer.history.depth
    given = processor(
        text="<image> what colour is it", images=Picture.new("RGB", (28, 28), "red"), return_tensors="pt"
    )
    trainer.model.eval()
    with torch.no_grad():
        seen, logits = trainer.model(**given).logits, loaded(**given).logits
        blind = loaded(**given | {"pixel_values": -given["pixel_values"]}).logits
    assert torch.equal(seen, logits) and not torch.allclose(logits, blind)


def test_nothing_takes_over_by_states_that_see_no_image(seeing, tmp_path):
    assert make(seeing, tmp_path).compensation_size == 0
    with pytest.raises(ValueError, match="`compensation_size` is 8, with images in the training set.*Set it to 0"):
        make(seeing, tmp_path, compensation_size=8)
    stream = make(seeing, tmp_path, train_dataset=seeing[1].to_iterable_dataset())
    assert stream.compensation_size == 0
    stream.train()
    assert stream.history.depth == 4
