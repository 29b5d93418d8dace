"""Learning from a teacher: the divergence is the one of the whole vocabulary, the teacher runs once per example."""

import pytest
import torch
from tiny import CONFIGS, make_model, make_tokenizer
from torch.testing import assert_close
from trl import SFTTrainer

from trim_trainer import TrimConfig, TrimHistory, TrimTrainer
from trim_trainer.recovery import distillation


@pytest.fixture
def teacher(tmp_path):
    make_model(seed=5).save_pretrained(tmp_path / "teacher")
    return str(tmp_path / "teacher")


def make_trainer(teacher, sets, folder, model=None, **settings):
    args = {"use_cpu": True, "bf16": False, "report_to": "none", "learning_rate": 1e-2, "save_strategy": "no"}
    args |= {"target_layers": 4, "calibration_metric": "loss", "sparse_update_ratio": None, "distill_from": teacher}
    return TrimTrainer(
        model=model or make_model(),
        args=TrimConfig(str(folder), **(args | settings)),
        train_dataset=sets[0],
        eval_dataset=sets[1],
        calibration_dataset=sets[2],
        processing_class=make_tokenizer(),
    )


def plain_divergence(student, teacher, batch, temperature):
    """Sum over the scored positions, from the plain forward pass of both models and the whole vocabulary."""
    is_scored = batch["labels"][:, 1:] != -100
    inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
    ours, theirs = (
        torch.log_softmax(model(**inputs).logits[:, :-1] / temperature, -1) for model in (student, teacher)
    )
    return ((theirs.exp() * (theirs - ours)).sum(-1) * is_scored).sum() * temperature**2


@pytest.mark.parametrize(
    ("model_type", "overrides"),
    [
        ("llama", {}),
        ("gpt2", {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}),
        ("gemma2", {"final_logit_softcapping": 2.0}),
        ("cohere", {"logit_scale": 0.25}),
    ],
)
@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_loss_is_that_of_the_labels_and_of_the_whole_distribution(
    model_type, overrides, temperature, sets, tmp_path, monkeypatch
):
    monkeypatch.setattr(distillation, "NUM_KEPT", 95)  # of 96: nothing is put together
    monkeypatch.setitem(CONFIGS, "gemma2", {})
    monkeypatch.setitem(CONFIGS, "cohere", {})
    parent = make_model(model_type, seed=5, **overrides)
    parent.save_pretrained(tmp_path / "teacher")
    student = make_model(model_type, **overrides)
    settings = {"distill_weight": 0.3, "distill_temperature": temperature}
    trainer = make_trainer(str(tmp_path / "teacher"), sets, tmp_path, student, **settings)
    batch = next(iter(trainer.get_train_dataloader()))
    loss = trainer.compute_loss(trainer.model.train(), dict(batch), num_items_in_batch=torch.tensor(7))
    loss.backward()
    gradients = {name: parameter.grad for name, parameter in student.named_parameters()}
    student.zero_grad()

    labels = SFTTrainer.compute_loss(trainer, student, dict(batch), num_items_in_batch=torch.tensor(7))
    expected = 0.7 * labels + 0.3 * plain_divergence(student, parent, batch, temperature) / 7
    assert_close(loss, expected)
    expected.backward()
    for name, parameter in student.named_parameters():
        assert_close(gradients[name], parameter.grad, atol=1e-6, rtol=1e-4, msg=name)


def test_tokens_put_together_never_diverge_more(sets, tmp_path, teacher, monkeypatch):
    """Merging outcomes can only lower a divergence, and 0 stays 0."""
    monkeypatch.setattr(distillation, "NUM_KEPT", 4)
    trainer = make_trainer(teacher, sets, tmp_path, distill_weight=1.0)
    batch = next(iter(trainer.get_train_dataloader()))
    model = trainer.model.train()
    found = trainer.compute_loss(model, dict(batch), num_items_in_batch=torch.tensor(1))
    whole = plain_divergence(model, trainer.teacher.model, batch, 1.0)
    assert 0 < found.item() < whole.item()
    model.load_state_dict(trainer.teacher.model.state_dict())
    assert trainer.compute_loss(model, dict(batch)).item() == pytest.approx(0, abs=1e-5)


def test_the_teacher_runs_once_per_example(sets, tmp_path, teacher):
    trainer = make_trainer(teacher, sets, tmp_path, num_train_epochs=3, per_device_train_batch_size=4)
    rows = []
    first = trainer.teacher.model.model.layers[0]
    first.register_forward_pre_hook(lambda layer, args: rows.append(len(args[0])))
    trainer.train()
    assert sum(rows) == 64 == len(trainer.teacher._targets)
    assert trainer.history.depth == 4


def test_the_evaluation_loss_is_that_of_the_labels(sets, tmp_path, teacher):
    found = [
        make_trainer(name, sets, tmp_path / str(name is None)).evaluate()["eval_loss"] for name in (teacher, None)
    ]
    assert found[0] == pytest.approx(found[1], abs=1e-6)


def test_a_model_that_only_listens_comes_nearer_to_its_teacher(sets, tmp_path, teacher):
    distances = []
    for weight in (1.0, None):
        settings = {"max_steps": 24, "per_device_train_batch_size": 8}
        settings |= {"distill_weight": weight} if weight else {"distill_from": None}
        trainer = make_trainer(teacher if weight else None, sets, tmp_path / str(weight), **settings)
        trainer.train()
        parent = make_model(seed=5)
        batch = next(iter(trainer.get_train_dataloader()))
        with torch.no_grad():
            distances.append(plain_divergence(trainer.model.eval(), parent, batch, 1.0).item())
    assert distances[0] < 0.5 * distances[1]


def test_without_a_target_it_learns_from_the_teacher_too(sets, tmp_path, teacher):
    trainer = make_trainer(teacher, sets, tmp_path, target_layers=None, max_steps=2)
    trainer.train()
    assert trainer.history is None and len(trainer.teacher._targets) == 16


def test_a_resumed_run_goes_on_with_the_same_numbers(sets, tmp_path, teacher):
    settings = {"num_train_epochs": 2, "save_strategy": "steps", "save_steps": 6, "sparse_update_ratio": 0.5}
    whole = make_trainer(teacher, sets, tmp_path / "whole", **settings)
    whole.train()
    again = make_trainer(teacher, sets, tmp_path / "whole", **settings)
    again.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-12"))
    assert TrimHistory.load(tmp_path / "whole" / "checkpoint-16").dropped == again.history.dropped
    for (name, one), other in zip(whole.model.named_parameters(), again.model.parameters(), strict=True):
        assert torch.equal(one, other), name


def test_what_cannot_go_together_is_refused(sets, tmp_path, teacher):
    make_model(seed=5, vocab_size=128).save_pretrained(tmp_path / "other")
    with pytest.raises(ValueError, match="`distill_from` .*vocabulary of 128 tokens, the model one of 96"):
        make_trainer(str(tmp_path / "other"), sets, tmp_path)
    with pytest.raises(ValueError, match="`label_smoothing_factor` is set.*Leave one of them out"):
        make_trainer(teacher, sets, tmp_path, label_smoothing_factor=0.1)
    with pytest.raises(ValueError, match="`distill_weight` is 0, expected a share in \\(0, 1\\]"):
        TrimConfig(str(tmp_path), distill_weight=0)
