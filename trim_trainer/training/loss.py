"""The loss of a run: SFTTrainer's, with the head on the positions that count only, and a teacher beside the labels."""

from collections.abc import Callable

import torch

from ..scoring.scored_positions import scored_positions_only, scores_every_position


def can_select_positions(trainer) -> bool:
    """Whether a `TrimTrainer` computes logits where they count only: a teacher needs it, and on a CPU it is cheaper."""
    is_usual = trainer.compute_loss_func is None and trainer.label_smoother is None and not trainer.args.torch_compile
    is_cheaper = scores_every_position(trainer.args.device) and (trainer.trimming is not None or trainer.is_compared)
    return trainer.teacher is not None or (is_usual and is_cheaper)


def selected_loss(
    trainer, usual: Callable[..., torch.Tensor], inputs: dict, num_items_in_batch: torch.Tensor | int | None
) -> torch.Tensor:
    """The loss of one batch.

    Args:
        trainer: A `TrimTrainer`.
        usual: SFTTrainer's loss of `inputs`.
        inputs: The batch.
        num_items_in_batch: Tokens that count, of all processes and accumulated batches; None: those of this batch.
    """
    with scored_positions_only(trainer.causal_lm, inputs) as (selected, outputs):
        loss = usual(inputs=selected)
    if trainer.teacher is None or not trainer.model.training:
        return loss
    divergence = trainer.teacher.divergence(trainer.causal_lm, outputs[-1], inputs)
    num_tokens = outputs[-1].last_hidden_state.shape[1] if num_items_in_batch is None else num_items_in_batch
    if num_items_in_batch is not None and trainer.args.average_tokens_across_devices:
        divergence = divergence * (trainer.accelerator.num_processes // trainer.get_tp_size())  # as SFTTrainer's loss
    weight = trainer.args.distill_weight
    return (1 - weight) * loss + weight * divergence / torch.as_tensor(num_tokens).clamp(min=1)
