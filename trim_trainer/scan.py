"""Log-probabilities of choices under the model and under the model without each of its layers, in one pass."""

import logging
import math
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace

import torch
from torch import nn
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from .architectures.configs import text_config
from .architectures.errors import UnsupportedArchitectureError
from .architectures.modules import find_decoder, find_layers
from .architectures.table import find_architecture
from .batches import Batch, fast_batch_tokens, make_batches
from .data.examples import ScoredExample
from .processes import share, sum_over_processes
from .scored_positions import logits_of

logger = logging.getLogger(__name__)

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


@dataclass(frozen=True)
class Layout:
    """How examples are laid out for a pass, found by `choose_layout`.

    Attributes:
        is_packed: All choices of an example stand behind one prompt, in one row; examples behind what they share.
        is_staggered: The candidates of a scan join the batch at the layer that they skip, instead of a pass each.
        crops_head: The head runs on the positions of the scored tokens only.
        is_batched: Rows are padded to one length and run together; else one at a time.
    """

    is_packed: bool
    is_staggered: bool
    crops_head: bool = True
    is_batched: bool = True


PLAIN = Layout(is_packed=False, is_staggered=False, crops_head=False)
ONE_BY_ONE = Layout(is_packed=False, is_staggered=False, crops_head=False, is_batched=False)
# From fast to slow. What a layout may raise on a model that it does not fit is what torch and Transformers raise there.
LAYOUTS = (
    Layout(True, True),
    Layout(False, True),
    Layout(True, True, crops_head=False),
    Layout(False, True, crops_head=False),
    Layout(True, False),
    Layout(False, False),
    PLAIN,
)
ROUNDING = 2e-5  # share of a log-probability that differs between batch shapes in single precision
MANY_LAYERS, NUM_LAYERS_TRIED, NUM_CHOICES_TRIED = 8, 4, 2  # by `choose_layout`
MISFITS = (RuntimeError, ValueError, TypeError, AttributeError, IndexError, KeyError, NotImplementedError)


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
    return _run(model, examples, layout, [], batch_tokens, is_shared).log_probs[0]


def scan_layers(
    model: PreTrainedModel,
    examples: list[ScoredExample],
    layout: Layout,
    batch_tokens: int | None = None,
    candidates: Iterable[int] | None = None,
    is_shared: bool = True,
) -> LayerScan:
    """Score every choice with every layer left out in turn.

    Staggered, the candidate without layer i joins the batch behind layer i with the hidden state in front of it, so
    that no layer runs twice on the same input: half the work of a pass per layer, in large batches.

    Args:
        model: The model.
        examples: The calibration set.
        layout: From `choose_layout`.
        batch_tokens: Tokens that one pass carries at most, over all candidates; None: what is fast on the device.
        candidates: Numbers of the layers to leave out, in rising order; None: all.
        is_shared: Several processes share the batches; every one of them gets the whole result.
    """
    layers = list(range(len(find_layers(model)))) if candidates is None else list(candidates)
    if layout.is_staggered:
        return _run(model, examples, layout, layers, batch_tokens, is_shared)
    base = _run(model, examples, layout, [], batch_tokens, is_shared)
    without = []
    for layer in layers:
        with _skip_layer(model, layer):
            without.append(score_choices(model, examples, layout, batch_tokens, is_shared))
    return LayerScan(torch.stack([base.log_probs[0], *without]), base.activation_norms)


def choose_layout(model: PreTrainedModel, examples: list[ScoredExample]) -> Layout:
    """Find the fastest layout that is exact for this model, by trying it on the longest and the shortest example.

    The scores of the model's own forward pass, one choice at a time without padding and one pass per layer, are the
    truth, for two choices of both and, in a model of many layers, some of each kind. A state that layers hand to each
    other, recurrence over a packed row, or a top-k that padding disturbs make a faster layout inexact or impossible; then
    the next slower one is taken, and logged.

    Raises:
        UnsupportedArchitectureError: not even plain passes are possible.
    """
    layers = _layers_to_try(model)
    by_length = sorted(examples, key=lambda example: example.num_tokens)
    tried = [_first_choices(example) for example in (by_length[-1], by_length[0])]
    with torch.autocast(next(model.parameters()).device.type, enabled=False):
        try:
            truth = scan_layers(model, tried, ONE_BY_ONE, candidates=layers, is_shared=False).log_probs
        except MISFITS as error:
            raise UnsupportedArchitectureError(
                f"Layers of {type(model).__name__} cannot be left out one at a time ({type(error).__name__}: {error}). "
                "Choose them yourself and call `drop_layers`."
            ) from error
        num_scored = max(len(ids) for ids in tried[0].choice_ids)
        # Rounding of 16-bit weights differs between batch shapes; a wrong mask or state is off by whole nats.
        tolerance = num_scored * (1e-4 if model.dtype == torch.float32 else 5e-2)
        for layout in LAYOUTS:
            problem = _misfit(model, tried, layout, layers, truth, tolerance)
            if problem is None:
                return layout
            logger.info("%s does not fit this model (%s), trying the next slower layout.", layout, problem)
    logger.warning(
        "Calibration runs one choice at a time, several times as slow: batches are not exact (%s).", problem
    )
    return ONE_BY_ONE


def _layers_to_try(model: PreTrainedModel) -> list[int]:
    """Numbers of layers to leave out: all of a shallow model, else some over its depth, and two of each kind."""
    stack = find_layers(model)
    types = getattr(text_config(model.config), "layer_types", None) or ()
    kinds: dict[tuple, list[int]] = {}
    for number, layer in enumerate(stack):
        kinds.setdefault((type(layer), *types[number : number + 1]), []).append(number)
    spread = range(0, len(stack), 1 if len(stack) <= MANY_LAYERS else math.ceil(len(stack) / NUM_LAYERS_TRIED))
    return sorted({*spread, *(number for of_kind in kinds.values() for number in (of_kind[0], of_kind[-1]))})


