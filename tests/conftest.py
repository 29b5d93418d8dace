import copy
import os
import tempfile

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("HF_UPDATE_DOWNLOAD_COUNTS", "0")
os.environ.setdefault("CI", "true")  # TRL sends no telemetry
os.environ["TRACKIO_DIR"] = tempfile.mkdtemp(prefix="trackio-")  # read once, by whatever test imports it first

import pytest
import torch
from datasets import Dataset, disable_progress_bars
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast, set_seed
from transformers.utils import logging

from trim_trainer import TrimConfig, TrimTrainer

torch.set_num_threads(1)  # much faster for tiny models
logging.disable_progress_bar()
disable_progress_bars()

NUM_LAYERS = 6
SLIDING, FULL = "sliding_attention", "full_attention"
IRREGULAR = [SLIDING, FULL, SLIDING, SLIDING, FULL, FULL]
WORDS = (
    "the cat dog sat ran on mat road red blue green big small is was it a an and or not what colour animal where "
    "Question Answer : yes no one two three four five six seven eight nine ten in out of to from with"
).split()

# Settings per layer that are irregular on purpose: a wrong entry changes logits. `zoo` has every architecture.
CONFIGS = {
    "llama": {},
    "mistral": {"sliding_window": 5},
    "phi3": {"sliding_window": None},
    "qwen2": {"layer_types": IRREGULAR, "use_sliding_window": True, "sliding_window": 4, "max_window_layers": 3},
    "qwen3": {"layer_types": IRREGULAR, "use_sliding_window": True, "sliding_window": 4, "max_window_layers": 3},
    "gemma3_text": {"layer_types": IRREGULAR, "sliding_window": 4},
    "smollm3": {"no_rope_layers": [1, 0, 0, 1, 1, 0]},
    "gpt2": {},
}


def make_model(model_type="llama", num_layers=NUM_LAYERS, seed=0, **overrides):
    """A tiny random model whose every weight differs from its initial value."""
    sizes = {"vocab_size": 96, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    if model_type == "gpt2":
        sizes |= {"n_embd": 32, "n_layer": num_layers, "n_head": 4, "n_positions": 128}
    else:
        sizes |= {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": num_layers, "head_dim": 8}
        sizes |= {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128}
    options = CONFIGS[model_type] if num_layers == NUM_LAYERS else {}
    set_seed(seed)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **(sizes | options | overrides)))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return model.eval()


def make_tokenizer():
    vocab = {word: number for number, word in enumerate(["<pad>", "<s>", "</s>", "<unk>", *WORDS])}
    backend = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split("</s>", "isolated"), pre_tokenizers.WhitespaceSplit()]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


def make_examples(number, first=0):
    """Multiple-choice examples, all different: what colour does an animal have?"""
    colours, animals = [" red", " blue", " green"], ["cat", "dog"]
    numbers = "one two three four five six seven eight nine ten".split()
    examples = []
    for i in range(first, first + number):
        answer = (i * 7 + i // 3) % 3
        prompt = f"Question : {numbers[i % 10]} {numbers[i // 10 % 10]} {numbers[i // 100]} {animals[i % 2]} colour is"
        examples.append({"prompt": prompt, "completion": colours[answer], "choices": colours, "answer": answer})
    return examples


@pytest.fixture
def tokenizer():
    return make_tokenizer()


@pytest.fixture(scope="session")
def _models():
    return {model_type: make_model(model_type) for model_type in CONFIGS}


@pytest.fixture
def tiny_model(_models):
    """Returns a factory of fresh copies of the tiny models."""
    return lambda model_type="llama": copy.deepcopy(_models[model_type])


@pytest.fixture
def sets():
    """Training, evaluation and calibration examples that share nothing."""
    return tuple(Dataset.from_list(make_examples(number, first)) for number, first in ((64, 0), (24, 100), (12, 200)))


def pytest_terminal_summary(terminalreporter, config):
    """Count the architectures of the sweep."""
    from sweep import summarize

    reports = config.stash.get(REPORTS, {})
    if reports:
        terminalreporter.section("layers dropped, saved, loaded: the same function?")
        for line in summarize(reports):
            terminalreporter.line(line)


REPORTS = pytest.StashKey[dict]()


@pytest.fixture(scope="session")
def reports(request):
    """What the sweep over all architectures found, by kind and name."""
    return request.config.stash.setdefault(REPORTS, {})


TRAINING = {
    "use_cpu": True,
    "bf16": False,
    "max_steps": 16,
    "per_device_train_batch_size": 4,
    "learning_rate": 1e-2,
    "logging_steps": 1,
    "report_to": "none",
    "save_strategy": "no",
    "disable_tqdm": True,
    "seed": 3,
}


@pytest.fixture
def make_trainer(sets, tokenizer, tmp_path):
    """Returns a factory of trainers on the tiny model; keyword arguments go to the config or to the trainer."""

    def make(
        trainer_class=TrimTrainer, config_class=TrimConfig, model=None, calibration=True, output_dir="run", **fields
    ):
        train, evaluation, calibration_set = sets
        options = {"calibration_dataset": calibration_set} if calibration and trainer_class is TrimTrainer else {}
        options |= {name: fields.pop(name) for name in ("train_dataset", "peft_config", "callbacks") if name in fields}
        args = config_class(output_dir=str(tmp_path / output_dir), **(TRAINING | fields))
        options = {"train_dataset": train, "eval_dataset": evaluation} | options
        return trainer_class(model or make_model(), args, processing_class=tokenizer, **options)

    return make
