"""A model that returns numbers: training that has diverged leaves weights that are none, and so does 16-bit that overflows."""

import torch
from torch import nn
from transformers import PreTrainedModel


class DivergedError(ValueError):
    """The model returns NaN or infinite numbers, so that nothing can be scored with it; the message says where they are."""


def check_finite(values: torch.Tensor, model: PreTrainedModel) -> None:
    """Raise a DivergedError, which names a weight, unless what the model has returned is finite."""
    if values.isfinite().all():
        return
    name = name_not_finite(model)
    cause = (
        f"its weights are finite, so that what they are multiplied with overflows in {str(model.dtype).removeprefix('torch.')}"
        if name is None
        else f"{name!r} is not finite"
    )
    raise DivergedError(
        f"The model returns NaN or infinite numbers on the examples that layers are scored on: {cause}. Where it was trained, "
        "its training has diverged: lower `learning_rate`, set `max_grad_norm`, train in bfloat16 or float32 (`bf16`, `dtype`), "
        "and begin again, or at a checkpoint from before that (`resume_from_checkpoint`)."
    )


@torch.no_grad()
def name_not_finite(model: nn.Module) -> str | None:
    """The first weight with an element that is NaN or infinite, of those that this process holds; None: there is none."""
    for name, parameter in model.named_parameters():
        local = parameter.to_local() if hasattr(parameter, "to_local") else parameter
        if local.is_floating_point() and local.element_size() > 1 and not local.isfinite().all():
            return name
    return None
