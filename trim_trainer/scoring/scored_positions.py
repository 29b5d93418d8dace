"""Where TRL's head scores every position (any device without Triton), show it those whose label counts only."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from ..data.examples import IGNORED


@contextmanager
def scored_positions_only(model: PreTrainedModel, inputs: dict) -> Iterator[tuple[dict, list[ModelOutput]]]:
    """Yield inputs for a model with TRL's fused head that give the same loss from fewer positions, and what it saw.

    With completion-only loss most positions are prompt or padding. On a GPU with Triton the fused head leaves them out by
    itself; elsewhere it runs on all of them: a third of a training step of SmolLM2-135M on a CPU.

    Args:
        model: With `trl.trainer.utils.add_fused_lm_head`.
        inputs: With `labels`, (batch, seq). Those that are yielded have `shift_labels`, (1, scored), in their place.

    The list that is yielded is filled by each forward pass: the decoder's output, `last_hidden_state` (1, scored, hidden).
    """
    labels = inputs["labels"][:, 1:]
    is_scored = labels != IGNORED  # (batch, seq - 1)
    seen: list[ModelOutput] = []

    def select(decoder, args, output):
        hidden = output.last_hidden_state[:, :-1]  # (batch, seq - 1, hidden)
        seen.append(replace(output, last_hidden_state=hidden[is_scored.to(hidden.device)][None]))
        return seen[-1]

    hook = model.base_model.register_forward_hook(select)
    try:
        others = {name: value for name, value in inputs.items() if name != "labels"}
        yield others | {"shift_labels": labels[is_scored][None]}, seen
    finally:
        hook.remove()


def scores_every_position(device: torch.device) -> bool:
    """Whether TRL's fused head runs on all positions of this kind of device."""
    return device.type == "cpu"


def logits_of(model: PreTrainedModel, decoder: nn.Module, output: ModelOutput) -> torch.Tensor:
    """Return what a model makes of its decoder's output: head, scaling, soft cap, as its own forward pass does.

    Args:
        model: Causal LM.
        decoder: The module in it that returns the hidden states after the last norm.
        output: Of the decoder, with `last_hidden_state` (batch, seq, hidden), which may be a part of the positions.
    """
    ids = torch.zeros(1, 1, dtype=torch.long, device=output.last_hidden_state.device)
    with _returns(decoder, output):
        return model(input_ids=ids, use_cache=False).logits


@contextmanager
def _returns(module: nn.Module, output) -> Iterator[None]:
    """Let a module return `output` whatever it is given."""
    if "forward" in module.__dict__:
        raise RuntimeError("the decoder's forward is replaced already")
    module.forward = lambda *args, **kwargs: output
    try:
        yield
    finally:
        del module.forward


def no_logits(model: PreTrainedModel) -> dict[str, int]:
    """Let models that can do so compute logits of one position only: none are looked at."""
    return {"logits_to_keep": 1} if "logits_to_keep" in type(model).forward.__code__.co_varnames else {}
