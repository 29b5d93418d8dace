"""History and measurements -> model card. What was not measured is not printed."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import jinja2
import yaml
from huggingface_hub import EvalResult, ModelCardData

from ..records.facts import CardFacts
from ..records.files import ADAPTER_DIR, IMPORTANCE_PLOT, METRIC_PLOT
from ..records.history import TrimHistory, name_dropped
from ..records.measurement import EVALUATION, SEQUENCE_LENGTH, Measurement, Quality, memory_beside
from ..records.statistics import wilson_interval
from .merging import BEGIN, END


@dataclass(frozen=True)
class Member:
    """A depth of the family that one repository holds."""

    revision: str
    measured: Measurement | None
    depth: int
    num_weight_bytes: int

    @property
    def accuracies(self) -> dict[str, Quality]:
        """Quality on the evaluation sets that have choices, by what stands in front of the figure."""
        quality = {} if self.measured is None else self.measured.quality
        return {_prefix(name): each for name, each in quality.items() if each.accuracy is not None}


@dataclass(frozen=True)
class EvaluationRow:
    """An evaluation set that the model was measured on before training and at the end."""

    name: str
    before: Quality
    after: Quality

    @property
    def title(self) -> str:
        """The set in words."""
        return "the evaluation set" if self.name == EVALUATION else f"`{self.name}`"

    @property
    def has_accuracy(self) -> bool:
        """Whether it was measured both times."""
        return self.before.accuracy is not None and self.after.accuracy is not None


def _prefix(name: str) -> str:
    return "" if name == EVALUATION else f"`{name}`: "


def evaluation_rows(history: TrimHistory) -> list[EvaluationRow]:
    """The evaluation sets of a run, those that it was measured on before training and at the depth that is left."""
    if history.untrimmed is None or history.trimmed is None:
        return []
    before, after = history.untrimmed.quality, history.trimmed.quality
    return [EvaluationRow(name, before[name], after[name]) for name in after if name in before]


def render_card(
    history: TrimHistory,
    facts: CardFacts,
    repo_id: str | None = None,
    revision: str = "main",
    family: tuple[Member, ...] = (),
    has_adapter: bool = False,
    has_code: bool = False,
) -> str:
    """Return the model card as Markdown with its YAML head.

    Args:
        history: What was dropped and measured.
        facts: What else is known.
        repo_id: Where it is published; None: the card speaks of the folder that it lies in.
        revision: Branch of it.
        family: All depths that the repository holds.
        has_adapter: Whether an adapter lies beside the weights, without which they are not the model.
        has_code: Whether the model comes with code of its own.
    """
    environment = template_environment()
    ratio = history.trimmed and history.trimmed.decode_ratio
    return environment.get_template("model_card.md").render(
        begin=BEGIN,
        end=END,
        metadata=card_metadata(history, facts).to_yaml(),
        history=history,
        facts=facts,
        repo_id=repo_id,
        revision=revision,
        family=family,
        has_code=has_code,
        adapter_dir=ADAPTER_DIR if has_adapter else None,
        before=history.untrimmed,
        after=history.trimmed,
        evaluated=evaluation_rows(history),
        is_trained=bool(facts.recipe) or not history.is_by_hand,
        ratio=ratio,
        serving=_serving(history),
        has_speed=_has_speed(history) and (ratio is None or ratio.is_telling),
        recipe=yaml.safe_dump(facts.recipe, sort_keys=False),
        importance_plot=IMPORTANCE_PLOT if history.scored.rounds else None,
        metric_plot=METRIC_PLOT if history.scored.drops else None,
    )


def template_environment() -> jinja2.Environment:
    """Where the templates of cards are found, and the filters that they use."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("trim_trainer.hub"), undefined=jinja2.StrictUndefined, trim_blocks=True,
        lstrip_blocks=True, keep_trailing_newline=True,
    )  # fmt: skip
    environment.filters["dropped"] = name_dropped
    environment.filters["halves"] = lambda pairs: name_dropped(a if a == m else (a, m) for a, m in pairs)
    environment.filters["percent"] = lambda value: f"{100 * value:.1f} %"
    environment.filters["megabytes"] = lambda value: f"{value / 1e6:,.0f} MB"
    environment.filters["accuracy"] = _accuracy_with_interval
    environment.filters["speed"] = _speed_with_ratio
    return environment


