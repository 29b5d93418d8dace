"""Examples as rows of a forward pass: a row per choice, or choices and examples behind what they share."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import zip_longest

import torch
from transformers import PreTrainedModel
from trl.data_utils import common_prefix_length

from ..architectures.configs import text_config
from ..data.examples import IGNORED, ScoredExample

# Tokens of a pass: bounds memory whatever the size of the calibration set. A CPU's caches hold no more than the second:
# SmolLM2-135M scores 2.2 times as fast with 4096 tokens as with 16384.
BATCH_TOKENS, BATCH_TOKENS_ON_CPU = 16384, 4096


@dataclass(frozen=True)
class Batch:
    """Rows of one pass, and where in them the scored tokens are."""

    inputs: dict  # input_ids (rows, seq), attention_mask, position_ids
    num_examples: int  # whose first row is in the batch
    counted_rows: torch.Tensor  # (counted,)
    counted_positions: torch.Tensor  # (counted,): a token counts once for each example that it is in
    counted_examples: torch.Tensor  # (counted,): index of that example
    counts: torch.Tensor  # (counted,): how many times: once for the prompt, once per choice
    rows: torch.Tensor  # (predictors,)
    positions: torch.Tensor  # (predictors,): whose logits are looked at
    predictors: torch.Tensor  # (scored,): index of the predictor of a scored token
    targets: torch.Tensor  # (scored,)
    choices: torch.Tensor  # (scored,): index of the choice among all choices

    @property
    def shape(self) -> tuple[int, int]:
        """Rows, tokens."""
        return tuple(self.inputs["input_ids"].shape)


@dataclass(frozen=True)
class _Row:
    """Prompts and choices behind them, as a tree: those that begin alike share these tokens."""

    tokens: list[int] = field(default_factory=list)
    parents: list[int] = field(default_factory=list)  # place of the token before it, -1 for the first
    counts: Counter[tuple[int, int]] = field(default_factory=Counter)  # (place, example) -> how many times
    scored: list[tuple[int, int, int]] = field(
        default_factory=list
    )  # (predictor's place, target, index of the choice)
    places: dict[tuple[int, int], int] = field(default_factory=dict)  # (place of the parent, token) -> place

    def add(self, token: int, parent: int) -> int:
        """Return the place of a token behind `parent`: a new one, unless the same token is there already."""
        if (parent, token) not in self.places:
            self.places[parent, token] = len(self.tokens)
            self.tokens.append(token)
            self.parents.append(parent)
        return self.places[parent, token]


@dataclass(frozen=True)
class _Part:
    """Choices of an example that stand in one row."""

    example: ScoredExample
    number: int  # of the example
    first_choice: int  # index of the example's first choice among all
    group: range

    @property
    def has_prompt(self) -> bool:
        """Whether the prompt counts here: it does once, however many rows an example has."""
        return self.group[0] == 0


def fast_batch_tokens(model: PreTrainedModel) -> int:
    """How many tokens a pass carries where nobody says it."""
    return BATCH_TOKENS_ON_CPU if next(model.parameters()).device.type == "cpu" else BATCH_TOKENS


def make_batches(
    model: PreTrainedModel,
    examples: list[ScoredExample],
    is_packed: bool,
    batch_tokens: int | None = None,
    num_copies: int = 1,
) -> Iterator[Batch]:
    """Group rows of similar length so that copies of a batch have at most `batch_tokens` tokens, padding included.

    None: as many as are fast on the model's device. There, examples behind one beginning share a longer row.
    """
    row_tokens = (batch_tokens or BATCH_TOKENS) // num_copies
    pass_tokens = (batch_tokens or fast_batch_tokens(model)) // num_copies
    parts, first = [], 0
    for number, example in enumerate(examples):
        choices = range(len(example.choice_ids))
        groups = [choices] if is_packed else [range(choice, choice + 1) for choice in choices]
        parts += [_Part(example, number, first, group) for group in groups]
        first += len(choices)
    shared = _share_rows(parts, row_tokens) if is_packed else [[part] for part in parts]
    rows = sorted(((_make_row(parts), parts) for parts in shared), key=lambda row: len(row[0].tokens), reverse=True)
    while rows:
        size = max(1, pass_tokens // len(rows[0][0].tokens))
        num_examples = sum(part.has_prompt for _, parts in rows[:size] for part in parts)
        yield _collate(model, [row for row, _ in rows[:size]], num_examples, is_packed)
        rows = rows[size:]


def _share_rows(parts: list[_Part], row_tokens: int) -> list[list[_Part]]:
    """Put examples whose prompts begin alike (instructions, a system prompt, solved examples) behind that beginning."""
    shared, size, before = [], 0, ()
    for part in sorted(parts, key=lambda part: part.example.prompt_ids):
        prompt, num_tokens = part.example.prompt_ids, part.example.num_tokens
        num_common = common_prefix_length(before, prompt)
        size += num_tokens - num_common
        # Beside a short beginning, what attention does in vain between the examples would outweigh it.
        if shared and 4 * num_common >= num_tokens and size <= row_tokens:
            shared[-1].append(part)
        else:
            shared.append([part])
            size = num_tokens
        before = prompt
    return shared


def _make_row(parts: list[_Part]) -> _Row:
    row = _Row()
    for part in parts:
        end, in_prompt = -1, []  # of the prompt so far; (place of the predictor, target) of those that count
        for token, label in zip_longest(part.example.prompt_ids, part.example.prompt_labels, fillvalue=IGNORED):
            if label != IGNORED:
                in_prompt.append((end, label))
            end = row.add(token, end)
            row.counts[end, part.number] += part.has_prompt
        for choice in part.group:
            place = end
            row.scored.extend((predictor, label, part.first_choice + choice) for predictor, label in in_prompt)
            labels = part.example.choice_labels[choice]
            for token, label in zip(part.example.choice_ids[choice], labels, strict=True):
                if label != IGNORED:
                    row.scored.append((place, label, part.first_choice + choice))
                place = row.add(token, place)
                row.counts[place, part.number] += 1
    return row


def _collate(model: PreTrainedModel, rows: list[_Row], num_examples: int, is_packed: bool) -> Batch:
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
    counted = [(number, *where, count) for number, row in enumerate(rows) for where, count in row.counts.items()]
    return Batch(
        inputs,
        num_examples,
        *torch.tensor(counted, device=device).unbind(1),
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
    masks = {"full_attention": seen, "sliding_attention": seen}
    if isinstance(window, int):
        masks["sliding_attention"] = seen & (positions[:, :, None] - positions[:, None, :] < window)
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
