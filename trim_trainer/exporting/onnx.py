"""Export to ONNX for ONNX Runtime GenAI, by the builder that comes with it."""

import json
import math
import tempfile
from pathlib import Path

from safetensors import safe_open
from transformers import PretrainedConfig

from .environments import Environment
from .session import run_step
from .target import Target

ENVIRONMENT = Environment(
    "onnx",
    packages=(
        "transformers==5.23.0", "onnxruntime-genai==0.18.0", "onnxruntime==1.32.0", "onnx==1.23.2", "onnx_ir==1.1.0",
        "onnxscript==0.7.2",
    ),
    alone=(),
    check="import onnxruntime_genai; from onnxruntime_genai.models import builder",
    modules=("onnxruntime_genai", "onnx_ir", "onnxscript"),
)  # fmt: skip

_BLOCKS = (32, 16)  # weights of a row that share a scale

_KNOWN = (
    "import inspect, sys; from onnxruntime_genai.models.builder import create_model; "
    "sys.exit(repr(sys.argv[1]).replace(chr(39), chr(34)) not in inspect.getsource(create_model) and 'not in its list')"
)


def check(interpreter: Path, config: PretrainedConfig) -> None:
    """Raise an ExportError if the builder, which compares names one after the other, does not know the architecture."""
    name = (config.architectures or [config.model_type])[0]
    run_step([interpreter, "-c", _KNOWN, name], f"the builder of ONNX Runtime GenAI does not know {name!r}")


def make(interpreter: Path, source: Path, output: Path, weights: str, texts: list[list[int]]) -> None:
    """Write the exported model and its tokenizer to `output`."""
    with tempfile.TemporaryDirectory() as cache:
        step = [interpreter, "-m", "onnxruntime_genai.models.builder", "-i", source, "-o", output]
        step += ["-p", weights, "-e", "cpu", "-c", cache]
        options = _quantizer(source) if weights == "int4" else []
        if json.loads((source / "config.json").read_text(encoding="utf-8")).get("tie_word_embeddings"):
            options = [*options, "shared_embeddings=true"]
        if options:
            step += ["--extra_options", *options]
        run_step(step, f"the builder of ONNX Runtime GenAI could not export {str(source)!r}")


def _quantizer(source: Path) -> list[str]:
    """How to round to four bits: k-quant, in blocks of which each row has an even number, as it packs two per byte.

    The builder's own way adds three times as much loss (docs/pages/faster.md has both) and takes rows of any length.
    """
    head = "matmul_mixed_precision=last_matmul:int8"
    lengths = _row_lengths(source)
    for block in _BLOCKS:
        if all(math.ceil(length / block) % 2 == 0 for length in lengths):
            return ["algo_config=k_quant", f"block_size={block}", head]
    return [head]


def _row_lengths(source: Path) -> set[int]:
    found = set()
    for path in source.glob("*.safetensors"):
        with safe_open(path, framework="np") as tensors:
            shapes = [tensors.get_slice(name).get_shape() for name in tensors.keys()]
        found |= {shape[-1] for shape in shapes if len(shape) == 2}
    return found


ONNX = Target(
    "onnx", "the builder of ONNX Runtime GenAI", ("int4", "int8", "fp32"), "fp32", ENVIRONMENT, check, make,
    ("model.onnx", "model.onnx.data"),
)  # fmt: skip
