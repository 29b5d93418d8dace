"""Log-probabilities of choices under the model and under the model without each of its layers, in one pass."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import nn
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from ..architectures.kept import Cut
from ..architectures.modules import find_decoder, find_layers
from ..data.examples import ScoredExample
from .batches import Batch, fast_batch_tokens, make_batches
from .hooks import joined_layers, plain_forward, record_squares, skip, stagger
from .layout import Layout
from .processes import share, sum_over_processes
from .scored_positions import logits_of
from .takeover import Takeover

# Logits that exist at the same time, in single precision: 0.25 GiB.
MAX_LOGITS = 2**26


@dataclass(frozen=True)
class LayerScan:
    """What a pass over the calibration set found.

    Attributes:
        log_probs: (1 + candidates, choices): summed log-probability of each choice, nats. Row 0 is the model as it is,
            the others the model without each candidate.
        activation_norms: (layers,): Frobenius norm of each layer's output over prompt and choices, mean over the
            calibration set. None: the layers do not return (batch, seq, hidden).
    """

    log_probs: torch.Tensor
    activation_norms: torch.Tensor | None


def score_choices(
    model: PreTrainedModel,
    examples: list[ScoredExample],
    layout: Layout,
    batch_tokens: int | None = None,
    is_shared: bool = True,
) -> torch.Tensor:
    """Return (choices,): the summed log-probability of each choice of each example, in nats, on the CPU.

    Several processes share the batches, unless told not to.
    """
    return _run(model, examples, layout, [], batch_tokens, is_shared, {}).log_probs[0]


def scan_layers(
    model: PreTrainedModel,
    examples: list[ScoredExample],
    layout: Layout,
    batch_tokens: int | None = None,
    candidates: Iterable[Cut] | None = None,
    is_shared: bool = True,
    takeovers: Mapping[Cut, Takeover] | None = None,
) -> LayerScan:
    """Score every choice with every layer left out in turn.

    Staggered, the candidate without layer i joins the batch behind layer i with the hidden state in front of it, so
    that no layer runs twice on the same input: half the work of a pass per layer, in large batches. The candidate without
    a seam joins behind the second of its layers, and has run through the joined layer meanwhile.

    Args:
        model: The model.
        examples: The calibration set.
        layout: From `choose_layout`.
        batch_tokens: Tokens that one pass carries at most, over all candidates; None: what is fast on the device.
        candidates: Layers and seams to leave out, from front to back; None: all layers.
        is_shared: Several processes share the batches; every one of them gets the whole result.
        takeovers: Candidate -> what is taken over when it goes, see `solve_takeovers`; None: nothing.
    """
    takeovers = takeovers or {}
    cuts = list(range(len(find_layers(model)))) if candidates is None else list(candidates)
    if layout.is_staggered:
        return _run(model, examples, layout, cuts, batch_tokens, is_shared, takeovers)
    base = _run(model, examples, layout, [], batch_tokens, is_shared, {})
    without, joined = [], _joined(model, cuts, takeovers)
    for cut in cuts:
        with skip(model, cut, takeovers.get(cut), joined.get(cut)):
            without.append(score_choices(model, examples, layout, batch_tokens, is_shared))
    return LayerScan(torch.stack([base.log_probs[0], *without]), base.activation_norms)


@torch.no_grad()
def _run(
    model: PreTrainedModel,
    examples: list[ScoredExample],
    layout: Layout,
    candidates: list[Cut],
    batch_tokens: int | None,
    is_shared: bool,
    takeovers: Mapping[Cut, Takeover],
) -> LayerScan:
    """Run the model over all examples, each of the candidates left out in its own share of the batch."""
    stack, was_training = find_layers(model), model.training
    num_choices = sum(len(example.choice_ids) for example in examples)
    totals = torch.zeros(1 + len(candidates), num_choices, dtype=torch.float64)
    squares = torch.zeros(len(stack), len(examples), dtype=torch.float64)
    if not layout.is_batched:
        batch_tokens = 1
    elif not layout.crops_head:
        most = MAX_LOGITS // model.get_output_embeddings().weight.shape[0]
        batch_tokens = min(batch_tokens or fast_batch_tokens(model), most)
    joined = _joined(model, candidates, takeovers)
    model.eval()
    # Shown in a terminal, and only where it takes longer than a glance.
    progress = tqdm(total=len(examples), desc="Scoring", unit="examples", leave=False, delay=2, disable=None)
    try:
        batches = make_batches(model, examples, layout.is_packed, batch_tokens, 1 + len(candidates))
        for batch in share(batches, model) if is_shared else batches:
            with (
                record_squares(stack, batch) as found,
                stagger(stack, candidates, batch, takeovers, joined),
                plain_forward(model),
            ):
                log_probs = _cropped(model, batch) if layout.crops_head else _whole(model, batch)
            totals.index_add_(1, batch.choices.cpu(), log_probs.cpu().double())
            squares.index_add_(1, batch.counted_examples.cpu(), torch.stack([each.cpu() for each in found]).double())
            progress.update(batch.num_examples)
    finally:
        model.train(was_training)
        progress.close()
    if is_shared:
        totals, squares = sum_over_processes(totals, squares, model=model)
    norms = squares.sqrt().mean(1).float()
    return LayerScan(totals.float(), norms if norms.isfinite().all() else None)


def _joined(model: PreTrainedModel, cuts: list[Cut], takeovers: Mapping[Cut, Takeover]) -> dict[Cut, nn.Module]:
    """The layer that each seam leaves: that whose map takes over, or one of its own."""
    known = {cut: takeovers[cut].joined for cut in cuts if cut in takeovers and takeovers[cut].joined is not None}
    return known | joined_layers(model, [cut for cut in cuts if cut not in known])


def _whole(model: PreTrainedModel, batch: Batch) -> torch.Tensor:
    """Return (1 + candidates, scored): log-probability of each scored token, by the model's own forward pass."""
    logits = model(**batch.inputs, use_cache=False).logits
    logits = logits.view(-1, batch.shape[0], *logits.shape[1:])[:, batch.rows, batch.positions]
    return _target_log_probs(logits.flatten(0, 1), batch, len(logits), start=0)