def _first_choices(example: ScoredExample) -> ScoredExample:
    labels = example.choice_labels[:NUM_CHOICES_TRIED]
    return replace(example, choice_ids=example.choice_ids[:NUM_CHOICES_TRIED], choice_labels=labels, answer=0)


def _misfit(
    model: PreTrainedModel, examples, layout: Layout, layers: list[int], truth: torch.Tensor, tolerance: float
) -> str | None:
    """Why a layout cannot be used; None: it gives the truth."""
    try:
        found = scan_layers(model, examples, layout, candidates=layers, is_shared=False).log_probs
    except MISFITS as raised:
        return f"{type(raised).__name__}: {raised}"
    # Rounding grows with the distance of a choice from likely.
    if torch.allclose(found, truth, rtol=ROUNDING, atol=tolerance):
        return None
    return f"off by {(found - truth).abs().max().item():.3g} nats"


@torch.no_grad()
def _run(
    model: PreTrainedModel,
    examples: list[ScoredExample],
    layout: Layout,
    candidates: list[int],
    batch_tokens: int | None,
    is_shared: bool,
) -> LayerScan:
    """Run the model over all examples, each `candidates` layer left out in its own share of the batch."""
    stack, was_training = find_layers(model), model.training
    num_choices = sum(len(example.choice_ids) for example in examples)
    totals = torch.zeros(1 + len(candidates), num_choices, dtype=torch.float64)
    squares = torch.zeros(len(stack), len(examples), dtype=torch.float64)
    if not layout.is_batched:
        batch_tokens = 1
    elif not layout.crops_head:
        most = MAX_LOGITS // model.get_output_embeddings().weight.shape[0]
        batch_tokens = min(batch_tokens or fast_batch_tokens(model), most)
    model.eval()
    # Shown in a terminal, and only where it takes longer than a glance.
    progress = tqdm(total=len(examples), desc="Scoring", unit="examples", leave=False, delay=2, disable=None)
    try:
        batches = make_batches(model, examples, layout.is_packed, batch_tokens, 1 + len(candidates))
        for batch in share(batches, model) if is_shared else batches:
            with _record_squares(stack, batch) as found, _stagger(stack, candidates, batch), plain_forward(model):
                log_probs = _cropped(model, batch) if layout.crops_head else _whole(model, batch)
            totals.index_add_(1, batch.choices.cpu(), log_probs.cpu().double())
            squares.index_add_(1, batch.counted_examples.cpu(), torch.stack(found).cpu().double())
            progress.update(batch.num_examples)
    finally:
        model.train(was_training)
        progress.close()
    if is_shared:
        totals, squares = sum_over_processes(totals, squares, model=model)
    norms = squares.sqrt().mean(1).float()
    return LayerScan(totals.float(), norms if norms.isfinite().all() else None)


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


@contextmanager
def _stagger(stack: nn.ModuleList, candidates: list[int], batch: Batch) -> Iterator[None]:
    """Let each candidate join the batch behind the layer that it skips."""
    num_rows = batch.shape[0]
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
            return _replace_hidden(output, torch.cat([hidden_of(output), before.pop(number)]))

        return hook

    with ExitStack() as hooks:
        for number, layer in enumerate(stack):
            if candidates:
                hooks.callback(layer.register_forward_pre_hook(enter(number), with_kwargs=True).remove)
            if number in candidates:
                hooks.callback(layer.register_forward_hook(leave(number), with_kwargs=True).remove)
        yield


@contextmanager
def _record_squares(stack: nn.ModuleList, batch: Batch) -> Iterator[list[torch.Tensor]]:
    """Collect, per layer, (counted,): the squared norm of its output at each token; NaN where it has another shape."""
    squares = []

    def hook(layer, args, output):
        hidden = hidden_of(output)
        if isinstance(hidden, torch.Tensor) and hidden.shape[1:2] == batch.shape[1:] and hidden.ndim == 3:
            of_tokens = hidden[: batch.shape[0]].float().square().sum(-1)  # (rows, seq)
            squares.append(of_tokens[batch.counted_rows, batch.counted_positions] * batch.counts)
        else:
            squares.append(torch.full(batch.counts.shape, torch.nan))

    with ExitStack() as hooks:
        for layer in stack:
            hooks.callback(layer.register_forward_hook(hook).remove)
        yield squares


@contextmanager
def _skip_layer(model: PreTrainedModel, number: int) -> Iterator[None]:
    """Make a layer hand on what it is given: the hidden state, and the state beside it where the model type has one."""
    num_carried = find_architecture(model.config).num_carried

    def hook(layer, args, output):
        carried = args[: 1 + num_carried]
        if isinstance(output, tuple | list):
            return type(output)((*carried, *output[1 + num_carried :]))
        return carried[0]

    handle = find_layers(model)[number].register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def hidden_of(output) -> torch.Tensor:
    """The hidden state among what a layer returns."""
    return output[0] if isinstance(output, tuple | list) else output


def _replace_hidden(output, hidden):
    return type(output)((hidden, *output[1:])) if isinstance(output, tuple | list) else hidden


@contextmanager
def plain_forward(model: PreTrainedModel) -> Iterator[None]:
    """Undo what a trainer hung on `model.forward` (autocast, a fused head): the model as `from_pretrained` gives it."""
    wrapped = model.__dict__.pop("forward", None)
    try:
        yield
    finally:
        if wrapped is not None:
            model.forward = wrapped
