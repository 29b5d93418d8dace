"""What only a GPU shows: mixed precision, optimizers, quantized weights, memory; skipped without one."""

import gc

import pytest
import torch
from peft import LoraConfig
from tiny import make_examples, make_model
from torch.testing import assert_close
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from trim_trainer import TrimConfig, TrimTrainer, score_layers
from trim_trainer.architectures.modules import find_layers
from trim_trainer.evaluation.isolation import run_alone

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
DEVICE = "cuda"
BASE = {
    "max_steps": 8, "per_device_train_batch_size": 4, "learning_rate": 2e-3, "report_to": "none",
    "logging_steps": 2, "save_strategy": "no", "disable_tqdm": True, "seed": 3, "target_layers": 4, "bf16": False,
}  # fmt: skip
OPTIMIZERS = ("adamw_torch", "adamw_torch_fused", "adafactor", "adamw_bnb_8bit", "paged_adamw_8bit", "lion_8bit")


@pytest.fixture
def build(tokenizer, sets, tmp_path):
    train, evaluation, calibration = sets

    def make(model=None, peft_config=None, output_dir="run", **fields):
        return TrimTrainer(
            make_model() if model is None else model,
            TrimConfig(output_dir=str(tmp_path / output_dir), **(BASE | fields)),
            train_dataset=train, eval_dataset=evaluation, calibration_dataset=calibration,
            processing_class=tokenizer, peft_config=peft_config,
        )  # fmt: skip

    return make


@torch.no_grad()
def logits(model):
    ids = torch.arange(10, 40, device=model.device).view(2, 15)
    return model.eval()(input_ids=ids).logits.float()


PRECISIONS = [{}, {"bf16": True}, {"fp16": True}, {"bf16": True, "importance": "tail", "compensation_size": 30}]


@pytest.mark.parametrize("precision", PRECISIONS, ids=["fp32", "bf16", "fp16", "compensation"])
def test_what_is_saved_is_what_was_trained(precision, build, tmp_path):
    trainer = build(**precision)
    trainer.train()
    assert trainer.model.device.type == DEVICE
    assert trainer.model.config.num_hidden_layers == 4
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses and all(0 < loss < 20 for loss in losses)
    trainer.save_model(str(tmp_path / "out"))
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out").to(DEVICE)
    # In mixed precision the trainer's model goes on computing so.
    assert_close(logits(loaded), logits(trainer.model), atol=0.05 if precision else 1e-4, rtol=1e-3)


@pytest.mark.parametrize(
    "fields",
    [{"save_depths": [5]}, {"load_best_model_at_end": True, "eval_strategy": "steps", "save_strategy": "steps"}],
    ids=["members", "best model"],
)
def test_layers_that_come_back_at_the_quality_floor_are_on_the_gpu(fields, build):
    steps = {"eval_steps": 4, "save_steps": 4} if "eval_strategy" in fields else {}
    trainer = build(
        max_metric_drop=0.0,
        calibration_metric="loss",
        trim_steps=1,
        trim_delay=4,
        layers_per_trim=1,
        **fields,
        **steps,
    )
    trainer.trimming.floor.is_crossed = lambda metric: trainer.history.depth < 5
    trainer.train()
    assert {each.device.type for each in trainer.model.parameters()} == {DEVICE}


def test_the_scan_says_what_it_says_on_a_cpu(tokenizer):
    examples = make_examples(12, 200)
    scores = [score_layers(make_model().to(device), tokenizer, examples, metric="loss") for device in ("cpu", DEVICE)]
    assert_close(*map(torch.tensor, scores), atol=1e-3, rtol=1e-3)


def add_on_the_gpu(one, other):
    return (torch.tensor(one, device=DEVICE) + other).item()


def test_a_process_of_its_own_has_the_gpu_too():
    assert add_on_the_gpu(1, 2) == run_alone(add_on_the_gpu, 1, 2) == 3


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_optimizer_forgets_what_was_dropped(name, build):
    trainer = build(
        make_model(hidden_size=128, intermediate_size=256), optim=name, bf16=True, sparse_update_ratio=None
    )
    trainer.train()
    optimizer = getattr(trainer.optimizer, "optimizer", trainer.optimizer)
    alive = set(trainer.model.parameters())
    grouped = {parameter for group in optimizer.param_groups for parameter in group["params"]}
    assert (len(set(optimizer.state) - alive), len(grouped ^ alive)) == (0, 0)
    weights = torch.cat([parameter.detach().float().flatten() for parameter in alive])
    assert weights.isfinite().all()


def allocated_bytes():
    gc.collect()
    torch._C._cuda_clearCublasWorkspaces()  # of the first product in a process, from the same allocator: 32 MiB on Hopper
    return torch.cuda.memory_allocated()


def test_a_dropped_layer_frees_its_memory(build):
    model = make_model(hidden_size=512, intermediate_size=2048)
    num_bytes = sum(parameter.nbytes for parameter in find_layers(model)[0].parameters())
    before = allocated_bytes()
    trainer = build(model, target_layers=2)
    trainer.train()
    held = allocated_bytes() - before
    # Weights and two moments of the two layers that are left, the embedding, and less than one layer more.
    embeddings = 3 * (model.get_input_embeddings().weight.nbytes + model.get_output_embeddings().weight.nbytes)
    assert held < 2 * 3 * num_bytes + embeddings + num_bytes


@pytest.mark.parametrize("quantized", [False, True], ids=["lora", "qlora"])
def test_adapters(quantized, build, tmp_path):
    source = make_model(hidden_size=128, intermediate_size=256)
    source.save_pretrained(tmp_path / "base")
    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16)
    model = AutoModelForCausalLM.from_pretrained(
        tmp_path / "base", **({"quantization_config": config, "device_map": {"": 0}} if quantized else {})
    )
    trainer = build(model, peft_config=LoraConfig(task_type="CAUSAL_LM", r=4), bf16=True)
    trainer.train()
    trainer.save_model(str(tmp_path / "out"))
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out").to(DEVICE)
    assert loaded.config.num_hidden_layers == 4
    expected, found = logits(trainer.model), logits(loaded)
    # Merged into 4-bit weights that were dequantized, computed in float32 here and in bfloat16 there.
    assert_close(found, expected, atol=0.15 if quantized else 0.05, rtol=0.1)


def test_resumed_on_the_gpu_it_ends_as_if_it_had_gone_through(build):
    settings = {"trim_steps": 3, "save_strategy": "steps", "save_steps": 4}
    whole = build(output_dir="whole", **settings)
    whole.train()
    half = build(output_dir="half", **settings)
    half.train()
    resumed = build(output_dir="half", **settings)
    resumed.train(resume_from_checkpoint=f"{half.args.output_dir}/checkpoint-4")
    for trainer in (half, resumed):
        assert trainer.history.dropped == whole.history.dropped
        assert_close(logits(trainer.model), logits(whole.model), atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize(
    "fields",
    [
        {"torch_compile": True},
        {"activation_checkpointing": True},
        {"packing": True, "max_length": 64, "completion_only_loss": False, "calibration_metric": "loss"},
    ],
    ids=["compiled", "checkpointed activations", "packed"],
)
def test_with_what_people_turn_on(fields, build):
    trainer = build(bf16=True, **fields)
    trainer.train()
    assert trainer.model.config.num_hidden_layers == 4
    assert logits(trainer.model).isfinite().all()
