"""Quantize by GPTQ (Frantar et al., ICLR 2023, arXiv 2210.17323) through optimum: a checkpoint that Transformers loads."""

import json
import tempfile
from pathlib import Path

from transformers import PretrainedConfig

from .environments import Environment, ExportError
from .session import run_step
from .target import Target

# gptqmodel pins an older numpy than what trains here takes, so it has an environment of its own too.
ENVIRONMENT = Environment(
    "gptq",
    packages=("transformers==5.23.0", "optimum==2.3.0", "gptqmodel==7.6.0"),
    alone=(),
    check="from optimum.gptq import GPTQQuantizer; import gptqmodel",
    modules=("gptqmodel", "optimum"),
)
NUM_TEXTS = 128  # of the training set
_RUNNER = Path(__file__).parent / "runners" / "quantize_gptq.py"
_KNOWN = """
import sys, torch
from optimum.gptq.utils import get_block_name_with_pattern
from transformers import AutoConfig, AutoModelForCausalLM
with torch.device("meta"):
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(sys.argv[1]))
get_block_name_with_pattern(model)
"""


def check(interpreter: Path, config: PretrainedConfig) -> None:
    """Raise an ExportError if optimum does not find the decoder layers of the architecture."""
    with tempfile.TemporaryDirectory() as folder:
        config.save_pretrained(folder)
        step = [interpreter, "-c", _KNOWN, folder]
        run_step(step, f"optimum's GPTQQuantizer does not know {config.model_type!r} models")


def make(interpreter: Path, source: Path, output: Path, weights: str, texts: list[list[int]]) -> None:
    """Write the quantized checkpoint and its tokenizer to `output`."""
    if not texts:
        raise ExportError(
            "gptq rounds weights by what they do to training texts, and there are none. Name a recipe with --task."
        )
    with tempfile.TemporaryDirectory() as folder:
        asked = Path(folder) / "request.json"
        request = {
            "model": str(source),
            "output": str(output),
            "bits": int(weights.removeprefix("int")),
            "texts": texts,
        }
        asked.write_text(json.dumps(request), encoding="utf-8")
        run_step([interpreter, "-I", _RUNNER, asked], f"optimum could not quantize {str(source)!r}")


GPTQ = Target(
    "gptq", "optimum", ("int4", "int8"), None, ENVIRONMENT, check, make, ("*.safetensors",), needs_texts=True
)
