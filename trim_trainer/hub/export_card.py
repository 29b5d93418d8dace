"""Report of an export -> its model card, which states what was compared and nothing else."""

from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import ModelCardData

from ..records.export_report import ExportReport
from ..records.files import CARD_NAME
from ..records.history import TrimHistory
from .card import template_environment
from .merging import BEGIN, END


@dataclass(frozen=True)
class Library:
    """What runs an export: its title, its name on the Hub, and how it loads one.

    In `loading` {name} is the folder or repository, {revision} the argument that names the branch, {folder} a local folder.
    """

    title: str
    name: str
    loading: str


LIBRARIES = {  # by target
    "openvino": Library(
        "OpenVINO",
        "openvino",
        """from optimum.intel import OVModelForCausalLM
from transformers import AutoTokenizer

model = OVModelForCausalLM.from_pretrained("{name}"{revision})
tokenizer = AutoTokenizer.from_pretrained("{name}"{revision})""",
    ),
    "onnx": Library(
        "ONNX Runtime GenAI",
        "onnxruntime-genai",
        """import onnxruntime_genai

model = onnxruntime_genai.Model({folder})
tokenizer = onnxruntime_genai.Tokenizer(model)""",
    ),
    "gptq": Library(
        "GPTQ",
        "transformers",
        """from transformers import AutoModelForCausalLM, AutoTokenizer  # with `pip install optimum gptqmodel`

model = AutoModelForCausalLM.from_pretrained("{name}"{revision})
tokenizer = AutoTokenizer.from_pretrained("{name}"{revision})""",
    ),
}


def render_export_card(
    report: ExportReport,
    history: TrimHistory | None,
    model_name: str,
    repo_id: str | None = None,
    branch: str | None = None,
) -> str:
    """Return the card of an export as Markdown with its YAML head.

    Args:
        report: What was exported and compared.
        history: Of the checkpoint; None: it was not trimmed here.
        model_name: Of the folder or the repository.
        repo_id: Where it is published; None: the card speaks of the folder that it lies in.
        branch: On which branch.
    """
    library = LIBRARIES[report.target]
    facts = history.card if history is not None else None
    base = facts and facts.base_model
    metadata = ModelCardData(
        base_model=base,
        license=facts and facts.license,
        license_name=facts and facts.license_name,
        license_link=facts and facts.license_link,
        library_name=library.name,
        pipeline_tag="text-generation",
        tags=["trim-trainer", "trimmed", report.target] if history is not None else [report.target],
        model_name=model_name,
        **({"base_model_relation": "finetune"} if base else {}),
    )
    revision = f', revision="{branch}"' if repo_id else ""
    snapshot = f'huggingface_hub.snapshot_download("{repo_id}"{revision})' if repo_id else f'"{model_name}"'
    return (
        template_environment()
        .get_template("export_card.md")
        .render(
            begin=BEGIN,
            end=END,
            metadata=metadata.to_yaml(),
            report=report,
            history=history,
            facts=facts,
            model_name=model_name,
            repo_id=repo_id,
            title=library.title,
            loading=library.loading.format(name=repo_id or model_name, revision=revision, folder=snapshot),
        )
    )


def write_export_card(folder: Path, report: ExportReport, history: TrimHistory | None, model_name: str) -> None:
    """Write `README.md` into the folder of an export."""
    (folder / CARD_NAME).write_text(render_export_card(report, history, model_name), encoding="utf-8")
