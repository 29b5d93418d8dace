"""Where TRL's head scores every position (any device without Triton), show it those whose label counts only."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
from transformers import PreTrainedModel

from .calibration import IGNORED


@contextmanager
def scored_positions_only(model: PreTrainedModel, inputs: dict) -> Iterator[dict]:
    """Yield inputs for a model with TRL's fused head that give the same loss from fewer positions.

    With completion-only loss most positions are prompt or padding. On a GPU with Triton the fused head leaves them out by
    itself; elsewhere it runs on all of them: a third of a training step of SmolLM2-135M on a CPU.

    Args:
        model: With `trl.trainer.utils.add_fused_lm_head`.
        inputs: With `labels`, (batch, seq). Those that are yielded have `shift_labels`, (1, scored), in their place.
    """
    labels = inputs["labels"][:, 1:]
    is_scored = labels != IGNORED  # (batch, seq - 1)

    def select(decoder, args, output):
        hidden = output.last_hidden_state[:, :-1]  # (batch, seq - 1, hidden)
        return replace(output, last_hidden_state=hidden[is_scored.to(hidden.device)][None])

    hook = model.base_model.register_forward_hook(select)
    try:
        others = {name: value for name, value in inputs.items() if name != "labels"}
        yield others | {"shift_labels": labels[is_scored][None]}
    finally:
        hook.remove()


def scores_every_position(device: torch.device) -> bool:
    """Whether TRL's fused head runs on all positions of this kind of device."""
    return device.type == "cpu"
