"""How much each layer matters: one score per layer, higher = keep, and what was measured on the way."""

import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass

from accelerate.utils import is_peft_model
from transformers import PreTrainedModel
from trl import SFTConfig

from ..architectures.kept import Cut, candidate_cuts, sublayers
from ..architectures.modules import find_layers
from ..data.choices import check_choices
from ..data.examples import ScoredExample
from ..data.metrics import choose_metric, measure, scored_by
from ..data.preparation import ProcessingClass, TextSettings, read_rows
from ..data.tokens import tokenize_examples
from ..import_messages import say_import_messages
from ..scoring.finite import check_finite
from ..scoring.scan import score_choices
from ..scoring.solutions import solve_takeovers
from ..scoring.takeover import Takeover
from ..scoring.trial import choose_layout
from ..surgery.drop import check_not_compiled
from .calibration import Calibration, Evidence, Settings
from .criteria import CriterionLike, criterion_name, find_criterion
from .estimates import check_gradients


@dataclass(frozen=True)
class LayerScores:
    """One calibration: the scores, and the facts that were measured on the way.

    Of layers, from front to back; with `with_seams` of layers and the seams between them in turn, see `cuts`.
    """

    scores: tuple[float, ...]
    activation_norms: tuple[float, ...] | None  # None: the criterion needs no scan
    metric: float  # of the model as it is
    seconds: float = 0.0  # that the calibration took
    num_examples: tuple[int, ...] | None = None  # that each score comes from; None: all of them
    contenders: tuple[Cut, ...] | None = None  # of which the last goes; None: the one of the lowest score
    with_seams: bool = False

    @property
    def cuts(self) -> list[Cut]:
        """What the scores are of."""
        number = len(self.scores)
        return candidate_cuts((number + 1) // 2 if self.with_seams else number, self.with_seams)

    @property
    def of_layers(self) -> tuple[float, ...]:
        """The scores of the layers alone."""
        return self.scores[:: 2 if self.with_seams else 1]


def calibrate(
    model: PreTrainedModel,
    examples: list[ScoredExample],
    criterion: CriterionLike,
    settings: Settings,
    candidates: Iterable[Cut] | None = None,
) -> LayerScores:
    """Score every layer of the model as it is now, and the seams between them if `settings` say so.

    Args:
        model: A causal LM.
        examples: The calibration set.
        criterion: A name in `CRITERIA`, or a function that takes a `Calibration` and returns (layers,), higher = keep.
        settings: How it is done.
        candidates: Layers and seams that may go, which are left out in turn. None: all.

    Raises:
        DivergedError: the model returns numbers that are not finite.
        ValueError: the criterion returns something else than one finite number for each of these.
    """
    started, depth = time.perf_counter(), len(find_layers(model))
    cuts = candidate_cuts(depth, settings.with_seams)
    candidates = tuple(cuts if candidates is None else sorted(candidates, key=sublayers))
    calibration = Calibration(model, examples, settings, candidates)
    scored = find_criterion(criterion).judge(calibration)
    scores = scored.values
    evidence = scored.evidence or Evidence(
        score_choices(model, examples, settings.layout, settings.batch_tokens), activation_norms=None
    )
    check_finite(evidence.log_probs, model)
    if scores.shape != (len(cuts),) or not scores.isfinite().all():
        raise ValueError(
            f"Criterion {criterion_name(criterion)!r} returned {scores.tolist()}, expected {len(cuts)} finite numbers, one "
            f"per layer{' and one per seam between two, in turn' if settings.with_seams else ''}."
        )
    norms = evidence.activation_norms
    return LayerScores(
        tuple(scores.tolist()),
        None if norms is None else tuple(norms.tolist()),
        measure(evidence.log_probs, examples, settings.metric).item(),
        time.perf_counter() - started,
        evidence.num_examples,
        evidence.contenders,
        settings.with_seams,
    )


def _check_model(model: PreTrainedModel) -> None:
    """Raise a ValueError for a model of which something else than its layers would be scored."""
    check_not_compiled(model)
    configs = model.peft_config.values() if is_peft_model(model) else ()
    if learned := [str(config.peft_type) for config in configs if config.is_prompt_learning]:
        raise ValueError(
            f"`model` has an adapter of the kind {learned[0]}, which puts something in front of every prompt: texts would be scored "
            "in other places than they train in. Score the base model, `model.get_base_model()`."
        )


def score_layers(
    model: PreTrainedModel,
    tokenizer: ProcessingClass,
    calibration: Iterable[dict],
    criterion: CriterionLike = "sensitivity",
    metric: str | None = "loss",
    seed: int = 0,
    batch_tokens: int | None = None,
    args: SFTConfig | None = None,
    compensation: Iterable[dict] | None = None,
) -> list[float]:
    """Score the layers of a model without training it. In several processes, each takes a share of the work.

    Args:
        model: A causal LM.
        tokenizer: Its tokenizer, or processor.
        calibration: Examples in TRL's formats; multiple choice with the columns `choices` and `answer`. All of them are
            used: of a long stream, take some.
        criterion: A name in `CRITERIA`, or a function that takes a `Calibration` and returns (layers,), higher = keep.
        metric: `"loss"` or `"accuracy"`; None: accuracy if every example has choices, else loss.
        seed: For the criteria that draw.
        batch_tokens: Tokens that one pass carries at most, over all candidates; bounds memory.
        args: Of a training run: texts are prepared and cut as there. None: as by TRL's defaults, and never cut.
        compensation: Examples of the training set, on which the layer in front of each that is left out takes over what it
            added, as in a run with `compensation_size`. None: nothing is taken over.

    Returns:
        One score per layer, higher = more important.

    Raises:
        ValueError: unknown criterion, unusable calibration set, or unsupported architecture.
    """
    if find_criterion(criterion).needs_gradients:
        check_gradients(model)
    _check_model(model)
    say_import_messages(model)
    rows = read_rows(calibration)
    check_choices(rows, "calibration")
    texts = {} if args is None else asdict(TextSettings.of(args))
    examples = tokenize_examples(rows, tokenizer, **texts)
    metric = choose_metric(metric, examples)
    examples = scored_by(metric, examples)
    takeovers: dict[int, Takeover] = {}
    if compensation is not None and find_criterion(criterion).scans:
        seen = scored_by("loss", tokenize_examples(read_rows(compensation), tokenizer, **texts))
        takeovers = solve_takeovers(model, range(len(find_layers(model))), seen, batch_tokens)
    settings = Settings(metric, choose_layout(model, examples), batch_tokens, seed=seed, takeovers=takeovers)
    return list(calibrate(model, examples, criterion, settings).scores)
