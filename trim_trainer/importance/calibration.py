"""What a criterion may look at: the model, the calibration set, and a scan that runs when it is first needed."""

from dataclasses import dataclass, field
from functools import cached_property

from transformers import PreTrainedModel

from ..architectures.modules import find_layers
from ..data.examples import ScoredExample
from ..scoring.layout import Layout
from ..scoring.scan import LayerScan, scan_layers
from .racing import Race, race


@dataclass(frozen=True)
class Settings:
    """How a calibration is done."""

    metric: str  # "accuracy" or "loss"
    layout: Layout  # from `choose_layout`
    batch_tokens: int | None = None  # that one pass carries at most
    layers_per_trim: int = 1  # that are dropped at once
    racing_confidence: float | None = None  # None: every candidate is scored on every example
    seed: int = 0  # for the criteria that draw


@dataclass(frozen=True)
class Calibration:
    """What a criterion may look at: the model and the calibration set. A scan runs when it is first needed."""

    model: PreTrainedModel
    examples: list[ScoredExample]
    settings: Settings
    candidates: tuple[int, ...] = field(default=())  # layers that may go; a race is among them

    @property
    def num_layers(self) -> int:
        """Depth of the model as it is now."""
        return len(find_layers(self.model))

    @cached_property
    def scan(self) -> LayerScan:
        """The whole calibration set with every layer left out in turn."""
        return self._scan(self.examples, None)

    @cached_property
    def race(self) -> Race:
        """The same for `candidates` only, in stages that the clearly worse ones do not survive."""
        settings = self.settings
        return race(
            self._scan,
            self.examples,
            settings.metric,
            self.candidates,
            settings.layers_per_trim,
            settings.racing_confidence,
            settings.seed,
        )

    @property
    def is_racing(self) -> bool:
        """Whether candidates stop early."""
        return self.settings.racing_confidence is not None

    def _scan(self, examples: list[ScoredExample], candidates: list[int] | None) -> LayerScan:
        return scan_layers(self.model, examples, self.settings.layout, self.settings.batch_tokens, candidates)
