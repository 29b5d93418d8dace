"""Log-probabilities of choices under the model and under the model without each of its layers, in one pass."""

import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch import nn
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from .architectures import find_decoder, find_layers, text_config
from .calibration import IGNORED, ScoredExample

logger = logging.getLogger(__name__)

# Tokens that one pass carries at most, over all candidates: bounds memory whatever the size of the calibration set.
SCAN_BATCH_TOKENS = 8192
# Positions whose logits exist at the same time: 512 × 128k words × 4 bytes = 0.25 GiB.
HEAD_CHUNK = 512


@dataclass(frozen=True)
class LayerScan:
    """What a pass over the calibration set found.

    Attributes:
        log_probs: (1 + layers, choices): summed log-probability of each choice, nats. Row 0 is the model as it is, row
            1 + i the model without layer i.
        activation_norms: (layers,): Frobenius norm of each layer's output over prompt and choices, mean over the
            calibration set.
    """

    log_probs: torch.Tensor
    activation_norms: torch.Tensor


@dataclass(frozen=True)
class Layout:
    """How examples are laid out for a pass, found by `choose_layout`.

    `is_packed`: all choices of an example stand behind one prompt, in one row. `is_staggered`: the candidates of a
    scan join the batch at the layer that they skip, instead of a pass each.
    """

    is_packed: bool
    is_staggered: bool


@dataclass(frozen=True)
class _Batch:
    """Rows of one pass, and where in them the scored tokens are."""

    inputs: dict[str, torch.Tensor]  # input_ids (rows, seq), attention_mask, position_ids
    examples: torch.Tensor  # (rows,): index of the example
    num_examples: int  # whose first row is in the batch
    is_counted: torch.Tensor  # (rows, seq): prompt and choice tokens, each once; False on padding
    rows: torch.Tensor  # (scored,)
    predictors: torch.Tensor  # (scored,): position whose logits predict the token
    targets: torch.Tensor  # (scored,)
    choices: torch.Tensor  # (scored,): index of the choice among all choices


def score_choices(
    model: PreTrainedModel, examples: list[ScoredExample], layout: Layout, batch_tokens: int = SCAN_BATCH_TOKENS
) -> torch.Tensor:
    """Return (choices,): the summed log-probability of each choice of each example, in nats, on the CPU."""
    return _run(model, examples, layout, candidates=[], batch_tokens=batch_tokens).log_probs[0]


def scan_layers(
    model: PreTrainedModel, examples: list[ScoredExample], layout: Layout, batch_tokens: int = SCAN_BATCH_TOKENS
) -> LayerScan:
    """Score every choice with every layer left out in turn.

    Staggered, the candidate without layer i joins the batch behind layer i with the hidden state in front of it, so
    that no layer runs twice on the same input: half the work of a pass per layer, in large batches.
    """
    layers = list(range(len(find_layers(model))))
    if layout.is_staggered:
        return _run(model, examples, layout, candidates=layers, batch_tokens=batch_tokens)
    base = _run(model, examples, layout, candidates=[], batch_tokens=batch_tokens)
    without = []
    for layer in layers:
        with _skip_layer(find_layers(model)[layer]):
            without.append(score_choices(model, examples, layout, batch_tokens))
    return LayerScan(torch.stack([base.log_probs[0], *without]), base.activation_norms)


def choose_layout(model: PreTrainedModel, examples: list[ScoredExample]) -> Layout:
    """Find the fastest layout that is exact for this model, by trying it on the longest example.

    The scores of the model's own forward pass, one row per choice and one pass per layer, are the truth. A sliding
    window shorter than a packed row, or layers that hand state to each other, make a faster layout inexact; then the
    next slower one is taken, and logged.
    """
    longest = [max(examples, key=lambda example: example.num_tokens)]
    device_type = next(model.parameters()).device.type
    with torch.autocast(device_type, enabled=False):
        truth = scan_layers(model, longest, Layout(is_packed=False, is_staggered=False)).log_probs
        num_scored = max(len(ids) for ids in longest[0].choice_ids)
        # Rounding of 16-bit weights differs between batch shapes; a wrong mask or state is off by whole nats.
        tolerance = num_scored * (1e-4 if model.dtype == torch.float32 else 5e-2)
        for layout in (Layout(True, True), Layout(False, True), Layout(True, False)):
            scores = scan_layers(model, longest, layout).log_probs
            error = (scores - truth).abs().max().item()
            if error <= tolerance:
                return layout
            logger.info("%s is off by %.3g nats on this model, trying the next slower layout.", layout, error)
    return Layout(is_packed=False, is_staggered=False)


