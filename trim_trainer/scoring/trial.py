"""The fastest layout that is exact for a model, found by trying."""

import logging
import math
from dataclasses import replace

import torch
from torch import nn
from transformers import PreTrainedModel

from ..architectures.configs import text_config
from ..architectures.droppable import droppable_cuts
from ..architectures.errors import UnsupportedArchitectureError
from ..architectures.kept import Cut, Seam, sublayers
from ..architectures.modules import find_layers
from ..data.examples import ScoredExample
from .layout import LAYOUTS, ONE_BY_ONE, Layout
from .scan import scan_layers, score_choices

logger = logging.getLogger(__name__)
ROUNDING = 2e-5  # share of a log-probability that differs between batch shapes in single precision
MANY_LAYERS, NUM_LAYERS_TRIED, NUM_CHOICES_TRIED, MANY_TOKENS = 8, 4, 2, 8  # by `choose_layout`
# Kinds of layers in which the mask alone says which tokens see each other.
ATTENTION = {"full_attention", "sliding_attention", "chunked_attention"}
MISFITS = (RuntimeError, ValueError, TypeError, AttributeError, IndexError, KeyError, NotImplementedError)


class ScoringError(ValueError):
    """A model cannot be scored on the examples; the message says why."""


def choose_layout(model: PreTrainedModel, examples: list[ScoredExample], with_seams: bool = False) -> Layout:
    """Find the fastest layout that is exact for this model, by trying it on the longest and the shortest example.

    The scores of the model's own forward pass, one choice at a time without padding and one pass per layer, are the
    truth, for two choices of both and, in a model of many layers, some of each kind. A state that layers hand to each
    other, recurrence over a packed row, or a top-k that padding disturbs make a faster layout inexact or impossible; then
    the next slower one is taken, and logged.

    Raises:
        ScoringError: the model as it is does not run on these examples.
        UnsupportedArchitectureError: it does, but not without one of its layers.
    """
    tried_cuts = _cuts_to_try(model, with_seams)
    by_length = sorted(examples, key=lambda example: example.num_tokens)
    tried = [_first_choices(example) for example in (by_length[-1], by_length[0])]
    tried.append(_forked(next((each for each in by_length if each.num_tokens >= MANY_TOKENS), by_length[-1])))
    with torch.autocast(next(model.parameters()).device.type, enabled=False):
        _check_runs(model, tried)
        try:
            truth = scan_layers(model, tried, ONE_BY_ONE, candidates=tried_cuts, is_shared=False).log_probs
        except torch.OutOfMemoryError as error:
            raise _out_of_memory(model, tried) from error
        except MISFITS as error:
            raise UnsupportedArchitectureError(
                f"Layers of {type(model).__name__} cannot be left out one at a time ({type(error).__name__}: {error}). "
                "Choose them yourself and call `drop_layers`."
            ) from error
        tolerance = _tolerance(tried, 1e-4 if model.dtype == torch.float32 else 5e-2)
        hands_on = _hands_on(model)
        for layout in (each for each in LAYOUTS if not (hands_on and each.is_packed)):
            problem = _misfit(model, tried, layout, tried_cuts, truth, tolerance)
            if problem is None:
                return layout
            logger.info("%s does not fit this model (%s), trying the next slower layout.", layout, problem)
    logger.warning(
        "Calibration runs one choice at a time, several times as slow: batches are not exact (%s).", problem
    )
    return ONE_BY_ONE


def _tolerance(tried: list[ScoredExample], per_token: float) -> torch.Tensor:
    """Return (choices,), by how many nats each may be off, on the CPU.

    Rounding of 16-bit weights differs between batch shapes; a wrong mask or state is off by whole nats of a long text, and by
    less of the short ends that are tried for what leaks from one into the other.
    """
    longest = max(map(len, tried[0].choice_ids)) + len(tried[0].prompt_labels)
    scored = [longest] * sum(len(example.choice_ids) for example in tried[:-1])
    scored += [min(longest, max(1, len(end))) for end in tried[-1].choice_ids]
    return per_token * torch.tensor(scored, dtype=torch.float64)


