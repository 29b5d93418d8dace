"""What a checkpoint can be exported to has in common."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from transformers import PretrainedConfig

from ..hub.export_card import LIBRARIES
from .environments import Environment


@dataclass(frozen=True)
class Target:
    """A runtime, or a format that another library writes.

    Attributes:
        name: That it is asked for by; also that of the runtime in `runners/hold.py`.
        writer: The library that writes it, in words.
        weights: How they can be stored, the usual way first.
        exact: Of these, with which every greedy token has to be that of Transformers; None: none.
        environment: That of the library.
        check: Raises an ExportError where the library does not know the architecture.
        make: Writes the export: (interpreter, checkpoint, output, weights, texts as tokens).
        needs_texts: Whether it looks at texts, of the run's training set.
        model_files: Patterns of the weights.
    """

    name: str
    writer: str
    weights: tuple[str, ...]
    exact: str | None
    environment: Environment
    check: Callable[[Path, PretrainedConfig], None]
    make: Callable[[Path, Path, Path, str, list[list[int]]], None]
    model_files: tuple[str, ...]
    needs_texts: bool = False

    @property
    def title(self) -> str:
        """In words."""
        return LIBRARIES[self.name].title

    def num_bytes(self, folder: Path) -> int:
        """Of the weights in what it wrote."""
        files = {path for pattern in self.model_files for path in folder.glob(pattern)}
        return sum(path.stat().st_size for path in files)
