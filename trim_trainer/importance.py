"""How much each layer matters: criteria as rows, one score per layer, higher = keep."""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cached_property

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from .architectures.errors import UnsupportedArchitectureError
from .architectures.modules import find_layers
from .criteria import angular_distance, block_influence, taylor
from .data.examples import ScoredExample
from .data.metrics import choose_metric, measure, scored_by
from .data.tokens import tokenize_examples
from .racing import Race, race
from .scoring.layout import Layout
from .scoring.scan import LayerScan, scan_layers, score_choices
from .scoring.trial import choose_layout

TRIMLLM = "https://huggingface.co/papers/2412.11242"


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


@dataclass(frozen=True)
class Criterion:
    """A row of `CRITERIA`. `score` returns one number per layer, higher = keep."""

    score: Callable[[Calibration], torch.Tensor]
    paper: str | None = None
    scans: bool = False  # leaves out each layer in turn, which is what takes time
    breaks_ties: bool = False  # equal scores: the layer with the largest activation norm goes first


@dataclass(frozen=True)
class LayerScores:
    """One calibration: the scores, and the facts that were measured on the way."""

    scores: tuple[float, ...]
    activation_norms: tuple[float, ...] | None  # None: the criterion needs no scan
    metric: float  # of the model as it is
    seconds: float = 0.0  # that the calibration took
    num_examples: tuple[int, ...] | None = None  # that each score comes from; None: all of them


def score_sensitivity(calibration: Calibration) -> torch.Tensor:
    """How much worse the metric gets without the layer: accuracy lost, or loss gained (TrimLLM)."""
    metric = calibration.settings.metric
    if calibration.is_racing:
        # A layer that has to stay did not race: it scores as the best of those that did.
        scores = torch.full((calibration.num_layers,), calibration.race.harms.max().item())
        scores[list(calibration.candidates)] = calibration.race.harms
        return scores
    values = measure(calibration.scan.log_probs, calibration.examples, metric)  # (1 + layers,)
    harm = values[0] - values[1:]
    return harm if metric == "accuracy" else -harm


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
    "sensitivity": Criterion(score_sensitivity, TRIMLLM, scans=True, breaks_ties=True),
    "activation_norm": Criterion(score_activation_norm, TRIMLLM, scans=True),
    "block_influence": Criterion(score_block_influence, "https://huggingface.co/papers/2403.03853"),
    "angular": Criterion(score_angular, "https://huggingface.co/papers/2403.17887"),
    "taylor": Criterion(score_taylor, "https://huggingface.co/papers/2402.02834"),
    "tail": Criterion(score_tail, "https://huggingface.co/papers/2411.15558"),
    "random": Criterion(score_random),
}
# A name in `CRITERIA`, or a function of the user's own.
CriterionLike = str | Callable[[Calibration], torch.Tensor]


def calibrate(
    model: PreTrainedModel,
    examples: list[ScoredExample],
    criterion: CriterionLike,
    settings: Settings,
    candidates: Iterable[int] | None = None,
) -> LayerScores:
    """Score every layer of the model as it is now.

    Args:
        model: A causal LM.
        examples: The calibration set.
        criterion: A name in `CRITERIA`, or a function that takes a `Calibration` and returns (layers,), higher = keep.
        settings: How it is done.
        candidates: Layers that may go; a race is among them only. None: all.

    Raises:
        ValueError: the criterion returns something else than one finite number per layer.
    """
    started, depth = time.perf_counter(), len(find_layers(model))
    candidates = tuple(range(depth)) if candidates is None else tuple(sorted(candidates))
    calibration = Calibration(model, examples, settings, candidates)
    scores = find_criterion(criterion).score(calibration).float().cpu()
    if scores.shape != (depth,) or not scores.isfinite().all():
        raise ValueError(
            f"Criterion {criterion_name(criterion)!r} returned {scores.tolist()}, expected {depth} finite numbers, one per "
            "layer."
        )
    found = vars(calibration).get("race") or vars(calibration).get("scan")
    log_probs = (
        score_choices(model, examples, settings.layout, settings.batch_tokens) if found is None else found.log_probs
    )
    norms = None if found is None else found.activation_norms
    num_examples = None
    if isinstance(found, Race):
        num_examples = [0] * depth
        for layer, number in zip(candidates, found.num_examples.tolist(), strict=True):
            num_examples[layer] = number
    return LayerScores(
        tuple(scores.tolist()),
        None if norms is None else tuple(norms.tolist()),
        measure(log_probs if log_probs.ndim == 1 else log_probs[0], examples, settings.metric).item(),
        time.perf_counter() - started,
        None if num_examples is None else tuple(num_examples),
    )


def choose_layers(
    scored: LayerScores,
    criterion: CriterionLike,
    num_layers: int,
    droppable: Callable[[tuple[int, ...]], Iterable[int]],
) -> tuple[int, ...]:
    """Choose the least important layers.

    Args:
        scored: The scores of all layers.
        criterion: What they come from.
        num_layers: How many to choose.
        droppable: Returns the layers that can go in addition to those chosen so far.

    Returns:
        Their numbers, in the order in which they go; fewer than asked for where the others have to stay.
    """
    norms = scored.activation_norms if find_criterion(criterion).breaks_ties else None
    counts = scored.num_examples or (0,) * len(scored.scores)
    chosen: tuple[int, ...] = ()
    while len(chosen) < num_layers and (candidates := list(droppable(chosen))):
        # Of candidates that raced, those that were scored on every example; of these the lowest score.
        best = min(
            candidates, key=lambda layer: (-counts[layer], scored.scores[layer], -norms[layer] if norms else 0.0)
        )
        chosen += (best,)
    return chosen


def find_criterion(criterion: CriterionLike) -> Criterion:
    """Return the row of `CRITERIA`, or one made of a function; raise a ValueError that lists the names."""
    if callable(criterion):
        return Criterion(criterion)
    if criterion not in CRITERIA:
        raise ValueError(f"`importance` is {criterion!r}, expected one of: {', '.join(sorted(CRITERIA))}.")
    return CRITERIA[criterion]


def criterion_name(criterion: CriterionLike) -> str:
    """The name under which a criterion is recorded."""
    return criterion if isinstance(criterion, str) else getattr(criterion, "__name__", type(criterion).__name__)


def score_layers(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    calibration: Iterable[dict],
    criterion: CriterionLike = "sensitivity",
    metric: str | None = None,
    seed: int = 0,
    batch_tokens: int | None = None,
) -> list[float]:
    """Score the layers of a model without training it. In several processes, each takes a share of the work.

    Args:
        model: A causal LM.
        tokenizer: Its tokenizer.
        calibration: Examples in TRL's formats; multiple choice with the columns `choices` and `answer`.
        criterion: A name in `CRITERIA`, or a function that takes a `Calibration` and returns (layers,), higher = keep.
        metric: `"accuracy"` or `"loss"`; None: accuracy if every example has choices, else loss.
        seed: For the criteria that draw.
        batch_tokens: Tokens that one pass carries at most, over all candidates; bounds memory.

    Returns:
        One score per layer, higher = more important.

    Raises:
        ValueError: unknown criterion, unusable calibration set, or unsupported architecture.
    """
    find_criterion(criterion)
    examples = tokenize_examples(calibration, tokenizer)
    metric = choose_metric(metric, examples)
    examples = scored_by(metric, examples)
    settings = Settings(metric, choose_layout(model, examples), batch_tokens, seed=seed)
    return list(calibrate(model, examples, criterion, settings).scores)
