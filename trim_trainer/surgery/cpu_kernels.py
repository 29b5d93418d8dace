"""bitsandbytes reorders weights of 4 bits in place for its CPU kernels, and does not find the way back: here they stay.

A forward pass without gradients, on a CPU with AVX512-BF16, packs a layer's weights anew and rounds their scales to
bfloat16. `state_dict()` and training unpack them again, with the scales of one row in the places of another
(bitsandbytes 0.50; with double quantization they are rounded a second time instead).
"""

from torch import nn

_SWITCH = "support_avx512bf16_for_cpu"  # of each layer


def keep_order(model: nn.Module) -> None:
    """Let layers of 4 bits compute with their weights as they are, in training and evaluation, from now on."""
    for module in model.modules():
        if hasattr(module, _SWITCH):
            setattr(module, _SWITCH, False)


def check_order(model: nn.Module) -> None:
    """Raise a ValueError if weights of 4 bits have been reordered already, and are not what was quantized any more."""
    for name, module in model.named_modules():
        state = getattr(getattr(module, "weight", None), "quant_state", None)
        if hasattr(module, _SWITCH) and hasattr(state, "original_qshape"):
            raise ValueError(
                f"The 4-bit weights of {name} are not the ones that were quantized: a forward pass without gradients let "
                "bitsandbytes reorder them for its CPU kernels, which loses bits. Load the model again, and evaluate it "
                f"after it is handed over, or first set `{_SWITCH}` of each of its 4-bit layers to False."
            )
