"""The calibration set: multiple-choice and plain examples as token ids, disjoint from the evaluation set."""

import json
import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import torch
from datasets import Dataset, IterableDataset
from trl.data_utils import common_prefix_length, is_conversational

METRICS = ("accuracy", "loss")  # of the calibration set; accuracy needs `choices`
IGNORED = -100  # label of a token that is not scored, as everywhere in Transformers


class CalibrationError(ValueError):
    """The calibration set cannot be used; the message says which example or setting is wrong."""


@dataclass(frozen=True)
class ScoredExample:
    """One prompt and the completions that are scored behind it.

    `choice_labels[k][t]` is `choice_ids[k][t]`, or -100 where the token does not count. A plain example has one choice.
    """

    prompt_ids: tuple[int, ...]  # at least one token
    choice_ids: tuple[tuple[int, ...], ...]
    choice_labels: tuple[tuple[int, ...], ...]
    answer: int = 0

    @property
    def num_tokens(self) -> int:
        """Tokens of the prompt and of all choices."""
        return len(self.prompt_ids) + sum(map(len, self.choice_ids))


def example_key(example: dict) -> str:
    """What makes two examples the same one: prompt and completion, or the whole text; else all columns."""
    for columns in (("prompt", "completion"), ("messages",), ("text",), ("input_ids",)):
        if columns[0] in example:
            values = [example.get(column) for column in columns]
            if columns[0] == "prompt" and values[1] is None and "choices" in example:
                values[1] = example["choices"][example["answer"]]
            return json.dumps(values, sort_keys=True, default=str)
    return json.dumps(example, sort_keys=True, default=str)


def check_choices(dataset: Iterable[dict], name: str) -> None:
    """Check that each multiple-choice example has exactly one right answer among its choices.

    Raises:
        CalibrationError: names the data set, the row, the value and the rule.
    """
    for row, example in enumerate(dataset):
        if "choices" not in example:
            return
        choices, answer = example["choices"], example.get("answer")
        where = f"Row {row} of {name}: "
        if not isinstance(answer, int) or not 0 <= answer < len(choices):
            raise CalibrationError(
                f"{where}`answer` is {answer!r}, expected the index of the right choice, from 0 to {len(choices) - 1}."
            )
        if choices.count(choices[answer]) > 1:
            raise CalibrationError(f"{where}the right answer {choices[answer]!r} stands in `choices` more than once.")
        if example.get("completion", choices[answer]) != choices[answer]:
            raise CalibrationError(
                f"{where}`completion` is {example['completion']!r}, but `choices[{answer}]` is {choices[answer]!r}. "
                "Training and calibration would disagree about the right answer."
            )


def check_disjoint(calibration: Iterable[dict], evaluation_keys: set[str]) -> None:
    """Raise a CalibrationError if an example of the calibration set is in the evaluation set."""
    shared = sum(example_key(example) in evaluation_keys for example in calibration)
    if shared:
        raise CalibrationError(
            f"`calibration_dataset` shares {shared} example(s) with `eval_dataset`. Layers chosen on the evaluation set "
            "make its accuracy meaningless: pass another split, or leave `calibration_dataset` out to hold examples "
            "out of the training set."
        )


def hold_out(
    train_dataset: Dataset | IterableDataset, evaluation_keys: set[str], size: int, seed: int
) -> tuple[Dataset | IterableDataset, Dataset | list[dict]]:
    """Take `size` examples out of the training set.

    Every copy of a held-out example leaves the training set, and no example of the evaluation set is taken.

    Returns:
        The training set without them, and the calibration set.

    Raises:
        CalibrationError: fewer than `size + 1` examples could be used.
    """
    if isinstance(train_dataset, IterableDataset):
        held_out = list(train_dataset.take(size))
        check_disjoint(held_out, evaluation_keys)
        return train_dataset.skip(size), held_out
    keys = [example_key(example) for example in train_dataset]
    candidates = list({key: row for row, key in enumerate(keys) if key not in evaluation_keys}.values())
    if len(candidates) <= size:
        raise CalibrationError(
            f"`calibration_size` is {size}, but the training set has {len(candidates)} distinct examples that are not "
            "in the evaluation set, and at least one has to be left to train on. Lower `calibration_size` or pass "
            "`calibration_dataset`."
        )
    rows = sorted(random.Random(seed).sample(candidates, size))
    taken = {keys[row] for row in rows}
    rest = [row for row, key in enumerate(keys) if key not in taken]
    return train_dataset.select(rest), train_dataset.select(rows)


def draw_examples(
    dataset: Dataset | IterableDataset, size: int, seed: int, tokenizer, **options
) -> list[ScoredExample]:
    """Draw `size` examples, or all of fewer; of a stream the first. Their right completions only, as `tokenize_examples`."""
    return scored_by("loss", tokenize_examples(draw_rows(dataset, size, seed), tokenizer, **options))


def draw_rows(dataset: Iterable[dict], size: int, seed: int) -> Iterable[dict]:
    """Return `size` rows, after a shuffle if the set is larger; of a stream or a list the first."""
    if isinstance(dataset, IterableDataset):
        return list(dataset.take(size))
    if len(dataset) <= size:
        return dataset
    if isinstance(dataset, Dataset):
        return dataset.shuffle(seed=seed).select(range(size))
    return list(dataset)[:size]


def choose_metric(metric: str | None, examples: list[ScoredExample]) -> str:
    """Return the metric: the one asked for, or accuracy if every example has choices, else loss.

    Raises:
        CalibrationError: accuracy is asked for and an example has no choices.
    """
    has_choices = all(len(example.choice_ids) > 1 for example in examples)
    if metric == "accuracy" and not has_choices:
        raise CalibrationError(
            '`calibration_metric` is "accuracy", which needs the columns `choices` and `answer` in the calibration set. '
            'Add them, or set `calibration_metric` to "loss".'
        )
    return metric or ("accuracy" if has_choices else "loss")


