"""Criteria as rows: one function and one row each, with its paper; one score per layer, higher = keep."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from ..architectures.errors import UnsupportedArchitectureError
from ..data.metrics import measure
from .calibration import Calibration, Evidence
from .estimates import angular_distance, block_influence, taylor

TRIMLLM = "https://huggingface.co/papers/2412.11242"


@dataclass(frozen=True)
class Scored:
    """What a criterion says of each layer, and what it measured to say so."""

    values: torch.Tensor  # (layers,): higher = keep
    evidence: Evidence | None  # None: it needed no scan


@dataclass(frozen=True)
class Criterion:
    """A row of `CRITERIA`. `score` returns one number per layer, higher = keep."""

    score: Callable[[Calibration], torch.Tensor]
    paper: str | None = None
    scans: bool = False  # leaves out each layer in turn, which is what takes time
    takes_seams: bool = False  # scores the seams between layers as well as it does layers
    breaks_ties: bool = False  # equal scores: the layer with the largest activation norm goes first
    needs_gradients: bool = False  # of every weight of the layers
    spares_first: bool = False  # the first third of the layers stays, unless it is said which do

    def judge(self, calibration: Calibration) -> Scored:
        """Score every layer, and hand over what was measured on the way, also by a function of the user's."""
        values = self.score(calibration)
        return Scored(torch.as_tensor(values).float().cpu(), calibration.evidence)  # a list will do


def score_sensitivity(calibration: Calibration) -> torch.Tensor:
    """How much worse the metric gets without the layer: accuracy lost, or loss gained (TrimLLM)."""
    metric = calibration.settings.metric
    if calibration.is_racing:
        harms = calibration.race.harms
    else:
        values = measure(calibration.candidate_scan.log_probs, calibration.examples, metric)  # (1 + candidates,)
        harms = values[0] - values[1:] if metric == "accuracy" else values[1:] - values[0]
    if len(harms) == len(calibration.cuts):
        return harms
    # A layer that has to stay was not left out: it scores as the best of those that were.
    scores = torch.full((len(calibration.cuts),), harms.max().item(), dtype=harms.dtype)
    scores[[calibration.cuts.index(cut) for cut in calibration.candidates]] = harms
    return scores


def score_late_sensitivity(calibration: Calibration) -> torch.Tensor:
    """The same; of layers that are not clearly worse than the best of them on the same examples, the last goes.

    A calibration set tells layers apart that matter to what the model does already. What it will have to learn it cannot
    see, and there the last layers are missed least.
    """
    scores = score_sensitivity(calibration)
    calibration.let_the_last_go()
    return scores


def score_activation_norm(calibration: Calibration) -> torch.Tensor:
    """Layers with a large output norm go first (TrimLLM's criterion for ties, on its own)."""
    if calibration.scan.activation_norms is None:
        raise UnsupportedArchitectureError(
            f"The layers of {type(calibration.model).__name__} do not return (batch, seq, hidden), so their norms cannot "
            "be compared. Use `importance='sensitivity'`."
        )
    return -calibration.scan.activation_norms


def score_block_influence(calibration: Calibration) -> torch.Tensor:
    """How much the layer turns the hidden state: 1 - cosine of its input and output (ShortGPT)."""
    return block_influence(calibration.model, calibration.examples, calibration.settings.batch_tokens)


def score_angular(calibration: Calibration) -> torch.Tensor:
    """How much a block of `layers_per_trim` layers turns the last token's state (Gromov et al.)."""
    settings = calibration.settings
    return angular_distance(calibration.model, calibration.examples, settings.batch_tokens, settings.layers_per_trim)


def score_taylor(calibration: Calibration) -> torch.Tensor:
    """What removing each weight costs to first order: Σ of weight times gradient, absolute (Shortened LLaMA)."""
    return taylor(calibration.model, calibration.examples)


def score_tail(calibration: Calibration) -> torch.Tensor:
    """The last layers go first: the control that costs no scan."""
    return -torch.arange(calibration.num_layers, dtype=torch.float32)


def score_random(calibration: Calibration) -> torch.Tensor:
    """Layers go in random order: the control that knows nothing."""
    generator = torch.Generator().manual_seed(calibration.settings.seed)
    return torch.rand(calibration.num_layers, generator=generator)


CRITERIA = {
    "late_sensitivity": Criterion(
        score_late_sensitivity, TRIMLLM, scans=True, takes_seams=True, breaks_ties=True, spares_first=True
    ),
    "sensitivity": Criterion(score_sensitivity, TRIMLLM, scans=True, takes_seams=True, breaks_ties=True),
    "activation_norm": Criterion(score_activation_norm, TRIMLLM, scans=True),
    "block_influence": Criterion(score_block_influence, "https://huggingface.co/papers/2403.03853"),
    "angular": Criterion(score_angular, "https://huggingface.co/papers/2403.17887"),
    "taylor": Criterion(score_taylor, "https://huggingface.co/papers/2402.02834", needs_gradients=True),
    "tail": Criterion(score_tail, "https://huggingface.co/papers/2411.15558"),
    "random": Criterion(score_random),
}
# A name in `CRITERIA`, or a function of the user's own.
CriterionLike = str | Callable[[Calibration], torch.Tensor]


def find_criterion(criterion: CriterionLike) -> Criterion:
    """Return the row of `CRITERIA`, or one made of a function; raise a ValueError that lists the names."""
    if callable(criterion):
        return Criterion(criterion, takes_seams=True)
    if criterion not in CRITERIA:
        raise ValueError(f"`importance` is {criterion!r}, expected one of: {', '.join(sorted(CRITERIA))}.")
    return CRITERIA[criterion]


def criterion_name(criterion: CriterionLike) -> str:
    """The name under which a criterion is recorded."""
    return criterion if isinstance(criterion, str) else getattr(criterion, "__name__", type(criterion).__name__)
