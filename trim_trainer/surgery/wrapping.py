"""What wraps a model in several processes, made anew when layers are gone or other parameters train."""

from accelerate import Accelerator
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.nn.parallel import DistributedDataParallel


def rewrap(wrapped: nn.Module, accelerator: Accelerator) -> None:
    """Let DDP or FSDP2 look again at which parameters there are and which of them train, in place.

    DDP lists them when it is made, and would wait for gradients of dropped layers for ever; FSDP2 keeps a list of the
    modules that it sharded, and with it their memory. The training loop holds the wrapper itself, so it stays the same
    object.
    """
    if isinstance(wrapped, DistributedDataParallel):
        _make_anew(wrapped, accelerator)
    elif isinstance(wrapped, FSDPModule):
        forget_dropped(wrapped)


def hold_shards(model: nn.Module) -> None:
    """Let FSDP2 hold shards again where it kept whole weights after a pass, as it does of the head: what trains are shards."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def _make_anew(wrapped: DistributedDataParallel, accelerator: Accelerator) -> None:
    handler, is_training = accelerator.ddp_handler, wrapped.training
    options = {} if handler is None else handler.to_kwargs()
    wrapped.__init__(wrapped.module, device_ids=wrapped.device_ids, output_device=wrapped.output_device, **options)
    if handler is not None:
        handler.register_comm_hook(wrapped)
    wrapped.train(is_training)


def forget_dropped(root: FSDPModule) -> None:
    """Take modules that are gone out of the list that FSDP2 made at its first forward pass."""
    states = root._get_fsdp_state()._state_ctx.all_states
    here = {module._get_fsdp_state() for module in root.modules() if isinstance(module, FSDPModule)}
    states[:] = [state for state in states if state in here]
