"""What is scored is what SFTTrainer trains on, token for token: with a trainer and without one, in every format."""

import copy
import inspect
import json
import re
from dataclasses import asdict, fields
from functools import partial

import pytest
import torch
from datasets import Dataset, Features, IterableDataset, Json, LargeList, List, Value
from tiny import make_examples, make_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, ProcessorMixin
from trl import SFTConfig, SFTTrainer

from trim_trainer import TrimConfig, TrimTrainer, score_layers
from trim_trainer.data.preparation import TextSettings
from trim_trainer.data.splits import CalibrationError
from trim_trainer.data.tokens import tokenize_examples

TEMPLATE = (
    "{% if tools %}<tools>{{ tools | tojson }}</tools>{% endif %}"
    "{% if style is defined %}<style>{{ style }}</style>{% endif %}"
    "{% for m in messages %}<{{ m.role }}>"
    "{% if m.role == 'assistant' %}{% generation %}{{ m.content }}</s>{% endgeneration %}"
    "{% else %}{{ m.content }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
TOOL = {"type": "function", "function": {"name": "look", "parameters": {"colour": {"type": "string"}}}}
OTHER = {"type": "function", "function": {"name": "ask", "parameters": {"who": {"type": "string"}}}}


@pytest.fixture(scope="module")
def letters():
    """A tokenizer of bytes, so that no character of a text is lost."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: number for number, token in enumerate(["<pad>", "</s>", "<end>", *alphabet])}
    backend = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["<pad>", "</s>", "<end>"])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", eos_token="</s>")
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def said(role, text):
    return {"role": role, "content": text.strip()}


def chat(example, number):
    return {
        "prompt": [said("user", example["prompt"])],
        "completion": [said("assistant", example["completion"])],
        "choices": [[said("assistant", choice)] for choice in example["choices"]],
        "answer": example["answer"],
    }


def with_tools(example, number):
    return chat(example, number) | {"tools": [[TOOL], [OTHER], [TOOL, OTHER]][number % 3]}


def with_options(example, number):
    """Nested, with keys that not every row has; Arrow fills them in."""
    style = [{"short": True}, {"tone": {"warm": 3}}, {"tone": {"dry": "very"}, "short": False}][number % 3]
    return chat(example, number) | {"chat_template_kwargs": {"style": style}}


def with_long_choices(example, number):
    """Choices of different lengths behind a prompt of 120 bytes or more."""
    choices = [" red", " blue and green and red", " green, not blue"]
    return {
        "prompt": "x" * 75 + example["prompt"], "completion": choices[example["answer"]], "choices": choices,
        "answer": example["answer"],
    }  # fmt: skip


MESSAGES = List({"role": Value("string"), "content": Value("string")})
LARGE = LargeList({"role": Value("large_string"), "content": Value("large_string")})
TYPED = {
    "json": Features(
        {"prompt": MESSAGES, "completion": MESSAGES, "choices": List(MESSAGES), "answer": Value("int8")}
        | {"tools": List(Json())}
    ),
    "large": Features({"prompt": LARGE, "completion": LARGE, "choices": LargeList(LARGE), "answer": Value("int64")}),
}

# name -> row, settings, features
CASES = {
    "text": (lambda e, n: e, {}, None),
    "text that ends already": (
        lambda e, n: {**e, "completion": e["completion"] + "</s>", "choices": [c + "</s>" for c in e["choices"]]},
        {},
        None,
    ),
    "chat": (chat, {}, None),
    "system": (lambda e, n: chat(e, n) | {"prompt": [said("system", f"no {n}"), said("user", e["prompt"])]}, {}, None),
    "prefill": (
        lambda e, n: chat(e, n) | {"prompt": [said("user", e["prompt"]), said("assistant", "It is")]},
        {},
        None,
    ),
    "tools": (with_tools, {}, None),
    "tools as JSON": (lambda e, n: chat(e, n) | {"tools": json.dumps(with_tools(e, n)["tools"])}, {}, None),
    "tools typed as JSON": (with_tools, {}, TYPED["json"]),
    "large types": (chat, {}, TYPED["large"]),
    "options of the template": (with_options, {}, None),
    "assistant only": (chat, {"assistant_only_loss": True}, None),
    "assistant only, everywhere": (
        lambda e, n: (
            chat(e, n) | {"prompt": [said("user", "one"), said("assistant", "two"), said("user", e["prompt"])]}
        ),
        {"assistant_only_loss": True, "completion_only_loss": False},
        None,
    ),
    "loss on everything": (with_tools, {"completion_only_loss": False}, None),
    "another end": (lambda e, n: e, {"eos_token": "<end>"}, None),
    "another field": (lambda e, n: e | {"content": "no text"}, {"dataset_text_field": "content"}, None),
    "cut at the start": (with_long_choices, {"max_length": 130}, None),
    "cut at the end": (with_long_choices, {"max_length": 60, "truncation_mode": "keep_end"}, None),
    "cut, loss on everything": (with_long_choices, {"max_length": 130, "completion_only_loss": False}, None),
    "the end, loss on everything": (
        with_long_choices,
        {"max_length": 60, "truncation_mode": "keep_end", "completion_only_loss": False},
        None,
    ),
    "shuffled": (with_tools, {"shuffle_dataset": True}, None),
}
MODEL = {"vocab_size": 300, "max_position_embeddings": 2048, "num_layers": 2}


def make_rows(name, number=7, first=0):
    row = CASES[name][0]
    return [row(example, n) for n, example in enumerate(make_examples(number, first))]


def make_dataset(name, **options):
    return Dataset.from_list(make_rows(name, **options), features=CASES[name][2])


def trained(dataset, tokenizer, folder, settings, **options):
    """What SFTTrainer makes of a data set: one (ids, labels) per row, in its order."""
    args = SFTConfig(str(folder), use_cpu=True, bf16=False, report_to="none", **settings | {"shuffle_dataset": False})
    trainer = SFTTrainer(make_model(**MODEL), args, train_dataset=dataset, processing_class=tokenizer, **options)
    return [(list(map(int, row["input_ids"])), list(map(int, row["labels"]))) for row in trainer.train_dataset]


def as_if_right(dataset):
    """Each row once for each of its choices, as a training set in which that choice is the completion."""
    rows = [
        {name: value for name, value in row.items() if name not in ("choices", "answer")} | {"completion": choice}
        for row in dataset
        for choice in row["choices"]
    ]
    features = Features({name: kind for name, kind in dataset.features.items() if name not in ("choices", "answer")})
    return Dataset.from_list(rows, features=features).with_format(dataset.format["type"])


def as_trained(examples):
    """(ids, labels) per choice, without the label of the first token, which nothing predicts."""
    return [
        (
            [*example.prompt_ids, *ids],
            [*(example.prompt_labels or [-100] * len(example.prompt_ids)), *labels],
        )
        for example in examples
        for ids, labels in zip(example.choice_ids, example.choice_labels, strict=True)
    ]


def unpredicted(rows):
    return [(ids, [-100, *labels[1:]]) for ids, labels in rows]


def make_trainer(tokenizer, folder, calibration, settings, **options):
    args = TrimConfig(
        str(folder), use_cpu=True, bf16=False, report_to="none", target_layers=1, calibration_size=50, **settings
    )
    train, evaluation = options.pop("sets")
    return TrimTrainer(
        make_model(**MODEL), args, train_dataset=train, eval_dataset=evaluation, calibration_dataset=calibration,
        processing_class=tokenizer, **options,
    )  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_every_choice_is_scored_as_it_would_train(name, letters, tmp_path):
    settings, dataset = CASES[name][1], make_dataset(name)
    expected = unpredicted(trained(as_if_right(dataset), letters, tmp_path, settings))
    assert any(label != -100 for _, labels in expected for label in labels)
    found = tokenize_examples(dataset, letters, **{k: v for k, v in settings.items() if k != "shuffle_dataset"})
    assert as_trained(found) == expected
    assert [example.answer for example in found] == list(dataset["answer"])
    sets = make_dataset(name, first=20), make_dataset(name, first=40)
    trainer = make_trainer(letters, tmp_path / "run", dataset, settings, sets=sets)
    assert trainer.tokenize_examples(dataset) == found
    assert all(len(example.prompt_ids) > 0 for example in found) == (settings.get("truncation_mode") != "keep_end")
    right = trained(sets[1], letters, tmp_path, settings)
    of_answers = [
        unpredicted([row])[0]
        for example in trainer.tokenize_examples(sets[1])
        for row in as_trained([example])[example.answer : example.answer + 1]
    ]
    assert of_answers == unpredicted(right)


@pytest.mark.parametrize(
    "kind", ["list", "stream", "typed stream", "numpy stream", "arrow stream", "numpy", "arrow", "pandas"]
)
def test_the_kind_of_data_set_changes_nothing(kind, letters):
    dataset = make_dataset("tools typed as JSON")
    rows = list(dataset)
    given = {
        "list": rows,
        "stream": IterableDataset.from_generator(lambda: iter(rows)),
        "typed stream": dataset.to_iterable_dataset(),
        "numpy stream": dataset.to_iterable_dataset().with_format("numpy"),
        "arrow stream": dataset.to_iterable_dataset().with_format("arrow"),
    }.get(kind)
    expected = tokenize_examples(dataset, letters)
    assert tokenize_examples(dataset.with_format(kind) if given is None else given, letters) == expected
    assert rows == list(dataset)


def test_tensors_reach_the_template_as_in_training(letters, tmp_path):
    """A template that prints a number of a row prints what the format of the data set makes of it."""
    dataset = make_dataset("options of the template").with_format("torch")
    expected = unpredicted(trained(as_if_right(dataset), letters, tmp_path, {}))
    assert "<Tensor>" in letters.decode(expected[3][0])
    assert as_trained(tokenize_examples(dataset, letters)) == expected


def test_keys_of_a_list_of_rows_are_not_filled_in(letters):
    """As in a stream, each row of a list stands for itself."""
    rows = make_rows("options of the template", 3)
    rows[1] |= {"tools": [TOOL]}
    texts = [letters.decode(example.prompt_ids) for example in tokenize_examples(rows, letters)]
    assert "<style>{'short': True}</style>" in texts[0] and "<tools>" not in texts[0]
    assert "<style>{'tone': {'warm': 3}}</style>" in texts[1] and '"name": "look"' in texts[1]


def test_options_that_arrow_fills_in_for_a_row_without_any_are_none(letters):
    rows = make_rows("options of the template", 2)
    del rows[1]["chat_template_kwargs"]
    first, second = tokenize_examples(Dataset.from_list(rows), letters)
    assert "<style>" in letters.decode(first.prompt_ids) and "<style>" not in letters.decode(second.prompt_ids)


def test_a_formatting_function_sees_each_choice_as_the_right_one(letters, tmp_path):
    def formatting(row):
        assert set(row) <= {"prompt", "completion", "choices", "answer"}
        return f"{row['prompt']}: {row['choices'][row['answer']]}"

    dataset = make_dataset("text")
    settings = {"completion_only_loss": False}
    sets = make_dataset("text", first=20), make_dataset("text", first=40)
    trainer = make_trainer(letters, tmp_path, dataset, settings, sets=sets, formatting_func=formatting)
    expected = trained(sets[1], letters, tmp_path / "sft", settings, formatting_func=formatting)
    right = [as_trained([example])[example.answer] for example in trainer.tokenize_examples(sets[1])]
    assert right == unpredicted(expected)


@pytest.mark.parametrize(
    ("row", "settings"),
    [
        (lambda e: {"messages": chat(e, 0)["prompt"] + chat(e, 0)["completion"], "tools": [TOOL]}, {}),
        (
            lambda e: {"messages": chat(e, 0)["prompt"] + chat(e, 0)["completion"], "tools": [TOOL]},
            {"assistant_only_loss": True},
        ),
        (lambda e: {"conversations": [{"from": "user", "value": e["prompt"]}, {"from": "assistant", "value": "no"}]}, {}),
        (lambda e: {"text": e["prompt"]}, {"max_length": 20}),
        (lambda e: {"content": e["prompt"]}, {"dataset_text_field": "content"}),
        (lambda e: {"prompt": e["prompt"], "completion": e["completion"], "answer": "red"}, {}),
        (lambda e: {"prompt": e["prompt"], "completion": e["completion"]}, {"completion_only_loss": False}),
    ],
)  # fmt: skip
def test_examples_without_choices_are_scored_as_they_train(row, settings, letters, tmp_path):
    rows = [row(example) for example in make_examples(5)]
    before = json.dumps(rows)
    expected = unpredicted(trained(Dataset.from_list(rows), letters, tmp_path, settings))
    assert as_trained(tokenize_examples(rows, letters, **settings)) == expected
    assert json.dumps(rows) == before
    assert as_trained(tokenize_examples(Dataset.from_list(rows), letters, **settings)) == expected


def test_a_chat_template_that_a_config_names_is_used(letters, tmp_path):
    (tmp_path / "other.jinja").write_text("{% for m in messages %}[{{ m.content }}]{% endfor %}")
    settings = {"chat_template_path": str(tmp_path / "other.jinja")}
    dataset, before = make_dataset("tools"), letters.chat_template
    found = tokenize_examples(dataset, letters, **settings)
    assert letters.chat_template == before
    assert letters.decode(found[0].prompt_ids + found[0].choice_ids[0]).startswith("[Question : one")


def test_scores_are_those_of_the_text_that_trains(letters):
    """The choice is judged behind the tools: without them another layer's score comes out."""
    model, rows = make_model(**MODEL), make_rows("tools")
    with_them = score_layers(model, letters, rows, metric="loss")
    without = score_layers(model, letters, [{**row, "tools": None} for row in rows], metric="loss")
    assert with_them != pytest.approx(without, abs=1e-6)
    with torch.no_grad():
        losses, counts = [], []
        for example in tokenize_examples(rows, letters):
            ids, labels = as_trained([example])[example.answer]
            counts.append(sum(label != -100 for label in labels))
            losses.append(model(torch.tensor([ids]), labels=torch.tensor([labels])).loss.item() * counts[-1])
    seen = []
    score_layers(model, letters, rows, lambda c: (seen.append(c.examples), torch.zeros(2))[1], metric="loss")
    assert sum(example.num_scored for example in seen[0]) == sum(counts)


def test_score_layers_cuts_as_a_config_says(letters, tmp_path):
    model, rows = make_model(**MODEL), make_rows("cut at the start")
    args = SFTConfig(str(tmp_path), use_cpu=True, bf16=False, max_length=130, eos_token="<end>")
    seen = []
    score_layers(model, letters, rows, lambda c: (seen.extend(c.examples), torch.zeros(2))[1], None, args=args)
    expected = unpredicted(
        trained(as_if_right(Dataset.from_list(rows)), letters, tmp_path, {"max_length": 130, "eos_token": "<end>"})
    )
    letters.eos_token = "</s>"  # SFTTrainer has changed it
    assert as_trained(seen) == expected


def test_the_preparation_asks_for_what_stands_in_for_a_trainer():
    text = inspect.getsource(SFTTrainer._prepare_dataset)
    names = ["self", "dataset", "processing_class", "args", "packing", "formatting_func", "dataset_name"]
    assert list(inspect.signature(SFTTrainer._prepare_dataset).parameters) == names
    assert set(re.findall(r"self\.(\w+)", text)) == {"_tokenizer", "chat_template", "completion_only_loss"}
    asked = set(re.findall(r"\bargs\.(\w+)", text)) - {"packing_strategy", "seed"}  # packing, and an order
    assert all(hasattr(TextSettings, name) for name in asked)


def test_settings_have_the_defaults_of_trl_but_for_the_length():
    defaults = {field.name: field.default for field in fields(SFTConfig)}
    assert {name: value for name, value in asdict(TextSettings()).items() if value != defaults[name]} == {
        "max_length": None
    }


class Processor(ProcessorMixin):
    """One as image-text models have it: a batch of one comes out, and its template wants parts of messages."""

    def __init__(self, tokenizer, chat_template=None, **kwargs):
        super().__init__(tokenizer, chat_template=chat_template)

    def __call__(self, text=None, images=None, **kwargs):
        return self.tokenizer([text] if isinstance(text, str) else text)


@pytest.mark.parametrize("name", ["text", "chat", "tools", "another end"])
def test_the_processor_of_an_image_text_model_prepares_texts(name, letters, tmp_path):
    settings, template = CASES[name][1], TEMPLATE.replace("{{ m.content }}", "{{ m.content[0].text }}")
    processor = Processor(
        letters, chat_template=template.replace("{% generation %}", "").replace("{% endgeneration %}", "")
    )
    before = letters.eos_token
    found = tokenize_examples(make_dataset(name), processor, **settings)
    assert letters.eos_token == before
    expected = unpredicted(trained(as_if_right(make_dataset(name)), processor, tmp_path, settings))
    letters.eos_token = before  # SFTTrainer has changed it
    assert as_trained(found) == expected


def test_images_that_training_sees_and_scoring_does_not_are_refused(letters):
    with pytest.raises(CalibrationError, match="something in `images`.*text alone.*`calibration_dataset`"):
        tokenize_examples([make_rows("chat")[0] | {"images": ["a picture"]}], letters)
    assert tokenize_examples([make_rows("chat")[0] | {"images": []}], letters)


def test_a_tokenizer_without_an_end_of_text_ends_nothing(letters):
    bare = copy.deepcopy(letters)
    bare.eos_token = None
    (example,) = tokenize_examples(make_rows("text", 1), bare)
    assert [bare.decode(ids) for ids in example.choice_ids] == [" red", " blue", " green"]


def test_shapes_are_those_of_a_stream():
    """Rows go through TRL as a stream that knows no types: what is built on is there."""
    from datasets.iterable_dataset import ExamplesIterable

    dataset = IterableDataset(ExamplesIterable(partial(enumerate, [{"a": 1}, {"a": {"b": None}}]), {}))
    assert list(dataset) == [{"a": 1}, {"a": {"b": None}}] and dataset.column_names is None
