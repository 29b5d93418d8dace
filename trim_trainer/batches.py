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
    weights: torch.Tensor  # (rows, seq): how many times a token counts: once for the prompt, once per choice it is in
    rows: torch.Tensor  # (predictors,)
    positions: torch.Tensor  # (predictors,): whose logits are looked at
    predictors: torch.Tensor  # (scored,): index of the predictor of a scored token
    targets: torch.Tensor  # (scored,)
    choices: torch.Tensor  # (scored,): index of the choice among all choices


@dataclass(frozen=True)
class _Row:
    """A prompt and choices behind it, as a tree: choices that begin alike share these tokens too."""

    tokens: tuple[int, ...]
    parents: tuple[int, ...]  # place of the token before it, -1 for the first
    weights: tuple[int, ...]
    scored: tuple[tuple[int, int, int], ...]  # (place of the predictor, target, index of the choice among all)
    example: int
    is_first: bool  # row of its example


def make_batches(
    model: PreTrainedModel, examples: list[ScoredExample], is_packed: bool, batch_tokens: int
) -> Iterator[Batch]:
    """Group rows of similar length so that a batch has at most `batch_tokens` tokens, padding included."""
    rows, first = [], 0
    for number, example in enumerate(examples):
        choices = range(len(example.choice_ids))
        groups = [choices] if is_packed else [range(choice, choice + 1) for choice in choices]
        rows += [_make_row(example, group, first, number) for group in groups]
        first += len(choices)
    rows.sort(key=lambda row: len(row.tokens), reverse=True)
    while rows:
        size = max(1, batch_tokens // len(rows[0].tokens))
        yield _collate(model, rows[:size], is_packed)
        rows = rows[size:]


def _make_row(example: ScoredExample, group: range, first: int, number: int) -> _Row:
    """Lay out the choices of `group` behind the prompt; `first` is the index of the example's first choice."""
    prompt = example.prompt_ids
    tokens, parents = list(prompt), [*range(-1, len(prompt) - 1)]
    weights = [int(group[0] == 0)] * len(prompt)
    scored, places = [], {}  # (place of the parent, token) -> place
    for choice in group:
        place = len(prompt) - 1
        for token, label in zip(example.choice_ids[choice], example.choice_labels[choice], strict=True):
            if label != IGNORED:
                scored.append((place, label, first + choice))
            if (place, token) not in places:
                places[place, token] = len(tokens)
                tokens.append(token)
                parents.append(place)
                weights.append(0)
            place = places[place, token]
            weights[place] += 1
    return _Row(tuple(tokens), tuple(parents), tuple(weights), tuple(scored), number, group[0] == 0)


def _collate(model: PreTrainedModel, rows: list[_Row], is_packed: bool) -> Batch:
    device, length = next(model.parameters()).device, max(len(row.tokens) for row in rows)

    def pad(values) -> torch.Tensor:
        return torch.tensor([[*value, *[0] * (length - len(value))] for value in values], device=device)

    inputs = {"input_ids": pad([row.tokens for row in rows])}
    if is_packed:
        seen, positions = _ancestors(rows, length)
        inputs["position_ids"] = positions.to(device)
        inputs["attention_mask"] = _tree_masks(model, seen.to(device), inputs["position_ids"])
    else:
        inputs["attention_mask"] = pad([[1] * len(row.tokens) for row in rows])
    where: dict[tuple[int, int], int] = {}
    scored = [
        (where.setdefault((number, place), len(where)), target, choice)
        for number, row in enumerate(rows)
        for place, target, choice in row.scored
    ]
    return Batch(
        inputs,
        torch.tensor([row.example for row in rows], device=device),
        sum(row.is_first for row in rows),
        pad([row.weights for row in rows]),
        *torch.tensor([*where], device=device).unbind(1),
        *torch.tensor(scored, device=device).unbind(1),
    )


def _ancestors(rows: list[_Row], length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return what each token sees, (rows, seq, seq), and its position, (rows, seq).

    A token sees itself and those before it on its path; as many as these is its position. Padding sees itself.
    """
    seen = torch.eye(length, dtype=torch.bool).repeat(len(rows), 1, 1)
    for number, row in enumerate(rows):
        for place, parent in enumerate(row.parents):
            if parent >= 0:
                seen[number, place] |= seen[number, parent]
    return seen, seen.sum(2) - 1


def _tree_masks(model: PreTrainedModel, seen: torch.Tensor, positions: torch.Tensor):
    """The mask of packed rows, (rows, 1, seq, seq); one for each type of layer where the model has several.

    Of what a token sees on its path, within a window it sees those that are less than the window's size of positions
    behind it, within chunks those of its own chunk.
    """
    config = text_config(model.config)
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
