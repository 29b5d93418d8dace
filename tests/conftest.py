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
from tiny import CONFIGS, TRAINING, TRIMMING, make_examples, make_model, make_tokenizer
from transformers.utils import logging

from trim_trainer import TrimConfig, TrimTrainer
from trim_trainer.scoring import speed

torch.set_num_threads(1)  # much faster for tiny models
# What is timed is a tiny model: no more pairs of runs than it takes, of few tokens.
speed.MAX_SECONDS, speed.NUM_TIMED_RUNS, speed.NUM_TIMED_TOKENS = 0.0, 2, 4
logging.disable_progress_bar()
disable_progress_bars()


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


OPTIONS = (  # of the trainer
    "train_dataset", "eval_dataset", "peft_config", "callbacks", "compute_metrics", "optimizers",
    "data_collator", "processing_class",
)  # fmt: skip


@pytest.fixture
def make_trainer(sets, tokenizer, tmp_path):
    """Returns a factory of trainers on the tiny model; keyword arguments go to the config or to the trainer."""

    def make(
        trainer_class=TrimTrainer, config_class=TrimConfig, model=None, calibration=True, output_dir="run", **fields
    ):
        train, evaluation, calibration_set = sets
        options = {"calibration_dataset": calibration_set} if calibration and trainer_class is TrimTrainer else {}
        options |= {name: fields.pop(name) for name in OPTIONS if name in fields}
        trimming = TRIMMING if issubclass(config_class, TrimConfig) else {}
        args = config_class(output_dir=str(tmp_path / output_dir), **(TRAINING | trimming | fields))
        options = {"train_dataset": train, "eval_dataset": evaluation} | options
        return trainer_class(model or make_model(), args, **{"processing_class": tokenizer} | options)

    return make