def tokenize_examples(dataset: Iterable[dict], tokenizer, **options) -> list[ScoredExample]:
    """Turn examples in any of TRL's text formats into token ids, as SFTTrainer does for training.

    Args:
        dataset: Examples with `prompt` and `completion` (and `choices`, `answer`), `messages`, `text` or `input_ids`.
        tokenizer: The model's tokenizer.
        options: `max_length` (tokens; plain texts are cut behind it) and `text_field`.

    Raises:
        CalibrationError: an example is in no known format, or has no token to score.
    """
    examples = [example for row in dataset for example in _tokenize_example(row, tokenizer, **options)]
    if not examples:
        raise CalibrationError("The calibration set has no example with a token to score.")
    return examples


def _tokenize_example(example: dict, tokenizer, max_length: int | None = None, text_field: str = "text") -> Iterator:
    if "input_ids" in example:
        yield from _plain(example["input_ids"], example.get("labels"), max_length)
    elif "prompt" in example:
        yield _prompted(example, tokenizer)
    elif "messages" in example:
        ids = tokenizer.apply_chat_template(example["messages"], tokenize=True, return_dict=True)["input_ids"]
        yield from _plain(ids, None, max_length)
    elif text_field in example:
        yield from _plain(_encode(tokenizer, example[text_field]), None, max_length)
    else:
        raise CalibrationError(
            f"An example has the columns {sorted(example)}, expected one of TRL's formats: `prompt` + `completion`, "
            f"`messages`, `{text_field}` or `input_ids`."
        )


def _prompted(example: dict, tokenizer) -> ScoredExample:
    """Tokens of prompt + completion once per choice; the prompt is what all of them share."""
    completions = example.get("choices") or [example.get("completion")]
    if None in completions:
        raise CalibrationError("An example has a `prompt`, but neither `completion` nor `choices`: nothing to score.")
    if is_conversational(example):
        options = {"tokenize": True, "return_dict": True, **example.get("chat_template_kwargs", {})}
        prompt = tokenizer.apply_chat_template(example["prompt"], add_generation_prompt=True, **options)["input_ids"]
        choices = [
            tokenizer.apply_chat_template(example["prompt"] + choice, **options)["input_ids"] for choice in completions
        ]
    else:
        prompt = tokenizer(example["prompt"])["input_ids"]
        choices = [_encode(tokenizer, example["prompt"] + choice) for choice in completions]
    start = min(common_prefix_length(prompt, ids) for ids in choices)
    if start == 0:
        raise CalibrationError(
            f"The `prompt` {example['prompt']!r} shares no token with prompt + completion, so nothing predicts the first "
            "token of a choice. Give each example a prompt."
        )
    scored = tuple(tuple(ids[start:]) for ids in choices)
    return ScoredExample(tuple(choices[0][:start]), scored, scored, example.get("answer", 0))


def _plain(ids: list[int], labels: list[int] | None, max_length: int | None) -> Iterator[ScoredExample]:
    ids, labels = ids[:max_length], (labels or ids)[:max_length]
    start = max(1, next((i for i, label in enumerate(labels) if label != IGNORED), len(labels)))
    if start < len(ids):  # a text of one token predicts nothing
        yield ScoredExample(tuple(ids[:start]), (tuple(ids[start:]),), (tuple(labels[start:]),))


def _encode(tokenizer, text: str) -> list[int]:
    # SFTTrainer ends every plain text with the EOS token, so the end of a choice is scored too.
    eos = tokenizer.eos_token or ""
    return tokenizer(text if eos and text.endswith(eos) else text + eos)["input_ids"]


def scored_by(metric: str, examples: list[ScoredExample]) -> list[ScoredExample]:
    """Leave out the choices that the metric does not look at: loss needs the right one only."""
    if metric == "accuracy":
        return examples
    return [
        replace(
            example, choice_ids=example.choice_ids[k : k + 1], choice_labels=example.choice_labels[k : k + 1], answer=0
        )
        for example in examples
        for k in [example.answer]
    ]


def measure(log_probs: torch.Tensor, examples: list[ScoredExample], metric: str) -> torch.Tensor:
    """Compute the metric from the summed log-probabilities of all choices.

    Args:
        log_probs: (..., choices): the choices of all examples, one after the other; nats.
        examples: The examples that the choices belong to.
        metric: `"accuracy"` (share of examples whose right choice has the largest summed log-probability) or `"loss"`
            (mean negative log-likelihood of the scored tokens of the right choices, in nats).

    Returns:
        (...): the metric, for each leading index.
    """
    ends = torch.tensor([len(example.choice_ids) for example in examples]).cumsum(0).tolist()
    starts = [0, *ends[:-1]]
    if metric == "accuracy":
        return predict(log_probs, examples).eq(torch.tensor([example.answer for example in examples])).float().mean(-1)
    right = torch.tensor([start + example.answer for start, example in zip(starts, examples, strict=True)])
    num_tokens = sum(label != IGNORED for example in examples for label in example.choice_labels[example.answer])
    return -log_probs[..., right].sum(-1) / max(num_tokens, 1)


def predict(log_probs: torch.Tensor, examples: list[ScoredExample]) -> torch.Tensor:
    """Return (..., examples): the index of the choice with the largest summed log-probability."""
    sizes = [len(example.choice_ids) for example in examples]
    return torch.stack([choices.argmax(-1) for choices in log_probs.split(sizes, dim=-1)], dim=-1)