def _cropped(model: PreTrainedModel, batch: Batch) -> torch.Tensor:
    """The same, but what comes behind the decoder runs on the positions that predict a scored token, in chunks."""
    decoder = find_decoder(model)
    output = decoder(**batch.inputs, use_cache=False)
    hidden = output.last_hidden_state
    hidden = hidden.view(-1, batch.shape[0], *hidden.shape[1:])  # (1 + candidates, rows, seq, hidden)
    hidden = hidden[:, batch.rows, batch.positions]  # (1 + candidates, predictors, hidden)
    size = max(1, MAX_LOGITS // model.get_output_embeddings().weight.shape[0])
    log_probs = torch.zeros(len(hidden), len(batch.targets), device=hidden.device)
    for number, states in enumerate(hidden.flatten(0, 1).split(size)):
        logits = logits_of(model, decoder, replace(output, last_hidden_state=states[None]))[0]
        log_probs += _target_log_probs(logits, batch, len(hidden), number * size).to(log_probs.device)
    return log_probs


def _target_log_probs(logits: torch.Tensor, batch: Batch, num_copies: int, start: int) -> torch.Tensor:
    """Return (copies, scored): log-probability of each scored token whose predictor is here, 0 for the others.

    Args:
        logits: (predictors here, vocabulary): of those of all copies, one copy after the other, from `start` on.
        batch: What is scored.
        num_copies: 1 + candidates.
        start: Index of the first predictor that is here.
    """
    logits, copies = logits.float(), torch.arange(num_copies, device=logits.device)[:, None]
    places = copies * len(batch.rows) + batch.predictors.to(logits.device) - start  # (copies, scored)
    is_here = (places >= 0) & (places < len(logits))
    places = places.clamp(0, len(logits) - 1)
    found = logits[places, batch.targets.to(logits.device)] - logits.logsumexp(-1)[places]
    return found.where(is_here, 0.0)
