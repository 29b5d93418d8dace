"""Fine-tune an LLM and drop its decoder layers while it trains; the result is a standard checkpoint."""

from importlib import import_module
from typing import TYPE_CHECKING

from .import_messages import keep_import_messages

__version__ = "0.1.0"

# Public name -> module. Resolved on first use, so that `import trim_trainer` loads no torch.
_PUBLIC = {
    "CRITERIA": "importance.criteria",
    "Calibration": "importance.calibration",
    "TrimConfig": "training.config",
    "TrimHistory": "records.history",
    "TrimTrainer": "training.trainer",
    "drop_layers": "surgery.drop",
    "droppable_layers": "architectures.droppable",
    "droppable_seams": "architectures.droppable",
    "export": "exporting.export",
    "publish": "hub.publishing",
    "score_layers": "importance.scores",
    "trim_vocabulary": "vocabulary.trim",
    "verify_checkpoint": "checkpoints.verification",
}

__all__ = sorted(_PUBLIC)

if TYPE_CHECKING:
    from .architectures.droppable import droppable_layers as droppable_layers
    from .architectures.droppable import droppable_seams as droppable_seams
    from .checkpoints.verification import verify_checkpoint as verify_checkpoint
    from .exporting.export import export as export
    from .hub.publishing import publish as publish
    from .importance.calibration import Calibration as Calibration
    from .importance.criteria import CRITERIA as CRITERIA
    from .importance.scores import score_layers as score_layers
    from .records.history import TrimHistory as TrimHistory
    from .surgery.drop import drop_layers as drop_layers
    from .training.config import TrimConfig as TrimConfig
    from .training.trainer import TrimTrainer as TrimTrainer
    from .vocabulary.trim import trim_vocabulary as trim_vocabulary

keep_import_messages()


def __getattr__(name: str):
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_PUBLIC[name]}", __name__), name)


def __dir__():
    return [*globals(), *_PUBLIC]
