"""What a criterion may look at: the model, the calibration set, and a scan that runs when it is first needed."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from transformers import PreTrainedModel

from ..architectures.kept import Cut, candidate_cuts
from ..architectures.modules import find_layers
from ..data.examples import ScoredExample
from ..scoring.finite import check_finite
from ..scoring.layout import Layout
from ..scoring.scan import LayerScan, scan_layers
from ..scoring.takeover import Takeover
from .racing import Race, example_harms, find_contenders, race

IMPOSSIBLE = -1e4  # nats: log-probability of what no model would say


@dataclass(frozen=True)
class Settings:
    """How a calibration is done."""

    metric: str  # "accuracy" or "loss"
    layout: Layout  # from `choose_layout`
    batch_tokens: int | None = None  # that one pass carries at most
    layers_per_trim: int = 1  # that are dropped at once
    racing_confidence: float | None = None  # None: every candidate is scored on every example
    seed: int = 0  # for the criteria that draw
    takeovers: Mapping[Cut, Takeover] = field(default_factory=dict)  # candidate -> what is taken over when it goes
    with_seams: bool = False  # the seams between layers are scored too


@dataclass(frozen=True)
class Evidence:
    """What a criterion measured on the way to its scores."""

    log_probs: torch.Tensor  # (choices,): of the model as it is, nats
    activation_norms: torch.Tensor | None  # (layers,), as in `LayerScan`
    num_examples: tuple[int, ...] | None = None  # (cuts,): that each score comes from; None: all of them
    contenders: tuple[Cut, ...] | None = None  # of which the last goes; None: the one of the lowest score


class Calibration:
    """What a criterion may look at: the model and the calibration set. A scan runs when it is first needed.

    Attributes:
        model: A causal LM.
        examples: The calibration set.
        settings: How it is done.
        candidates: Layers that may go, and seams; none: it is not known which, and all are scored.
        evidence: What the scan or the race found; None: neither has run.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        examples: list[ScoredExample],
        settings: Settings,
        candidates: tuple[Cut, ...] = (),
    ):
        self.model, self.examples, self.settings, self.candidates = model, examples, settings, candidates
        self.evidence: Evidence | None = None

    @property
    def num_layers(self) -> int:
        """Depth of the model as it is now."""
        return len(find_layers(self.model))

    @cached_property
    def cuts(self) -> tuple[Cut, ...]:
        """What scores are of: the layers from front to back, and the seams between them if these are asked for."""
        return tuple(candidate_cuts(self.num_layers, self.settings.with_seams))

    @cached_property
    def scan(self) -> LayerScan:
        """The whole calibration set with every layer left out in turn."""
        found = self._scan(self.examples, list(self.cuts))
        if self.evidence is None:  # a race knows more: how many examples each score comes from
            self.evidence = Evidence(found.log_probs[0], found.activation_norms)
        return found

    @cached_property
    def candidate_scan(self) -> LayerScan:
        """The same with every candidate left out in turn: layers that have to stay cost a pass and say nothing."""
        if len(self.candidates) in (0, len(self.cuts)):
            return self.scan
        found = self._scan(self.examples, list(self.candidates))
        counts = [len(self.examples) * (cut in self.candidates) for cut in self.cuts]
        self.evidence = Evidence(found.log_probs[0], found.activation_norms, tuple(counts))
        return found

    @cached_property
    def race(self) -> Race:
        """The same in stages that the clearly worse candidates do not survive."""
        settings = self.settings
        found = race(
            self._scan,
            self.examples,
            settings.metric,
            self.candidates,
            settings.layers_per_trim,
            settings.racing_confidence,
            settings.seed,
        )
        counts = dict(zip(self.candidates, found.num_examples.tolist(), strict=True))
        num_examples = tuple(counts.get(cut, 0) for cut in self.cuts)
        self.evidence = Evidence(found.log_probs, found.activation_norms, num_examples)
        return found

    def let_the_last_go(self) -> None:
        """Note that of layers which are not clearly worse than the best the last one goes, whichever scored lowest."""
        if self.is_racing:
            found = self.race.contenders
        else:
            cuts = self.candidates or self.cuts
            settings = self.settings
            harms = example_harms(self.candidate_scan.log_probs, self.examples, settings.metric)
            found = find_contenders(harms, cuts, cuts, settings.metric, settings.layers_per_trim)
        self.evidence = replace(self.evidence, contenders=found)

    @property
    def is_racing(self) -> bool:
        """Whether candidates stop early."""
        return self.settings.racing_confidence is not None

    def _scan(self, examples: list[ScoredExample], candidates: list[Cut]) -> LayerScan:
        settings = self.settings
        found = scan_layers(
            self.model, examples, settings.layout, settings.batch_tokens, candidates, takeovers=settings.takeovers
        )
        check_finite(found.log_probs[0], self.model)
        return replace(found, log_probs=_readable(found.log_probs, examples))


def _readable(log_probs: torch.Tensor, examples: list[ScoredExample]) -> torch.Tensor:
    """Where the model returns no numbers without a candidate, as 16 bits that overflow do, its answers are all wrong."""
    is_lost = ~log_probs.isfinite()
    is_right = torch.tensor([k == example.answer for example in examples for k in range(len(example.choice_ids))])
    return torch.where(is_lost, torch.where(is_right, 2 * IMPOSSIBLE, IMPOSSIBLE), log_probs)
