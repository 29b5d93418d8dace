"""The evaluation sets of a run by name, and the accuracy over their choices that stands beside SFTTrainer's metrics."""

import logging
from collections.abc import Callable, Iterable

from datasets import Dataset, IterableDataset

from ..data.choices import check_choices, has_choices
from ..data.examples import ScoredExample
from ..data.metrics import choose_metric, measure
from ..data.preparation import read_rows
from ..data.splits import NUM_STREAM_ROWS, first_rows
from ..data.tokens import image_column
from ..records.measurement import EVALUATION
from ..scoring.processes import from_main
from ..scoring.scan import score_choices
from ..scoring.trial import choose_layout

logger = logging.getLogger(__name__)

Rows = Dataset | IterableDataset
Examples = list[ScoredExample]


class EvaluationSets:
    """What a `TrimTrainer` was given to evaluate on.

    Args:
        trainer: After SFTTrainer has prepared its data sets.
        eval_dataset: As they were before.

    Attributes:
        examples: By name, for what is measured of the model; not of long streams, which may
            have no end, nor of sets with images.
    """

    def __init__(self, trainer, eval_dataset: Rows | dict[str, Rows] | None):
        self._trainer = trainer
        self._given = _named(eval_dataset)
        self._prepared = _named(trainer.eval_dataset)
        whole = {name: _whole(dataset) for name, dataset in self._given.items()}
        self.examples: dict[str, Examples] = {
            name: trainer.tokenize_examples(rows) for name, rows in whole.items() if rows is not None
        }
        self._offered: Rows | Examples = []  # of the set that is evaluated now

    @property
    def caveats(self) -> list[str]:
        """What the model card has to say of the sets that nothing was measured on: long streams, and images."""
        return [
            f"The evaluation set{'' if name == EVALUATION else f' `{name}`'} {_why_not_measured(dataset)}."
            for name, dataset in self._given.items()
            if name not in self.examples
        ]

    def evaluate(
        self, usual: Callable[..., dict[str, float]], eval_dataset: Rows | dict[str, Rows] | str | None, prefix: str
    ) -> dict[str, float]:
        """Evaluate as SFTTrainer does, with `accuracy` at hand for each set; its rows are checked before.

        Args:
            usual: SFTTrainer's `evaluate`.
            eval_dataset: What was passed to it.
            prefix: Of the names of metrics.

        Raises:
            CalibrationError: a choice without one right answer.
        """
        if isinstance(eval_dataset, dict):  # one by one, with its rows as they are here
            named = {f"{prefix}_{name}": dataset for name, dataset in eval_dataset.items()}
            metrics = (self.evaluate(usual, dataset, each) for each, dataset in named.items())
            return {name: value for of_set in metrics for name, value in of_set.items()}
        self._offered = self._offered_by(eval_dataset)
        try:
            return usual(eval_dataset, metric_key_prefix=prefix)
        finally:
            self._offered = []  # `predict` runs the same loop, and asks for no accuracy

    def accuracy(self) -> float | None:
        """The accuracy of the model as it is now on what is evaluated; None: not each of the examples has choices."""
        examples = self._offered
        if isinstance(examples, IterableDataset):  # it has been read to its end by now, so it has one
            examples = self._scored(examples, "eval_dataset")
        if not examples or choose_metric(None, examples) != "accuracy":
            return None
        trainer = self._trainer
        is_known = any(examples is known for known in self.examples.values())
        layout = trainer.trimming.layout if is_known else from_main(choose_layout(trainer.causal_lm, examples))
        with trainer.scoring():
            log_probs = score_choices(trainer.causal_lm, examples, layout, trainer.args.scan_batch_tokens)
        return measure(log_probs, examples, "accuracy").item()

    def _offered_by(self, eval_dataset: Rows | str | None) -> Rows | Examples:
        """What is scored by choices, where there are any: tokens, or a stream whose end is not known."""
        own = self._trainer.eval_dataset
        if eval_dataset is None or isinstance(eval_dataset, str):
            eval_dataset = own if eval_dataset is None else own[eval_dataset]
        if eval_dataset is None or isinstance(eval_dataset, dict):  # each in its turn
            return []
        for name, prepared in self._prepared.items():
            if eval_dataset is prepared or eval_dataset is self._given[name]:
                given = self._given[name]
                return self.examples.get(name, given if isinstance(given, IterableDataset) else [])
        if isinstance(eval_dataset, IterableDataset):
            return eval_dataset
        if {"choices", "input_ids"} <= set(getattr(eval_dataset, "column_names", ())):
            logger.warning(
                "The set to evaluate on has tokens already: no accuracy over its `choices`. Pass it as it was."
            )
        return self._scored(eval_dataset, "eval_dataset")

    def _scored(self, dataset: Iterable[dict], name: str) -> Examples:
        """Tokens of a set of multiple choice; none of another one, which is not read."""
        first = next(iter(dataset), None)
        if first is None or not has_choices(first) or image_column(first) is not None:
            return []
        rows = read_rows(dataset)
        check_choices(rows, name)
        return self._trainer.tokenize_examples(rows)


def _whole(dataset: Rows) -> Iterable[dict] | None:
    """All rows of an evaluation set; None: they have images, which scoring does not see, or are a stream of too many."""
    if _has_images(dataset):
        return None
    if not isinstance(dataset, IterableDataset):
        return dataset
    rows, is_whole = first_rows(dataset)
    return rows if is_whole else None


def _has_images(dataset: Rows) -> bool:
    first = next(iter(dataset), None)
    return first is not None and image_column(first) is not None


def _why_not_measured(dataset: Rows) -> str:
    if _has_images(dataset):
        return "had images, which the figures of this card are not measured with"
    return (
        f"was a stream: the calibration examples were compared with its first {NUM_STREAM_ROWS:,} rows only, and nothing "
        "above was measured on it"
    )


def _named(eval_dataset: Rows | dict[str, Rows] | None) -> dict[str, Rows]:
    if isinstance(eval_dataset, dict):
        return {name: dataset for name, dataset in eval_dataset.items() if dataset is not None}
    return {} if eval_dataset is None else {EVALUATION: eval_dataset}