def _hands_on(model: PreTrainedModel) -> bool:
    """Whether layers mix the tokens of a row by their places in it: recurrence and convolutions ask no mask who sees whom."""
    types = set(getattr(text_config(model.config), "layer_types", None) or ())
    return not types <= ATTENTION or any(isinstance(each, nn.Conv1d) for each in find_layers(model).modules())


def _check_runs(model: PreTrainedModel, tried: list[ScoredExample]) -> None:
    """Raise a ScoringError that says why plain passes fail where no layer is left out."""
    try:
        score_choices(model, tried, ONE_BY_ONE, is_shared=False)
    except torch.OutOfMemoryError as error:
        raise _out_of_memory(model, tried) from error
    except MISFITS as error:
        longest, most = _longest(tried), getattr(text_config(model.config), "max_position_embeddings", None)
        name = type(model).__name__
        if isinstance(most, int) and longest > most:
            raise ScoringError(
                f"An example has {longest} tokens, but `max_position_embeddings` of {name} is {most}, and it has no position "
                f"for more. Set `max_length` to {most} or less, which cuts texts as training does, or shorten the examples."
            ) from error
        raise ScoringError(
            f"{name} does not run on the examples, with no layer left out ({type(error).__name__}: {error}; the longest has "
            f"{longest} tokens). Check that model, tokenizer and data belong together."
        ) from error


def _out_of_memory(model: PreTrainedModel, tried: list[ScoredExample]) -> ScoringError:
    return ScoringError(
        f"Memory of {model.device} does not suffice for one example of {_longest(tried)} tokens alone. Lower `max_length`, "
        "or load the model with fewer bits."
    )


def _longest(examples: list[ScoredExample]) -> int:
    """Tokens of the longest text, a prompt with one choice."""
    return max(len(example.prompt_ids) + max(map(len, example.choice_ids)) for example in examples)


def _layers_to_try(model: PreTrainedModel) -> list[int]:
    """Numbers of layers to leave out: all of a shallow model, else some over its depth, and two of each kind."""
    stack = find_layers(model)
    types = getattr(text_config(model.config), "layer_types", None) or ()
    kinds: dict[tuple, list[int]] = {}
    for number, layer in enumerate(stack):
        kinds.setdefault((type(layer), *types[number : number + 1]), []).append(number)
    spread = range(0, len(stack), 1 if len(stack) <= MANY_LAYERS else math.ceil(len(stack) / NUM_LAYERS_TRIED))
    return sorted({*spread, *(number for of_kind in kinds.values() for number in (of_kind[0], of_kind[-1]))})


def _cuts_to_try(model: PreTrainedModel, with_seams: bool) -> list[Cut]:
    """Those layers, and where they are asked for the seams behind them."""
    layers, seams = _layers_to_try(model), []
    if with_seams:
        can_go = droppable_cuts(model, with_seams=True)
        seams = [Seam(layer) for layer in layers if Seam(layer) in can_go]
    return sorted([*layers, *seams], key=sublayers)


def _first_choices(example: ScoredExample) -> ScoredExample:
    labels = example.choice_labels[:NUM_CHOICES_TRIED]
    return replace(example, choice_ids=example.choice_ids[:NUM_CHOICES_TRIED], choice_labels=labels, answer=0)


def _forked(example: ScoredExample) -> ScoredExample:
    """The same text with two ends of several tokens each, of which the second is the first one backwards.

    Choices of one token, and texts of which each has a row of its own, do not show a state that leaks where others share one.
    """
    tokens = example.prompt_ids + example.choice_ids[0]
    start = len(tokens) - min(MANY_TOKENS // 2, len(tokens) // 2)
    ends = (tokens[start:], tokens[start:][::-1])
    return ScoredExample(tokens[:start], ends, ends)


def _misfit(
    model: PreTrainedModel, examples, layout: Layout, cuts: list[Cut], truth: torch.Tensor, tolerance: torch.Tensor
) -> str | None:
    """Why a layout cannot be used; None: it gives the truth."""
    try:
        found = scan_layers(model, examples, layout, candidates=cuts, is_shared=False).log_probs
    except MISFITS as raised:
        return f"{type(raised).__name__}: {raised}"
    # Rounding grows with the distance of a choice from likely.
    if ((found - truth).abs() <= tolerance + ROUNDING * truth.abs()).all():
        return None
    return f"off by {(found - truth).abs().max().item():.3g} nats"
