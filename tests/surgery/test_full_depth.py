import copy

import pytest
import torch
import zoo
from tiny import CONFIGS

from trim_trainer.architectures.modules import find_layers
from trim_trainer.scoring import speed
from trim_trainer.surgery.drop import drop_layers
from trim_trainer.surgery.full_depth import full_depth_twin

IDS = torch.arange(4, 16).view(2, 6)


@pytest.mark.parametrize("model_type", CONFIGS)
def test_a_twin_has_all_layers_and_no_tensor_of_its_own(model_type, tiny_model):
    model = tiny_model(model_type)
    config, own = copy.deepcopy(model.config), {tensor.data_ptr() for tensor in model.state_dict().values()}
    drop_layers(model, [1, 4])
    twin = full_depth_twin(model, config, kept=(0, 2, 3, 5))
    assert len(find_layers(twin)) == twin.config.num_hidden_layers == 6
    assert {tensor.data_ptr() for tensor in twin.state_dict().values()} <= own
    for number, kept in enumerate((0, 2, 3, 5)):
        weights = find_layers(twin)[kept].state_dict()
        for name, tensor in find_layers(model)[number].state_dict().items():
            assert weights[name].data_ptr() == tensor.data_ptr()
    # Two layers are missing, two kept ones stand in for one of them each: the farthest from it.
    assert find_layers(twin)[1].state_dict()[name].data_ptr() == find_layers(model)[3].state_dict()[name].data_ptr()
    assert find_layers(twin)[4].state_dict()[name].data_ptr() == find_layers(model)[0].state_dict()[name].data_ptr()
    assert speed.measure_tokens_per_second(twin, num_runs=1) > 0


@torch.no_grad()
def test_the_twin_of_a_whole_model_is_that_model(tiny_model):
    model = tiny_model("gemma3_text")
    twin = full_depth_twin(model, model.config, kept=range(6))
    assert torch.equal(twin(IDS).logits, model(IDS).logits)


def test_no_twin_where_no_layer_has_the_shapes_of_a_dropped_one(tiny_model):
    model = tiny_model()
    config = copy.deepcopy(model.config)
    config.intermediate_size = 48
    assert full_depth_twin(model, config, kept=range(6)) is None


def test_no_twin_where_other_weights_depend_on_the_depth(tiny_model):
    model = tiny_model()
    config = copy.deepcopy(model.config)
    config.vocab_size = 48
    assert full_depth_twin(model, config, kept=range(6)) is None


def test_no_twin_where_a_pass_changes_the_weights():
    """RWKV divides them in place when it first runs in evaluation mode: twice, if a twin shared them."""
    model = zoo.make("rwkv@rescale")
    config = copy.deepcopy(model.config)
    drop_layers(model, [1, 4])
    assert full_depth_twin(model, config, kept=(0, 2, 3, 5)) is None
