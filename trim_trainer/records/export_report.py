"""What was exported and how it compares with the checkpoint; what was not measured is None."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from .files import EXPORT_NAME
from .measurement import Quality


@dataclass(frozen=True)
class Agreement:
    """Greedy continuations of an exported model, next to those of the checkpoint in single precision.

    Attributes:
        num_tokens: That were generated.
        num_equal: Of them, up to the first difference of each continuation.
        is_equal: Whether there is no difference but where two tokens were as likely as each other.
        loss_before: Of the checkpoint on its own continuations, nats per token.
        loss_after: Of the exported model on the same.
    """

    num_tokens: int
    num_equal: int
    is_equal: bool
    loss_before: float
    loss_after: float


@dataclass(frozen=True)
class ExportReport:
    """What was exported, and how it compares with the checkpoint in Transformers in single precision.

    Attributes:
        target: A name in `exporting.targets.TARGETS`.
        weights: How they are stored.
        source: The checkpoint.
        num_layers: Of the model.
        num_parameters: Of the checkpoint.
        num_bytes: Of the exported weights.
        num_bytes_before: Of the checkpoint's as they are stored.
        agreement: Of greedy continuations.
        task: What quality was measured on; None: it was not.
        before: Quality of the checkpoint.
        after: Quality of what was exported.
        versions: Packages that wrote and ran it, and their versions.
        files: SHA-256 of each file of the model.
        agreement_exact: Of the greedy continuations of an export in single precision, which is made where fewer bits cost so
            much that it has to be seen whether that is rounding; None: they did not.
    """

    target: str
    weights: str
    source: str
    num_layers: int
    num_parameters: int
    num_bytes: int
    num_bytes_before: int
    agreement: Agreement
    task: str | None = None
    before: Quality | None = None
    after: Quality | None = None
    versions: dict[str, str] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)
    agreement_exact: Agreement | None = None

    @property
    def revision(self) -> str:
        """The branch that it is published on."""
        return f"{self.target}-{self.weights}"

    def to_plain(self) -> dict[str, Any]:
        """As JSON knows it."""
        return asdict(self)

    def to_json(self) -> str:
        """As the file in the folder of what was exported."""
        return json.dumps(self.to_plain(), indent=1) + "\n"

    def save(self, folder: Path) -> None:
        """Write it into the folder of what was exported."""
        (folder / EXPORT_NAME).write_text(self.to_json(), encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> "ExportReport":
        """Read what `save` wrote.

        Raises:
            ValueError: the file is not such a report.
        """
        path = folder / EXPORT_NAME
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            quality = {name: data[name] and Quality(**data[name]) for name in ("before", "after")}
            exact = data.get("agreement_exact")  # reports before this was looked at do without
            agreements = {"agreement": Agreement(**data["agreement"]), "agreement_exact": exact and Agreement(**exact)}
            return cls(**data | quality | agreements)
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(
                f"{str(path)!r} is no report of an export: {error}. Export the checkpoint again."
            ) from error