@torch.no_grad()
def _run(
    model: PreTrainedModel, examples: list[ScoredExample], layout: Layout, candidates: list[int], batch_tokens: int
) -> LayerScan:
    """Run the model over all examples, each `candidates` layer left out in its own share of the batch."""
    stack, was_training = find_layers(model), model.training
    num_choices = sum(len(example.choice_ids) for example in examples)
    totals = torch.zeros(1 + len(candidates), num_choices, dtype=torch.float64)
    squares = torch.zeros(len(stack), len(examples), dtype=torch.float64)
    model.eval()
    # Shown in a terminal, and only where it takes longer than a glance.
    progress = tqdm(total=len(examples), desc="Scoring", unit="examples", leave=False, delay=2, disable=None)
    try:
        for batch in _batches(model, examples, layout, batch_tokens // (1 + len(candidates))):
            with _record_squares(stack, batch) as squares_of_rows, _stagger(stack, candidates, batch):
                hidden = find_decoder(model)(**batch.inputs, use_cache=False).last_hidden_state
            log_probs = _target_log_probs(model, hidden, batch)  # (1 + candidates, scored)
            totals.index_add_(1, batch.choices.cpu(), log_probs.cpu().double())
            squares.index_add_(1, batch.examples.cpu(), torch.stack(squares_of_rows).cpu().double())
            progress.update(batch.num_examples)
    finally:
        model.train(was_training)
        progress.close()
    return LayerScan(totals.float(), squares.sqrt().mean(1).float())


def _target_log_probs(model: PreTrainedModel, hidden: torch.Tensor, batch: _Batch) -> torch.Tensor:
    """Return (1 + candidates, scored): log-probability of each scored token; the head runs on nothing else."""
    num_rows = len(batch.examples)
    hidden = hidden.view(-1, num_rows, *hidden.shape[1:])  # (1 + candidates, rows, seq, hidden)
    hidden = hidden[:, batch.rows, batch.predictors]  # (1 + candidates, scored, hidden)
    targets = batch.targets.repeat(len(hidden))
    head, softcap = model.get_output_embeddings(), getattr(text_config(model.config), "final_logit_softcapping", None)
    chunks = []
    for states, target in zip(hidden.flatten(0, 1).split(HEAD_CHUNK), targets.split(HEAD_CHUNK), strict=True):
        logits = head(states.to(head.weight.device)).float()
        logits = logits if softcap is None else torch.tanh(logits / softcap) * softcap
        chunks.append(-nn.functional.cross_entropy(logits, target, reduction="none"))
    return torch.cat(chunks).view(len(hidden), -1)


def _batches(
    model: PreTrainedModel, examples: list[ScoredExample], layout: Layout, batch_tokens: int
) -> Iterator[_Batch]:
    """Group rows of similar length so that a batch has at most `batch_tokens` tokens, padding included."""
    rows, first = [], 0  # (prompt, choices, index of the first choice, index of the example, is its first row)
    for number, example in enumerate(examples):
        choices = list(zip(example.choice_ids, example.choice_labels, strict=True))
        groups = [choices] if layout.is_packed else [[choice] for choice in choices]
        for group in groups:
            rows.append((example.prompt_ids, group, first, number, group[0] is choices[0]))
            first += len(group)

    def num_tokens(row) -> int:
        return len(row[0]) + sum(len(ids) for ids, _ in row[1])

    rows.sort(key=num_tokens, reverse=True)
    while rows:
        longest = num_tokens(rows[0])
        size = max(1, batch_tokens // longest)
        yield _collate(model, rows[:size], longest, layout.is_packed)
        rows = rows[size:]


def _collate(model: PreTrainedModel, rows: list, length: int, is_packed: bool) -> _Batch:
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
    inputs = {"input_ids": input_ids}
    if is_packed:
        inputs |= {"position_ids": position_ids, "attention_mask": _tree_mask(model, segments)}
    else:
        inputs |= {"attention_mask": (segments >= 0).long()}
    counts_prompt = torch.tensor([is_first for *_, is_first in rows])
    is_counted = (segments > 0) | ((segments == 0) & counts_prompt[:, None])
    return _Batch(
        {name: value.to(device) for name, value in inputs.items()},
        torch.tensor([number for *_, number, _ in rows], device=device),
        int(counts_prompt.sum()),
        is_counted.to(device),
        *torch.tensor(scored, device=device).unbind(1),
    )


def _tree_mask(model: PreTrainedModel, segments: torch.Tensor) -> torch.Tensor:
    """Return (rows, 1, seq, seq): a token sees the prompt and its own choice before it; padding sees itself."""
    same = segments[:, :, None] == segments[:, None, :]
    seen = (same | (segments[:, None, :] == 0)).tril()[:, None]
    if model.config._attn_implementation == "sdpa":
        return seen
    return torch.zeros(seen.shape, dtype=model.dtype).masked_fill(~seen, torch.finfo(model.dtype).min)


@contextmanager
def _stagger(stack: nn.ModuleList, candidates: list[int], batch: _Batch) -> Iterator[None]:
    """Let each candidate join the batch behind the layer that it skips."""
    num_rows = len(batch.examples)
    before = {}  # candidate -> hidden state in front of the skipped layer, (rows, seq, hidden)

    def widen(value, copies):
        if isinstance(value, torch.Tensor) and value.ndim > 1 and value.shape[0] == num_rows:
            return value.repeat(copies, *[1] * (value.ndim - 1))
        if isinstance(value, tuple):
            return tuple(widen(entry, copies) for entry in value)
        return value

    def enter(number):
        def hook(layer, args, kwargs):
            hidden, *others = args
            if number in candidates:
                before[number] = hidden[:num_rows]
            copies = len(hidden) // num_rows
            return (hidden, *(widen(other, copies) for other in others)), {
                name: widen(value, copies) for name, value in kwargs.items()
            }

        return hook

    def leave(number):
        def hook(layer, args, kwargs, output):
            return _replace_hidden(output, torch.cat([_hidden(output), before.pop(number)]))

        return hook

    with ExitStack() as hooks:
        for number, layer in enumerate(stack):
            if candidates:
                hooks.callback(layer.register_forward_pre_hook(enter(number), with_kwargs=True).remove)
            if number in candidates:
                hooks.callback(layer.register_forward_hook(leave(number), with_kwargs=True).remove)
        yield


@contextmanager
def _record_squares(stack: nn.ModuleList, batch: _Batch) -> Iterator[list[torch.Tensor]]:
    """Collect, per layer, (rows,): the squared Frobenius norm of its output."""
    squares = []

    def hook(layer, args, output):
        hidden = _hidden(output)[: len(batch.examples)].float() * batch.is_counted[..., None]
        squares.append(hidden.square().flatten(1).sum(1))

    with ExitStack() as hooks:
        for layer in stack:
            hooks.callback(layer.register_forward_hook(hook).remove)
        yield squares


@contextmanager
def _skip_layer(layer: nn.Module) -> Iterator[None]:
    """Make a layer return its input."""

    def hook(layer, args, output):
        return _replace_hidden(output, args[0])

    handle = layer.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def _hidden(output):
    return output[0] if isinstance(output, tuple) else output


def _replace_hidden(output, hidden):
    return (hidden, *output[1:]) if isinstance(output, tuple) else hidden
