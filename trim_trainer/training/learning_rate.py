"""The learning rate while layers go: it rises as the depth falls."""

import logging
from collections.abc import Callable
from functools import partial

from torch.optim.lr_scheduler import LRScheduler

logger = logging.getLogger(__name__)


def choose_scaling(asked: bool | None, look: Callable[[], str | None]) -> bool:
    """Whether the rate rises as layers go: as the config says; left open, where layers in front of dropped ones could take over.

    On SmolLM2, whose layers can, it has to, whether they do or not, with LoRA too. On Gemma 3, where a norm stands behind what
    a layer adds, it must not.

    Args:
        asked: What the config says.
        look: Says why a layer could not, see `why_none_takes_over`; None: each could.
    """
    if asked is not None:
        return asked
    if look() is None:
        return True
    logger.info(
        "The learning rate stays as it is while layers go: what a layer adds does not reach the state as it is."
    )
    return False


def follow_depth(scheduler: LRScheduler, factor: Callable[[], float]) -> None:
    """Let a scheduler multiply the learning rate of each step by what `factor` says at that step.

    Those of transformers that follow a plan of their own are changed: from the step after a drop on, the rate is another
    one. Those that look at the loss (`reduce_lr_on_plateau`, `greedy`) stay as they are.
    """
    usual = getattr(scheduler, "lr_lambdas", None)
    if usual is None:
        logger.warning("`scale_learning_rate` does nothing with %s, which follows the loss.", type(scheduler).__name__)
        return
    scheduler.lr_lambdas = [partial(_times, at_step, factor) for at_step in usual]


def _times(at_step: Callable[[int], float], factor: Callable[[], float], step: int) -> float:
    return at_step(step) * factor()
