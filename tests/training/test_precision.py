"""The weights of a result are stored, and measured, in the precision in which its base model is stored."""

import json

import pytest
import torch
import zoo
from peft import LoraConfig
from safetensors.torch import load_file
from tiny import make_model, make_tokenizer
from transformers import AutoModelForCausalLM
from trl import SFTConfig, SFTTrainer

from trim_trainer import TrimConfig
from trim_trainer.checkpoints import precision
from trim_trainer.checkpoints.precision import as_stored, dtypes_in, num_bytes_in
from trim_trainer.scoring.measuring import measure_model
from trim_trainer.training import measuring

BF16, F16, F32 = torch.bfloat16, torch.float16, torch.float32


@pytest.fixture(autouse=True)
def any_cpu(monkeypatch):
    """What is measured does not depend on which machine the tests run on."""
    for dtype in (BF16, F16):
        monkeypatch.setitem(precision._ON_CPU, dtype, lambda: True)


def save_base(folder, dtype=BF16, model=None):
    """A base model on disk; returns its name."""
    (model or make_model()).to(dtype).save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return str(folder)


def dtypes_of(folder):
    return {tensor.dtype for tensor in load_file(folder / "model.safetensors").values()}


def read(path):
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.fixture
def train(make_trainer, tmp_path):
    """Returns a function that trains six layers of a base model down to three and saves them."""

    def run(model=None, base_dtype=BF16, **fields):
        name = model or save_base(tmp_path / "base", base_dtype)
        trainer = make_trainer(model=name, **({"target_layers": 3, "max_steps": 8} | fields))
        trainer.train()
        trainer.save_model()
        return trainer, tmp_path / "run"

    return run


def test_a_base_in_bfloat16_comes_out_in_bfloat16(train, tmp_path):
    trainer, out = train(save_strategy="steps", save_steps=8)
    trained = trainer.model.state_dict()
    assert {tensor.dtype for tensor in trained.values()} == {F32}  # SFTTrainer loads it so, and so it goes on
    stored = load_file(out / "model.safetensors")
    for name, tensor in stored.items():
        assert torch.equal(tensor, trained[name].to(BF16)), name
    config = read(out / "config.json")
    assert config["dtype"] == config["torch_dtype"] == "bfloat16"
    base_bytes = (tmp_path / "base" / "model.safetensors").stat().st_size
    assert (out / "model.safetensors").stat().st_size < 0.75 * base_bytes
    assert (
        dtypes_of(out / "checkpoint-8") == {F32} and read(out / "checkpoint-8" / "config.json")["dtype"] == "float32"
    )
    loaded = AutoModelForCausalLM.from_pretrained(out)
    assert loaded.dtype == BF16 and loaded.config.num_hidden_layers == 3


def test_it_is_measured_as_its_reader_has_it(train, tmp_path):
    trainer, out = train(bf16=True, eval_strategy="no")
    measured = trainer.history.trimmed
    assert (measured.dtype, measured.precision) == ("bfloat16", "bfloat16")
    loaded = AutoModelForCausalLM.from_pretrained(out).eval()
    assert measured.num_bytes == loaded.get_memory_footprint()
    of_reader = measure_model(loaded, trainer.evaluation_sets.examples, trainer.trimming.layout)
    of_training = measure_model(trainer.model, trainer.evaluation_sets.examples, trainer.trimming.layout)
    assert measured.quality == of_reader.quality != of_training.quality
    before = trainer.history.untrimmed
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    assert (before.dtype, before.precision, before.num_bytes) == ("bfloat16", "bfloat16", base.get_memory_footprint())
    card = (out / "README.md").read_text(encoding="utf-8")
    assert "weights in bfloat16" in card and "quality was measured in bfloat16." in card


