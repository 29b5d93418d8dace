"""The head on the positions that count: the same loss, the same gradients, fewer positions."""

import pytest
import torch
from tiny import make_model, make_tokenizer
from torch.testing import assert_close
from trl import SFTTrainer

from trim_trainer import TrimConfig, TrimTrainer


def gradients_of_a_step(trainer):
    """Loss and gradients of the first batch, and how many positions the head of the vocabulary saw."""
    seen = []
    hook = trainer.model.register_forward_hook(lambda model, args, output: seen.append(output.label_mask))
    batch = next(iter(trainer.get_train_dataloader()))
    trainer.model.train()
    loss = trainer.compute_loss(trainer.model, dict(batch), num_items_in_batch=torch.tensor(7))
    loss.backward()
    hook.remove()
    return loss, {name: parameter.grad for name, parameter in trainer.model.named_parameters()}, seen[0].shape


@pytest.mark.parametrize("model_type", ["llama", "gemma3_text", "gpt2"])
def test_loss_and_gradients_are_those_of_every_position(model_type, sets, tmp_path):
    found = []
    for trainer_class, target in ((SFTTrainer, None), (TrimTrainer, 5)):
        settings = {"per_device_train_batch_size": 8, "use_cpu": True, "bf16": False, "report_to": "none", "seed": 0}
        args = TrimConfig(str(tmp_path), target_layers=target, **settings)
        options = {} if target is None else {"eval_dataset": sets[1], "calibration_dataset": sets[2]}
        trainer = trainer_class(
            model=make_model(model_type),
            args=args,
            train_dataset=sets[0],
            processing_class=make_tokenizer(),
            **options,
        )
        found.append((*gradients_of_a_step(trainer), trainer._metrics["train"]))
    (loss, gradients, shape, metrics), (loss_here, gradients_here, shape_here, metrics_here) = found
    assert_close(loss_here, loss)
    assert_close(gradients_here, gradients, atol=1e-6, rtol=1e-4)
    assert metrics_here.keys() == metrics.keys()
    for name, values in metrics.items():
        assert metrics_here[name] == pytest.approx(values, rel=1e-5), name
    assert shape == (8, 9) and shape_here == (1, 16)  # eight answers, each of a colour and the end of the text


def test_a_batch_without_a_scored_position_costs_nothing(tmp_path, sets):
    args = TrimConfig(str(tmp_path), target_layers=5, use_cpu=True, bf16=False, report_to="none")
    trainer = TrimTrainer(
        model=make_model(),
        args=args,
        train_dataset=sets[0],
        calibration_dataset=sets[2],
        processing_class=make_tokenizer(),
    )
    ids = torch.tensor([[5, 6, 7]])
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": torch.full_like(ids, -100)}
    loss = trainer.compute_loss(trainer.model.train(), batch)
    loss.backward()
    assert loss.item() == 0
    assert all(not parameter.grad.any() for parameter in trainer.model.parameters() if parameter.grad is not None)


def test_a_run_to_be_compared_with_trimming_computes_as_it_does(tmp_path, sets):
    shapes = []
    for is_compared in (False, True):
        args = TrimConfig(str(tmp_path), use_cpu=True, bf16=False, report_to="none", per_device_train_batch_size=8)
        trainer = TrimTrainer(model=make_model(), args=args, train_dataset=sets[0], processing_class=make_tokenizer())
        trainer.is_compared = is_compared
        shapes.append(gradients_of_a_step(trainer)[2])
    assert shapes == [(8, 9), (1, 16)]
