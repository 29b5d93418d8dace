"""Whether layers in front of dropped ones take over what those added, and on which examples."""

import logging
from collections.abc import Callable

from accelerate.utils import is_peft_model

from ..architectures.errors import UnsupportedArchitectureError
from ..data.examples import ScoredExample
from ..data.metrics import scored_by
from ..data.preparation import read_rows
from ..data.splits import draw_rows
from ..data.tokens import may_have_images, score_rows
from ..scoring.finite import DivergedError
from ..scoring.processes import from_main
from ..scoring.projection import check_compensation
from ..surgery.drop import is_quantized

logger = logging.getLogger(__name__)

COMPENSATION_SIZE = 64  # examples, where the config leaves it open


def why_none_takes_over(trainer, examples: list[ScoredExample]) -> str | None:
    """Say why a layer of the model could not return what those behind it add, whatever the settings; None: each could.

    The main process looks, since FSDP may load the weights there alone.

    Args:
        trainer: A `TrimTrainer`.
        examples: Its calibration set, on the shortest of which it is tried.
    """
    why = None
    if trainer.accelerator.is_main_process:
        try:
            check_compensation(trainer.causal_lm, min(examples, key=lambda example: example.num_tokens))
        except (UnsupportedArchitectureError, DivergedError) as error:
            why = str(error)  # what overflows here may not in the precision of the run
    return from_main(why)


def choose_compensation_size(trainer, look: Callable[[], str | None]) -> int:
    """Examples on which layers in front of dropped ones take over: as the config says, or the usual number where it can be.

    Args:
        trainer: A `TrimTrainer`.
        look: Says why a layer of its model could not, see `why_none_takes_over`; asked only where nothing else decides.

    Raises:
        ValueError: the config asks for it, and the run cannot.
        UnsupportedArchitectureError: the config asks for it, and the model cannot.
    """
    asked, why = trainer.args.compensation_size, why_not_compensated(trainer)
    if asked == 0:
        return 0
    if asked is not None and why is not None:
        raise ValueError(f"`compensation_size` is {asked}, {why}. Set it to 0.")
    if why is None and (unable := look()) is not None:
        if asked is not None:
            raise UnsupportedArchitectureError(unable)
        why = f"because {unable}"
    if why is not None:
        logger.info("No layer takes over what dropped ones added, %s", why)
        return 0
    return COMPENSATION_SIZE if asked is None else asked


def why_not_compensated(trainer) -> str | None:
    """Say why the weights of layers that stay cannot be solved for anew; None: they can, as far as the settings go."""
    args = trainer.args
    rules = {
        "with a PEFT adapter: it changes weights of the base model, which an adapter does not hold": is_peft_model(
            trainer.model
        ),
        "with quantized weights, which cannot be solved for": is_quantized(trainer.causal_lm),
        "with DeepSpeed, which keeps weights of its own beside the model's": trainer.is_deepspeed_enabled,
        "with FSDP, which spreads weights over all processes": trainer.is_fsdp_enabled,
        "with images in the training set, of which the states that are compared would see the text alone": may_have_images(
            trainer.train_dataset
        ),
        f"with `optim` {str(args.optim)!r}, which keeps a second set of weights": "schedule_free" in args.optim,
    }
    return next((why for why, is_so in rules.items() if is_so), None)


def draw_compensation_examples(trainer) -> list[ScoredExample]:
    """Draw `compensation_size` examples of the training set of a `TrimTrainer`, as it trains on them."""
    args = trainer.args
    rows = read_rows(draw_rows(trainer.train_dataset, trainer.compensation_size, args.seed))
    is_prepared = all("input_ids" in row for row in rows)  # unless the run leaves it to the collator
    return scored_by("loss", score_rows(rows, list if is_prepared else trainer.prepare_rows, args.max_length))