@pytest.mark.parametrize(
    ("base", "asked", "expected"),
    [(BF16, "float32", F32), (F32, "bfloat16", BF16), (F32, "auto", F32), (F16, "auto", F16), (BF16, "float16", F16)],
)
def test_another_precision_is_stored_where_it_is_asked_for(base, asked, expected, train):
    trainer, out = train(base_dtype=base, save_dtype=asked)
    assert dtypes_of(out) == {expected}
    name = str(expected).removeprefix("torch.")
    assert read(out / "config.json")["dtype"] == name
    assert trainer.history.trimmed.dtype == name and trainer.history.card.dtype == name


def test_a_model_that_trains_in_less_than_its_base_is_stored_in_that(train):
    _, out = train(base_dtype=F32, model_init_kwargs={"dtype": "bfloat16"})
    assert dtypes_of(out) == {BF16}


def test_a_model_that_was_loaded_before_is_stored_as_its_base_is(train, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(save_base(tmp_path / "base"), dtype=F32)
    _, out = train(model=model)
    assert dtypes_of(out) == {BF16}


def test_a_model_that_was_made_here_is_stored_as_it_is(train):
    assert dtypes_of(train(model=make_model())[1]) == {F32}


def test_shards_and_configs_without_a_precision_are_read(train, tmp_path):
    name = save_base(tmp_path / "base")
    AutoModelForCausalLM.from_pretrained(name).save_pretrained(name, max_shard_size="40KB")
    (tmp_path / "base" / "model.safetensors").unlink()
    config = read(tmp_path / "base" / "config.json")
    del config["dtype"]
    (tmp_path / "base" / "config.json").write_text(json.dumps(config), encoding="utf-8")
    assert dtypes_of(train(model=name)[1]) == {BF16}


def test_depths_on_the_way_are_stored_so_too(train):
    _, out = train(save_depths=[5], trim_steps=2)
    assert dtypes_of(out / "depth-5") == dtypes_of(out) == {BF16}


def test_a_tied_head_is_stored_once(train, tmp_path):
    name = save_base(tmp_path / "base", model=make_model(tie_word_embeddings=True))
    trainer, out = train(model=name)
    assert "lm_head.weight" not in load_file(out / "model.safetensors") and dtypes_of(out) == {BF16}
    loaded = AutoModelForCausalLM.from_pretrained(out)
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight
    assert trainer.history.trimmed.num_bytes == loaded.get_memory_footprint()


@pytest.mark.parametrize("is_merged", [True, False])
def test_under_an_adapter_the_base_is_stored_so_too(is_merged, train, tmp_path):
    peft_config = LoraConfig(target_modules=["q_proj", "v_proj"], r=4)
    trainer, out = train(peft_config=peft_config, merge_adapter=is_merged)
    assert dtypes_of(out) == {BF16}
    if not is_merged:
        base, kept = load_file(tmp_path / "base" / "model.safetensors"), trainer.history.kept
        for new, old in enumerate(kept):  # rounded to what it was
            name = "model.layers.{}.self_attn.q_proj.weight"
            assert torch.equal(load_file(out / "model.safetensors")[name.format(new)], base[name.format(old)])
        adapter = load_file(out / "adapter" / "adapter_model.safetensors")
        assert {tensor.dtype for tensor in adapter.values()} == {F32}
    assert trainer.history.trimmed.dtype == "bfloat16"


@pytest.mark.slow
def test_training_goes_on_as_if_nothing_had_been_saved(make_trainer, tmp_path):
    """Neither what is measured nor what is saved on the way rounds the weights that train."""
    name = save_base(tmp_path / "base")
    options = {"model": name, "target_layers": 3, "max_steps": 8, "trim_steps": 2}
    ends = []
    for number, fields in enumerate(({"save_dtype": "float32"}, {"save_dtype": "bfloat16", "save_depths": [5, 4]})):
        trainer = make_trainer(output_dir=f"run-{number}", **options, **fields)
        trainer.train()
        before = {key: tensor.clone() for key, tensor in trainer.model.state_dict().items()}
        trainer.save_model()
        assert all(torch.equal(tensor, before[key]) for key, tensor in trainer.model.state_dict().items())
        assert trainer.model.config.dtype in (F32, "float32")
        ends.append(before)
    assert all(torch.equal(tensor, ends[1][key]) for key, tensor in ends[0].items())


def test_a_run_that_is_resumed_for_another_precision_is_measured_in_it_before_and_after(make_trainer, tmp_path):
    options = {"model": save_base(tmp_path / "base"), "target_layers": 3, "max_steps": 8, "trim_steps": 2}
    options |= {"save_strategy": "steps", "save_steps": 4}
    make_trainer(**options).train()
    trainer = make_trainer(**options, save_dtype="float32")
    trainer.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-4"))
    before, after = trainer.history.untrimmed, trainer.history.trimmed
    assert (before.depth, before.dtype, after.depth, after.dtype) == (6, "float32", 3, "float32")


def test_whole_tensors_of_sharded_weights_are_stored_so_too(train, tmp_path):
    trainer, _ = train()
    expected = {key: tensor.clone() for key, tensor in trainer.model.state_dict().items()}
    trainer.write_model(tmp_path / "whole", dict(expected))
    stored = load_file(tmp_path / "whole" / "model.safetensors")
    assert stored.keys() == expected.keys()
    assert all(torch.equal(tensor, expected[key].to(BF16)) for key, tensor in stored.items())
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "whole")
    assert num_bytes_in(trainer.model, BF16) == loaded.get_memory_footprint()


