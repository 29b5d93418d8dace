"""Quantize a checkpoint with optimum's GPTQQuantizer, on tokens of its training data.

    python quantize_gptq.py REQUEST.json

REQUEST: `{"model": folder, "output": folder, "bits": n, "texts": [[id]]}`.
"""

import json
import sys

import torch

GROUP_SIZES = (128, 64, 32)  # input features that share a scale; all linear layers have to be whole groups


def choose_group_size(model) -> int:
    """The largest group size of which every linear layer of the decoder is a whole number; -1: a column each."""
    widths = {each.in_features for each in model.modules() if isinstance(each, torch.nn.Linear)}
    return next((size for size in GROUP_SIZES if all(width % size == 0 for width in widths)), -1)


def main(request: dict) -> None:
    """Do what a request says."""
    from optimum.gptq import GPTQQuantizer
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(request["model"], dtype="auto")
    if model.dtype == torch.float32:  # no kernel computes in it
        model = model.to(torch.bfloat16)
    texts = [{"input_ids": [ids], "attention_mask": [[1] * len(ids)]} for ids in request["texts"]]
    quantizer = GPTQQuantizer(bits=request["bits"], dataset=texts, group_size=choose_group_size(model))
    model = quantizer.quantize_model(model)
    # The data would stand in the config, and `save` stores another format than the one that stands there by now.
    quantizer.dataset = None
    model.config.quantization_config |= {"dataset": None, "format": "gptq"}
    quantizer.save(model, request["output"])
    AutoTokenizer.from_pretrained(request["model"]).save_pretrained(request["output"])


if __name__ == "__main__":
    with open(sys.argv[1], encoding="utf-8") as asked:
        main(json.load(asked))
