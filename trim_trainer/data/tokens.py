"""Rows in any of TRL's text formats become token ids, as SFTTrainer makes them for training."""

from collections.abc import Iterable, Iterator

from datasets import Dataset, IterableDataset
from trl.data_utils import common_prefix_length, is_conversational

from .examples import IGNORED, ScoredExample
from .metrics import scored_by
from .splits import CalibrationError, draw_rows


def draw_examples(
    dataset: Dataset | IterableDataset, size: int, seed: int, tokenizer, **options
) -> list[ScoredExample]:
    """Draw `size` examples, or all of fewer; of a stream the first. Their right completions only, as `tokenize_examples`."""
    return scored_by("loss", tokenize_examples(draw_rows(dataset, size, seed), tokenizer, **options))


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
    return ScoredExample(tuple(choices[0][:start]), scored, scored, example["answer"] if example.get("choices") else 0)


def _plain(ids: list[int], labels: list[int] | None, max_length: int | None) -> Iterator[ScoredExample]:
    ids, labels = ids[:max_length], (labels or ids)[:max_length]
    start = max(1, next((i for i, label in enumerate(labels) if label != IGNORED), len(labels)))
    if start < len(ids):  # a text of one token predicts nothing
        yield ScoredExample(tuple(ids[:start]), (tuple(ids[start:]),), (tuple(labels[start:]),))


def _encode(tokenizer, text: str) -> list[int]:
    # SFTTrainer ends every plain text with the EOS token, so the end of a choice is scored too.
    eos = tokenizer.eos_token or ""
    return tokenizer(text if eos and text.endswith(eos) else text + eos)["input_ids"]
