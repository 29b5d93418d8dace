"""DeepSpeed's ZeRO 1 and 2 keep optimizer state in flat buffers over all layers: made anew when layers are gone."""

import torch
from torch import distributed, nn

# What the engine counts; where it is in gradient accumulation is among it.
COUNTERS = ("global_steps", "global_samples", "micro_steps", "skipped_steps")


def rebuild_engine(engine: nn.Module) -> None:
    """Make a DeepSpeed engine anew for the parameters that its module still has, in place.

    Weights in single precision and optimizer state of the parameters that stay are carried over, as are the settings of
    their groups and the engine's counters; what belongs to dropped layers is freed. Needs memory for the whole state of
    the kept parameters once, on the CPU.

    Args:
        engine: A `DeepSpeedEngine` with ZeRO stage 0, 1 or 2, made by accelerate.
    """
    import deepspeed

    old, base = engine.optimizer, engine.basic_optimizer
    kept = {parameter for parameter in engine.module.parameters() if parameter.requires_grad}
    groups = [[parameter for parameter in group if parameter in kept] for group in old.bit16_groups]
    masters = {p: deepspeed.utils.safe_get_full_fp32_param(p).cpu() for group in groups for p in group}
    states = [_gather(base, flat, group) for flat, group in zip(_partitions(old), groups, strict=True)]
    counters = {name: getattr(engine, name) for name in COUNTERS}
    engine.destroy()

    base.state.clear()  # the same object goes on: learning-rate schedules hold it
    for settings, group in zip(base.param_groups, groups, strict=True):
        settings["params"] = group
    made, *_ = deepspeed.initialize(model=engine.module, optimizer=base, config=engine.config)
    for flat, group, state in zip(_partitions(made.optimizer), groups, states, strict=True):
        base.state[flat].update(_scatter(state, flat, group))
    for parameter, master in masters.items():
        deepspeed.utils.safe_set_full_fp32_param(parameter, master.to(parameter.device))
    vars(made).update(counters)
    # The training loop and accelerate hold the engine itself.
    object.__setattr__(engine, "__dict__", vars(made))


def _partitions(optimizer) -> list[torch.Tensor]:
    """The flat part of each group that this process updates."""
    return optimizer.single_partition_of_fp32_groups


def _gather(base: torch.optim.Optimizer, flat: torch.Tensor, group: list[nn.Parameter]) -> dict:
    """State of a group: per-parameter tensors, whole, on the CPU; and what the group has once, such as its step."""
    return {
        key: {parameter: _whole(value, parameter) for parameter in group} if _is_flat(value, flat) else value
        for key, value in base.state.get(flat, {}).items()
    }


def _whole(value: torch.Tensor, parameter: nn.Parameter) -> torch.Tensor:
    """What all processes together hold of one parameter in a flat buffer, on the CPU."""
    whole = torch.zeros(parameter.numel(), dtype=value.dtype, device=value.device)
    if (mapping := parameter._hp_mapping) is not None:
        here, there = mapping.get_hp_fragment_address(), mapping.lp_fragment_address
        whole.narrow(0, there.start, there.numel).copy_(value.narrow(0, here.start, here.numel))
    distributed.all_reduce(whole)
    return whole.cpu()


def _scatter(state: dict, flat: torch.Tensor, group: list[nn.Parameter]) -> dict:
    """The reverse: what of it belongs to this process, as flat as `flat`."""
    scattered = {}
    for key, value in state.items():
        if isinstance(value, dict):
            buffer = torch.zeros_like(flat)
            for parameter in group:
                if (mapping := parameter._hp_mapping) is not None:
                    here, there = mapping.get_hp_fragment_address(), mapping.lp_fragment_address
                    part = value[parameter].narrow(0, there.start, there.numel)
                    buffer.narrow(0, here.start, here.numel).copy_(part)
            value = buffer
        scattered[key] = value
    return scattered


def _is_flat(value, flat: torch.Tensor) -> bool:
    return isinstance(value, torch.Tensor) and value.shape == flat.shape and flat.numel() > 1
