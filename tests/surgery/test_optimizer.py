"""What an optimizer knows of each parameter survives a drop, for every optimizer of the Trainer that runs on a CPU."""

import gc

import pytest
import torch
from tiny import make_model
from transformers import Trainer, TrainingArguments

from trim_trainer import drop_layers
from trim_trainer.architectures.modules import find_layers
from trim_trainer.surgery.optimizer import ParameterGroups, sync_optimizer
from trim_trainer.training.sparse_update import freeze_all_but

OPTIMIZERS = (
    "adamw_torch", "adamw_torch_fused", "adafactor", "sgd", "rmsprop", "adagrad", "schedule_free_adamw",
    "schedule_free_sgd", "stable_adamw", "lion_32bit", "adamw_bnb_8bit", "ademamix_8bit",
)  # fmt: skip


def make(name, model, tmp_path):
    try:
        args = TrainingArguments(
            output_dir=str(tmp_path), optim=name, use_cpu=True, report_to="none", weight_decay=0.1
        )
        trainer = Trainer(model, args)
        return trainer.create_optimizer(), trainer
    except (ImportError, ValueError) as error:
        pytest.skip(str(error))


def train(model, optimizer, number=2):
    ids = torch.arange(10, 34).view(2, 12)
    if hasattr(optimizer, "train"):
        optimizer.train()
    for _ in range(number):
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def snapshot(state):
    return {key: value.clone() if isinstance(value, torch.Tensor) else value for key, value in state.items()}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_state_is_kept_freed_or_fresh(name, tmp_path):
    model = make_model()
    freeze_all_but(model, [1, 2, 3])
    optimizer, trainer = make(name, model, tmp_path)
    try:
        train(model, optimizer)
    except (NotImplementedError, RuntimeError, ValueError) as error:
        pytest.skip(f"does not run on a CPU: {error}")
    layers = list(find_layers(model))
    gone, kept, fresh = ({*layers[number].parameters()} for number in (2, 3, 5))
    before = {parameter: snapshot(optimizer.state[parameter]) for parameter in kept}
    values = {parameter: parameter.detach().clone() for parameter in kept}
    groups = [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]

    drop_layers(model, [2])
    freeze_all_but(model, [1, 2, 4])
    sync_optimizer(optimizer, model, ParameterGroups(lambda: trainer.get_decay_parameter_names(model)))

    held = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    assert set(held) == {parameter for parameter in model.parameters() if parameter.requires_grad}
    assert len(held) == len(set(held)) and gone.isdisjoint(held) and fresh <= set(held)
    assert gone.isdisjoint(optimizer.state) and fresh.isdisjoint(optimizer.state)
    for parameter in kept:
        assert torch.equal(parameter, values[parameter])
        for key, value in before[parameter].items():
            found = optimizer.state[parameter][key]
            assert torch.equal(found, value) if isinstance(value, torch.Tensor) else found == value
    for group, was in zip(optimizer.param_groups, groups, strict=True):
        assert {key: value for key, value in group.items() if key != "params"} == was
    assert all(parameter.ndim > 1 for parameter in optimizer.param_groups[0]["params"])  # those with weight decay

    train(model, optimizer)
    assert fresh <= optimizer.state.keys() or name == "sgd"
    optimizer.load_state_dict(optimizer.state_dict())  # saves and loads like any other


def live_bytes():
    """Bytes of all tensors that this process can still reach; a compiler's fake tensors, of other tests, hold none."""
    gc.collect()
    storages = {}
    for found in gc.get_objects():
        if type(found) in (torch.Tensor, torch.nn.Parameter) and found.device.type != "meta":
            for tensor in (found, found.grad if found.is_leaf else None):
                if tensor is not None:
                    storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
    return sum(storages.values())


def test_a_drop_frees_parameters_gradients_and_optimizer_state(tmp_path):
    model = make_model(hidden_size=64, intermediate_size=256)
    optimizer, trainer = make("adamw_torch", model, tmp_path)
    train(model, optimizer)
    ids = torch.arange(10, 34).view(2, 12)
    model(input_ids=ids, labels=ids).loss.backward()  # gradients are there, as with accumulation
    of_layer = sum(parameter.numel() * parameter.element_size() for parameter in find_layers(model)[3].parameters())
    tensors = len(list(find_layers(model)[3].parameters()))
    before = live_bytes()
    drop_layers(model, [3])
    sync_optimizer(optimizer, model, ParameterGroups(lambda: trainer.get_decay_parameter_names(model)))
    # Weights, gradients, two moments, and a count of steps per tensor.
    assert before - live_bytes() == 4 * of_layer + 4 * tensors