@dataclass(frozen=True)
class Serving:
    """What serving needs to know of both depths: pairs of before and after."""

    num_tokens: int  # of a sequence
    memory: int  # GB
    cache_bytes: tuple[int, int]  # per token of a sequence
    num_sequences: tuple[int, int] | None


def _serving(history: TrimHistory) -> Serving | None:
    both = [history.untrimmed, history.trimmed]
    if any(each is None or each.cache is None for each in both):
        return None
    memory = memory_beside(both)
    fitting = tuple(each.num_sequences(SEQUENCE_LENGTH, memory * 10**9) for each in both)
    per_token = tuple(each.cache.num_bytes(SEQUENCE_LENGTH) // SEQUENCE_LENGTH for each in both)
    return Serving(SEQUENCE_LENGTH, memory, per_token, None if None in fitting else fitting)


def _accuracy_with_interval(measured: Quality) -> str:
    shown = f"{100 * measured.accuracy:.1f} %"
    if measured.num_examples is None:
        return shown
    low, high = wilson_interval(measured.accuracy, measured.num_examples)
    return f"{shown} ({100 * low:.1f}–{100 * high:.1f} %)"


def _has_speed(history: TrimHistory) -> bool:
    return None not in (
        getattr(each, "decode_tokens_per_second", None) for each in (history.untrimmed, history.trimmed)
    )


def _speed_with_ratio(measured: Measurement | None) -> str:
    """Tokens per second, and how many times those of the untrimmed model; where that cannot be told, neither."""
    if measured is None or measured.decode_tokens_per_second is None:
        return ""
    if measured.decode_ratio is None:
        return f"{measured.decode_tokens_per_second:.1f}"
    if not measured.decode_ratio.is_telling:
        return str(measured.decode_ratio)
    return f"{measured.decode_tokens_per_second:.1f} ({measured.decode_ratio})"


def card_metadata(history: TrimHistory, facts: CardFacts) -> ModelCardData:
    """Return the YAML head, by the Hub's rules for each field."""
    datasets = [facts.dataset_name] if facts.dataset_name and is_hub_id(facts.dataset_name) else None
    quality = {} if history.trimmed is None else history.trimmed.quality
    results = [result for name, each in quality.items() for result in _eval_results(name, each, facts)]
    return ModelCardData(
        base_model=facts.base_model,
        license=facts.license,
        license_name=facts.license_name,
        license_link=facts.license_link,
        library_name="transformers",
        pipeline_tag="image-text-to-text" if facts.sees_images else "text-generation",
        datasets=datasets,
        tags=list(facts.tags),
        model_name=facts.model_name,
        eval_results=results or None,
        **({"base_model_relation": "finetune"} if facts.base_model else {}),
    )


def _eval_results(name: str, measured: Quality, facts: CardFacts) -> Iterable[EvalResult]:
    if measured.accuracy is None or facts.dataset_name is None:
        return
    yield EvalResult(
        task_type="multiple-choice",
        dataset_type=facts.dataset_name,
        dataset_name=facts.dataset_name,
        metric_type="accuracy",
        metric_value=round(measured.accuracy, 4),
        metric_name=f"accuracy{'' if name == EVALUATION else f' on {name}'} (n = {measured.num_examples})",
    )


def is_hub_id(name: str) -> bool:
    """Whether a name is one of the Hub, such as `me/model`, and not a folder here."""
    return name.count("/") == 1 and ":" not in name and not name.startswith(".") and not Path(name).exists()
