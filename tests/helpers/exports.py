"""A target that needs no other environment: the checkpoint again, run by Transformers in a process of its own."""

import dataclasses

import torch
from tiny import make_model, make_tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

from trim_trainer.cli.main import main
from trim_trainer.exporting.environments import Environment
from trim_trainer.exporting.target import Target
from trim_trainer.hub import export_card

HERE = Environment("here", (), (), check="import torch", modules=("torch",))


def save_trimmed(folder, name="trimmed", model=None, cuts=("--layers", "2,4")):
    """A trimmed checkpoint with its history, as `trim-trainer drop` leaves it, beside the whole one; returns its folder."""
    (model or make_model()).save_pretrained(folder / "whole")
    make_tokenizer().save_pretrained(folder / "whole")
    assert main(["drop", str(folder / "whole"), *cuts, "--output", str(folder / name)]) == 0
    return folder / name


def make_target(spoil=lambda model: None, spoiled=("int8", "fp32")):
    """Such a target; `spoil` changes the model that it writes with the `spoiled` weights."""

    def make(interpreter, source, output, weights, texts):
        model = AutoModelForCausalLM.from_pretrained(source)
        with torch.no_grad():
            if weights in spoiled:
                spoil(model)
        model.save_pretrained(output)
        AutoTokenizer.from_pretrained(source).save_pretrained(output)

    def check(interpreter, config):
        pass

    return Target("transformers", "nobody", ("int8", "fp32"), "fp32", HERE, check, make, ("model.safetensors",))


def let_cards_know(monkeypatch):
    """Cards name the runtimes that they know."""
    again = dataclasses.replace(export_card.LIBRARIES["gptq"], title="Transformers again")
    monkeypatch.setitem(export_card.LIBRARIES, "transformers", again)
