"""Export to OpenVINO through optimum-intel, which wants an older Transformers and so has an environment of its own."""

import json
from pathlib import Path

from transformers import PretrainedConfig

from ..architectures.configs import text_config
from .environments import Environment, ExportError
from .session import run_step
from .target import Target

TASK = "text-generation-with-past"
ENVIRONMENT = Environment(
    "openvino",
    packages=(
        "transformers==5.5.4", "optimum==2.3.0", "nncf==3.4.0", "openvino==2026.4.1", "openvino-tokenizers==2026.4.1.0",
        "requests==2.34.2", "pillow==13.0.0", "huggingface_hub==1.33.0",
    ),
    # It asks for torchvision, of which there is none for every torch, and exports text models without it.
    alone=("optimum-intel==2.2.0",),
    check="from optimum.intel import OVModelForCausalLM; from optimum.exporters.openvino import main_export",
)  # fmt: skip
_KNOWN = (
    "import sys; from optimum.exporters.openvino import main_export; from optimum.exporters.tasks import TasksManager; "
    "TasksManager.get_supported_tasks_for_model_type(sys.argv[1], exporter='openvino', library_name='transformers')[sys.argv[2]]"
)


def check(interpreter: Path, config: PretrainedConfig) -> None:
    """Raise an ExportError if optimum-intel does not know the architecture."""
    model_type = text_config(config).model_type
    run_step(
        [interpreter, "-c", _KNOWN, model_type, TASK],
        f"optimum-intel does not export {model_type!r} models to OpenVINO",
    )


def make(interpreter: Path, source: Path, output: Path, weights: str, texts: list[list[int]]) -> None:
    """Write the exported model and its tokenizer to `output`."""
    step = [interpreter, "-m", "optimum.commands.optimum_cli", "export", "openvino", "--model", source]
    step += ["--task", TASK, "--weight-format", weights, "--library", "transformers", output]
    if weights == "int4":  # layers that are no whole number of usual groups have smaller ones
        step += ["--group-size-fallback", "adjust"]
    run_step(step, f"optimum-intel could not export {str(source)!r}")
    if not (output / "openvino_model.xml").is_file():
        raise ExportError("optimum-intel ended without an error and wrote no model.")
    _forget_where_it_was(output / "openvino_config.json")


def _forget_where_it_was(path: Path) -> None:
    """optimum-intel writes down from which folder of this machine it took the tokenizer."""
    if not path.is_file():
        return
    config = json.loads(path.read_text(encoding="utf-8"))
    quantization = config.get("quantization_config") or {}
    quantization.update({name: None for name in ("tokenizer", "processor") if name in quantization})
    path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


OPENVINO = Target(
    "openvino", "optimum-intel", ("int8", "int4", "fp32"), "fp32", ENVIRONMENT, check, make,
    ("openvino_model.bin",),
)  # fmt: skip
