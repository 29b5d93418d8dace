"""Quantized weights do not train: they are at the end, bit for bit, what they were at the beginning."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn
from torch.distributed.tensor import DTensor


class FrozenWeightsError(RuntimeError):
    """Weights that do not train are not what they were when training began; the message says which."""


@dataclass(frozen=True)
class FrozenWeights:
    """Hashes of a model's weights that do not train, with the state of their quantization.

    By module, since a layer keeps its modules when others are dropped, and not its number.
    """

    hashes: dict[nn.Module, dict[str, bytes]]

    @classmethod
    def take(cls, model: nn.Module) -> "FrozenWeights":
        """Hash the weights as they are now."""
        hashes = {}
        for _, module, tensors in _frozen(model):
            hashes[module] = {name: _hash(tensor) for name, tensor in tensors.items()}
        return cls(hashes)

    def check(self, model: nn.Module) -> None:
        """Raise a FrozenWeightsError if a weight that still does not train has changed."""
        changed = [
            f"{path}.{name}".removeprefix(".")
            for path, module, tensors in _frozen(model)
            for name, tensor in tensors.items()
            if name in self.hashes.get(module, {}) and self.hashes[module][name] != _hash(tensor)
        ]
        if changed:
            raise FrozenWeightsError(
                "Tensors of the quantized base model, which do not train, are not what they were when the run began "
                f"({len(changed)}): {', '.join(changed[:3])}{' …' if len(changed) > 3 else ''}. The adapter was trained on weights that "
                "were changing, so neither it nor the merged model is written. Look for what writes into them, such as a "
                "callback, or an evaluation with other kernels than training; then train again."
            )


def _frozen(model: nn.Module) -> Iterator[tuple[str, nn.Module, dict[str, torch.Tensor]]]:
    """Path, module and own tensors, as they are saved, of each module with weights that do not train."""
    for path, module in model.named_modules():
        own = dict(module.named_parameters(recurse=False))
        if not own or any(parameter.requires_grad for parameter in own.values()):
            continue
        children = dict(module.named_children())
        saved = {name: tensor for name, tensor in module.state_dict().items() if name.split(".")[0] not in children}
        yield path, module, saved


def _hash(tensor: torch.Tensor) -> bytes:
    """Of shape, type and content."""
    if isinstance(tensor, DTensor):
        tensor = tensor.to_local()
    hashed = hashlib.sha256(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
    hashed.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return hashed.digest()