def test_without_a_target_sfttrainers_precision_stays(make_trainer, tmp_path):
    name = save_base(tmp_path / "base")
    for trainer_class, config_class in ((None, TrimConfig), (SFTTrainer, SFTConfig)):
        options = {"trainer_class": trainer_class} if trainer_class else {}
        trainer = make_trainer(
            config_class=config_class, model=name, max_steps=1, calibration=False,
            output_dir=config_class.__name__, **options,
        )  # fmt: skip
        trainer.train()
        trainer.save_model()
        assert dtypes_of(tmp_path / config_class.__name__) == {F32}


@pytest.mark.parametrize("dtype", [BF16, torch.float16])
def test_a_cpu_without_instructions_for_it_computes_with_the_rounded_weights_in_float32(dtype, train, monkeypatch):
    monkeypatch.setitem(precision._ON_CPU, dtype, lambda: False)
    name = str(dtype).removeprefix("torch.")
    trainer, out = train(save_dtype=name)
    measured = trainer.history.trimmed
    assert (measured.dtype, measured.precision) == ("float32", "float32")
    stored = AutoModelForCausalLM.from_pretrained(out).eval()
    assert stored.dtype == dtype and measured.num_bytes == stored.get_memory_footprint()
    of_reader = measure_model(stored.float(), trainer.evaluation_sets.examples, trainer.trimming.layout)
    assert measured.quality == of_reader.quality
    assert trainer.causal_lm.dtype == F32


def test_a_wrong_precision_is_refused(tmp_path):
    with pytest.raises(ValueError, match="`save_dtype` is 'fp16', expected one of auto, float32, bfloat16, float16"):
        TrimConfig(output_dir=str(tmp_path), save_dtype="fp16")


@pytest.mark.parametrize("name", ["deepseek_v3", "ernie4_5_moe", "flint", "mamba", "zamba2", "qwen3_next"])
def test_what_loading_keeps_in_float32_is_stored_in_it(name, tmp_path):
    """Routers and states of some models: the truth is what plain Transformers makes of a checkpoint."""
    model = zoo.make(name)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=BF16).state_dict()
    expected = {key: tensor.dtype for key, tensor in loaded.items() if tensor.is_floating_point()}
    assert dtypes_in(model, BF16) == expected
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    with as_stored(model, BF16):
        assert all(torch.equal(tensor, loaded[key]) for key, tensor in model.state_dict().items())
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())


def test_the_twin_of_full_depth_is_timed_in_the_same_precision(train, monkeypatch):
    timed, original = [], measuring.measure_in_turns

    def measure(*models):
        timed.append([model.dtype for model in models])
        return original(*models)

    monkeypatch.setattr(measuring, "measure_in_turns", measure)
    train()
    assert timed == [[BF16, BF16]]
