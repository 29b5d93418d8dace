"""Examples as rows of a forward pass: a row per choice, or all choices of an example behind one prompt."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from .architectures import text_config
from .calibration import IGNORED, ScoredExample


@dataclass(frozen=True)
class Batch:
    """Rows of one pass, and where in them the scored tokens are."""

    inputs: dict  # input_ids (rows, seq), attention_mask, position_ids
    examples: torch.Tensor  # (rows,): index of the example
    num_examples: int  # whose first row is in the batch
    is_counted: torch.Tensor  # (rows, seq): prompt and choice tokens, each once; False on padding
    rows: torch.Tensor  # (scored,)
    predictors: torch.Tensor  # (scored,): position whose logits predict the token
    targets: torch.Tensor  # (scored,)
    choices: torch.Tensor  # (scored,): index of the choice among all choices


def make_batches(
    model: PreTrainedModel, examples: list[ScoredExample], is_packed: bool, batch_tokens: int
) -> Iterator[Batch]:
    """Group rows of similar length so that a batch has at most `batch_tokens` tokens, padding included."""
    rows, first = [], 0  # (prompt, choices, index of the first choice, index of the example, is its first row)
    for number, example in enumerate(examples):
        choices = list(zip(example.choice_ids, example.choice_labels, strict=True))
        groups = [choices] if is_packed else [[choice] for choice in choices]
        for group in groups:
            rows.append((example.prompt_ids, group, first, number, group[0] is choices[0]))
            first += len(group)

    def num_tokens(row) -> int:
        return len(row[0]) + sum(len(ids) for ids, _ in row[1])

    rows.sort(key=num_tokens, reverse=True)
    while rows:
        longest = num_tokens(rows[0])
        size = max(1, batch_tokens // longest)
        yield _collate(model, rows[:size], longest, is_packed)
        rows = rows[size:]


def _collate(model: PreTrainedModel, rows: list, length: int, is_packed: bool) -> Batch:
    input_ids = torch.zeros(len(rows), length, dtype=torch.long)
    position_ids = torch.zeros(len(rows), length, dtype=torch.long)
    segments = torch.full((len(rows), length), -1)  # 0: prompt, k: k-th choice, -1: padding
    scored = []  # (row, predictor, target, choice)
    for row, (prompt, choices, first, _, _) in enumerate(rows):
        end = len(prompt)
        input_ids[row, :end], segments[row, :end] = torch.tensor(prompt), 0
        position_ids[row, :end] = torch.arange(end)
        for k, (ids, labels) in enumerate(choices):
            start, end = end, end + len(ids)
            input_ids[row, start:end], segments[row, start:end] = torch.tensor(ids), k + 1
            position_ids[row, start:end] = len(prompt) + torch.arange(len(ids))
            for t, label in enumerate(labels):
                if label != IGNORED:
                    scored.append((row, start + t - 1 if t else len(prompt) - 1, label, first + k))
    device = next(model.parameters()).device
    inputs = {"input_ids": input_ids.to(device)}
    if is_packed:
        mask = _tree_masks(model, segments.to(device), position_ids.to(device))
        inputs |= {"position_ids": position_ids.to(device), "attention_mask": mask}
    else:
        inputs |= {"attention_mask": (segments >= 0).long().to(device)}
    counts_prompt = torch.tensor([is_first for *_, is_first in rows])
    is_counted = (segments > 0) | ((segments == 0) & counts_prompt[:, None])
    return Batch(
        inputs,
        torch.tensor([number for *_, number, _ in rows], device=device),
        int(counts_prompt.sum()),
        is_counted.to(device),
        *torch.tensor(scored, device=device).unbind(1),
    )


def _tree_masks(model: PreTrainedModel, segments: torch.Tensor, positions: torch.Tensor):
    """The mask of packed rows, (rows, 1, seq, seq); one for each type of layer where the model has several.

    A token sees the prompt and its own choice before it; padding sees itself. Within a window it sees those that are
    less than the window's size of positions behind it, within chunks those of its own chunk.
    """
    config = text_config(model.config)
    same = segments[:, :, None] == segments[:, None, :]
    seen = (same | (segments[:, None, :] == 0)).tril()
    window, chunk = getattr(config, "sliding_window", None), getattr(config, "attention_chunk_size", None)
    distance = positions[:, :, None] - positions[:, None, :]
    masks = {"full_attention": seen}
    masks["sliding_attention"] = seen & (distance < window) if isinstance(window, int) else seen
    if isinstance(chunk, int):
        masks["chunked_attention"] = seen & (positions[:, :, None] // chunk == positions[:, None, :] // chunk)
    types = set(getattr(config, "layer_types", None) or ()) & masks.keys()
    if len(types) > 1:
        return {name: _as_mask(model, masks[name]) for name in types}
    return _as_mask(model, masks[types.pop()] if types else masks["sliding_attention"])


def _as_mask(model: PreTrainedModel, seen: torch.Tensor) -> torch.Tensor:
    seen = seen[:, None]
    if model.config._attn_implementation == "sdpa":
        return seen
    return torch.zeros(seen.shape, dtype=model.dtype, device=seen.device).masked_fill(
        ~seen, torch.finfo(model.dtype).min
    )
