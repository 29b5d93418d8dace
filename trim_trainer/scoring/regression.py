"""Least squares for a projection: what it has to return in addition, summed up over passes of a model."""

import torch
from torch import nn
from transformers import PreTrainedModel

from .processes import sum_over_processes
from .projection import Projection

# Penalty on the change of a weight, as a share of the mean square of the projection's inputs.
RIDGE = 1e-2


class Regression:
    """Least squares for a projection: what it has to return in addition, from its inputs, summed up over passes.

    Each token is weighted by the inverse square of the norm of the state that it should have.

    Args:
        projection: That of the layer in front of the dropped ones.
    """

    def __init__(self, projection: Projection):
        self.projection = projection
        module = projection.module
        hidden_size, num_inputs = module.weight.shape if isinstance(module, nn.Linear) else module.weight.T.shape
        num_inputs += module.bias is not None
        shapes, device = ((num_inputs, num_inputs), (num_inputs, hidden_size), (1,)), module.weight.device
        self._sums = [torch.zeros(shape, device=device) for shape in shapes]  # a process may have no pass

    @property
    def size(self) -> int:
        """Bytes that the sums take."""
        return sum(total.numel() * total.element_size() for total in self._sums)

    def add(self, inputs: torch.Tensor, states: torch.Tensor, target: torch.Tensor) -> None:
        """Take in the inputs (tokens, inputs) of a pass, the states (tokens, hidden) and what they should have been."""
        with torch.autocast(inputs.device.type, enabled=False):
            self._add(inputs, states, target)

    def _add(self, inputs: torch.Tensor, states: torch.Tensor, target: torch.Tensor) -> None:
        inputs, states, target = inputs.float(), states.float(), target.to(states.device).float()
        if self.projection.module.bias is not None:
            inputs = torch.cat([inputs, inputs.new_ones(len(inputs), 1)], dim=1)
        weights = target.square().sum(1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny).reciprocal()
        missing = target - states
        squares, products, error = self._sums
        weighted = (weights * inputs).T
        squares.addmm_(weighted, inputs)
        products.addmm_(weighted, missing)
        error += (weights * missing.square()).sum()

    def solve(self, model: PreTrainedModel, dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, float]:
        """Solve by ridge regression in `dtype`, over the tokens that all processes have seen.

        Returns:
            (inputs, hidden), what is added per input, and the share of the error that is left.
        """
        squares, products, error = (total.to(dtype) for total in sum_over_processes(*self._sums, model=model))
        ridge = RIDGE * squares.diagonal().mean()
        by = torch.cholesky_solve(
            products, torch.linalg.cholesky(squares + ridge * torch.eye(len(squares)).to(squares))
        )
        left = error - 2 * (by * products).sum() + (by * (squares @ by)).sum()
        return by, (left / error).item()
