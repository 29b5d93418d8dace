"""Layers sharded by torch's `fully_shard`, scored, dropped, trained on, gathered: `torchrun run_sharded.py OUTPUT_DIR`."""

import random
import sys

import torch
from tiny import make_model
from torch import distributed
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from trim_trainer import drop_layers
from trim_trainer.architectures.modules import find_layers
from trim_trainer.data.examples import ScoredExample
from trim_trainer.scoring.scan import scan_layers
from trim_trainer.scoring.trial import choose_layout
from trim_trainer.surgery.optimizer import ParameterGroups, sync_optimizer
from trim_trainer.surgery.wrapping import forget_dropped
from trim_trainer.training.sparse_update import freeze_all_but

IDS = torch.arange(10, 34).view(2, 12)


def draw_examples():
    rng = random.Random(0)
    ids = [tuple(rng.randrange(3, 60) for _ in range(6)) for _ in range(6)]
    return [ScoredExample(one[:4], (one[4:], one[:3]), (one[4:], one[:3])) for one in ids]


def train(model, optimizer, number):
    for _ in range(number):
        model(input_ids=IDS, labels=IDS).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def trim(model, optimizer, after_drop):
    """Train, score, drop, train on; return the scores."""
    train(model, optimizer, 2)
    examples = draw_examples()
    scan = scan_layers(model, examples, choose_layout(model, examples), is_shared=False)
    drop_layers(model, [1, 4])
    freeze_all_but(model, [0, 2, 3])
    sync_optimizer(
        optimizer, model, ParameterGroups(lambda: [name for name, p in model.named_parameters() if p.ndim > 1])
    )
    after_drop()
    model.train()
    train(model, optimizer, 2)
    return scan.log_probs


def run(is_sharded):
    model = make_model()
    model.train()
    if is_sharded:
        mesh = init_device_mesh("cpu", (distributed.get_world_size(),))
        for layer in find_layers(model):
            fully_shard(layer, mesh=mesh)
        fully_shard(model, mesh=mesh)
    matrices = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    vectors = [parameter for parameter in model.parameters() if parameter.ndim == 1]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-2)
    scores = trim(model, optimizer, (lambda: forget_dropped(model)) if is_sharded else (lambda: None))
    return model, optimizer, scores


if __name__ == "__main__":
    distributed.init_process_group("gloo")
    torch.set_num_threads(1)
    plain, _, expected_scores = run(is_sharded=False)
    sharded, optimizer, scores = run(is_sharded=True)
    torch.testing.assert_close(scores, expected_scores, atol=1e-4, rtol=1e-4)
    states = sharded._get_fsdp_state()._state_ctx.all_states
    assert len(states) == 1 + 4, f"{len(states)} states"
    held = {parameter for group in optimizer.param_groups for parameter in group["params"]}
    assert held == {parameter for parameter in sharded.parameters() if parameter.requires_grad}
    whole = get_model_state_dict(sharded, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    if distributed.get_rank() == 0:
        for name, tensor in plain.state_dict().items():
            torch.testing.assert_close(whole[name], tensor, atol=1e-4, rtol=1e-3)
        plain.save_pretrained(sys.argv[1], state_dict=whole)
        print("sharded as plain")  # noqa: T201
    distributed.barrier()
    distributed.destroy_process_group()
