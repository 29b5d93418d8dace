"""A saved checkpoint is loaded back and must be the model that was saved: same tensors, same logits, same tokens."""

from pathlib import Path

import torch
from torch.distributed.fsdp import FSDPModule
from transformers import PreTrainedModel

from ..architectures.configs import text_config
from ..scoring.hooks import plain_forward

# Endings of the config fields that hold a token's number.
SPECIAL_TOKENS = ("_token_id", "_token_index")


class VerificationError(RuntimeError):
    """The checkpoint on disk is not the model in memory; the message says what differs."""


@torch.no_grad()
def verify_checkpoint(directory: str | Path, model: PreTrainedModel) -> None:
    """Load the checkpoint in `directory` with plain `from_pretrained` and compare it with the model in memory.

    No key may be missing, unexpected or mismatched, every tensor must be equal bit for bit, the logits of one batch
    must agree within the rounding of the dtype, and so must greedy decoding with the KV cache.

    Raises:
        VerificationError: names what differs first.
    """
    loaded = verify_tensors(directory, model, model.state_dict())
    loaded.to(model.device).eval()
    loaded.set_attn_implementation(model.config._attn_implementation)
    was_training = model.training
    model.eval()
    try:
        with plain_forward(model):
            _compare_outputs(directory, model, loaded)
    finally:
        model.train(was_training)


def verify_tensors(
    directory: str | Path, model: PreTrainedModel, expected: dict[str, torch.Tensor]
) -> PreTrainedModel:
    """Load the checkpoint and compare every tensor bit for bit; enough where the model in memory is sharded.

    Args:
        directory: The checkpoint.
        model: The model in memory, whose class and dtype it is loaded with.
        expected: The whole tensors that were saved.

    Returns:
        What was loaded.

    Raises:
        VerificationError: names what differs first.
    """
    # A sharded model has a class of its own, in front of that of Transformers.
    of_type = next(cls for cls in type(model).__mro__ if not issubclass(cls, FSDPModule))
    loaded, info = of_type.from_pretrained(directory, dtype=model.dtype, output_loading_info=True)
    problems = {name: sorted(map(str, keys)) for name, keys in info.items() if keys and name != "error_msgs"}
    if problems or info.get("error_msgs"):
        raise _failed(directory, f"it loads with {problems or info['error_msgs']}")
    for name, tensor in loaded.state_dict().items():
        if name not in expected or not torch.equal(tensor.cpu(), expected[name].cpu()):
            raise _failed(directory, f"tensor {name!r} is not the one in memory")
    return loaded


def _compare_outputs(directory, model: PreTrainedModel, loaded: PreTrainedModel) -> None:
    ids = _plain_tokens(model).view(2, 13)
    options = {"attention_mask": torch.ones_like(ids)}
    one, other = (m(input_ids=ids, **options).logits.float() for m in (model, loaded))
    # Equal tensors can differ in the last bits where their storage is aligned differently.
    rounding = 64 * torch.finfo(model.dtype).eps * one.abs().max().clamp(min=1)
    if not (one - other).abs().max() <= rounding:
        raise _failed(directory, f"its logits differ by {(one - other).abs().max():.3g}")
    options |= {"do_sample": False, "min_new_tokens": 8, "max_new_tokens": 8, "pad_token_id": 0, "use_cache": True}
    if not torch.equal(*(m.generate(ids, **options) for m in (model, loaded))):
        raise _failed(directory, "greedy decoding with the KV cache gives other tokens")


def _plain_tokens(model: PreTrainedModel) -> torch.Tensor:
    """(26,): tokens that stand for nothing special, such as an image."""
    special = set()
    for config in (model.config, text_config(model.config)):
        for name, value in config.to_dict().items():
            if name.endswith(SPECIAL_TOKENS):
                special.update(value if isinstance(value, list) else [value])
    vocab_size = model.get_input_embeddings().weight.shape[0]
    plain = [token for token in range(3, vocab_size) if token not in special]
    return torch.tensor((plain * 26)[:26], device=model.device)


def _failed(directory, what: str) -> VerificationError:
    return VerificationError(
        f"The checkpoint in {str(directory)!r} is not the model that was saved: {what}. The trained model is still in "
        "memory; do not use or publish the folder."
    )
