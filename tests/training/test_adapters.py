"""LoRA and QLoRA: adapters of dropped layers go, and what is saved loads plainly."""

import json

import pytest
import torch
import zoo
from peft import (
    AutoPeftModelForCausalLM,
    LoraConfig,
    PeftConfig,
    PeftModel,
    PrefixTuningConfig,
    PromptTuningConfig,
    get_peft_model,
)
from tiny import make_examples, make_model
from torch.testing import assert_close
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, TrainerCallback

from trim_trainer import TrimConfig, TrimHistory, TrimTrainer, score_layers
from trim_trainer.architectures.errors import LayerConstraintError
from trim_trainer.architectures.kept import CannotSay, Kept
from trim_trainer.architectures.module_names import renumber_names
from trim_trainer.checkpoints.frozen import FrozenWeightsError
from trim_trainer.scoring.measuring import measure_model
from trim_trainer.scoring.speed import measure_saved_tokens_per_second
from trim_trainer.surgery.backup import LayerBackup
from trim_trainer.surgery.drop import drop_layers

BASE = {
    "use_cpu": True, "bf16": False, "max_steps": 8, "per_device_train_batch_size": 4, "learning_rate": 2e-2,
    "report_to": "none", "save_strategy": "no", "disable_tqdm": True, "seed": 3, "target_layers": 4,
}  # fmt: skip
LORA = {"task_type": "CAUSAL_LM", "r": 4, "init_lora_weights": False}


@pytest.fixture
def train(tokenizer, sets, tmp_path):
    examples, evaluation, calibration = sets

    def run(model=None, peft_config=None, resume=None, output_dir="run", callbacks=None, **fields):
        trainer = TrimTrainer(
            make_model() if model is None else model,
            TrimConfig(output_dir=str(tmp_path / output_dir), **(BASE | fields)),
            train_dataset=examples, eval_dataset=evaluation, calibration_dataset=calibration,
            processing_class=tokenizer, peft_config=peft_config, callbacks=callbacks,
        )  # fmt: skip
        trainer.train(resume_from_checkpoint=resume)
        return trainer

    return run


@torch.no_grad()
def logits(model):
    ids = torch.arange(10, 40).view(2, 15)
    return model.eval()(input_ids=ids).logits.float()


@torch.no_grad()
def logits_in_float32(model):
    ids = torch.arange(10, 40).view(2, 15)
    return model.train()(input_ids=ids).logits  # evaluating, bitsandbytes computes in bfloat16 on some CPUs


def lora(**fields):
    return LoraConfig(**(LORA | fields))


def test_merged_it_is_a_standard_checkpoint(train, tmp_path):
    trainer = train(peft_config=lora())
    trainer.save_model(str(tmp_path / "out"))
    assert trainer.model.get_base_model().config.num_hidden_layers == 4
    assert not (tmp_path / "out" / "adapter_config.json").exists()
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert loaded.config.num_hidden_layers == 4
    assert trainer.history.trimmed.num_parameters == loaded.num_parameters()
    before = logits(trainer.model)
    assert_close(logits(loaded), before, atol=2e-4, rtol=1e-3)
    with trainer.model.disable_adapter():
        assert (logits(loaded) - logits(trainer.model)).abs().max() > 0.01  # the adapter says something
    trainer.save_model(str(tmp_path / "again"))  # saving changed nothing
    assert torch.equal(logits(trainer.model), before)


def test_apart_base_and_adapter_load_with_two_plain_lines(train, tmp_path):
    trainer = train(peft_config=lora(), merge_adapter=False)
    trainer.save_model(str(tmp_path / "out"))
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert base.config.num_hidden_layers == 4
    with trainer.model.disable_adapter():
        assert torch.equal(logits(base), logits(trainer.model))
    expected = logits(trainer.model)
    assert torch.equal(logits(PeftModel.from_pretrained(base, tmp_path / "out" / "adapter")), expected)
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(tmp_path / "out" / "adapter")), expected)


def test_adapters_of_dropped_layers_go_and_the_others_are_renumbered(train, tmp_path):
    config = lora(
        layers_to_transform=[0, 2, 3, 5], rank_pattern={r"layers\.3\..*q_proj": 2}, target_modules=["q_proj"]
    )
    trainer = train(peft_config=config, importance="tail", protected_layers=[4, 5])
    assert trainer.history.dropped == (3, 2)
    trained = {name for name, parameter in trainer.model.named_parameters() if parameter.requires_grad}
    assert {int(name.split(".layers.")[1].split(".")[0]) for name in trained} == {0, 3}
    held = {parameter for group in trainer.optimizer.param_groups for parameter in group["params"]}
    assert held == {parameter for parameter in trainer.model.parameters() if parameter.requires_grad}
    trainer.save_model(str(tmp_path / "out"))
    assert trainer.model.peft_config["default"].layers_to_transform == [0, 3]


def test_a_resumed_adapter_run_ends_like_one_that_was_not_stopped(train, tmp_path):
    fields = {"save_strategy": "steps", "save_steps": 4, "max_metric_drop": 0.5, "calibration_metric": "loss"}
    whole = train(peft_config=lora(), **fields)
    resumed = train(peft_config=lora(), resume=str(tmp_path / "run" / "checkpoint-4"), **fields)
    assert resumed.history.dropped == whole.history.dropped
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[name], tensor), name


def test_a_model_that_has_an_adapter_already(train):
    trainer = train(model=get_peft_model(make_model(), lora()))
    assert trainer.causal_lm.config.num_hidden_layers == 4


def test_a_backup_brings_adapters_back():
    model = get_peft_model(make_model(), lora(layers_to_transform=[1, 4], target_modules=["q_proj"]))
    expected, backup = logits(model), LayerBackup(model)
    names = set(model.state_dict())
    drop_layers(model, [0, 4])
    assert model.peft_config["default"].layers_to_transform == [0]
    backup.restore()
    assert model.peft_config["default"].layers_to_transform == [1, 4]
    assert set(model.state_dict()) == names
    assert torch.equal(logits(model), expected)


@pytest.mark.parametrize("is_merged", [True, False])
def test_qlora(is_merged, train, tmp_path):
    pytest.importorskip("bitsandbytes")
    make_model(hidden_size=64, intermediate_size=128, head_dim=16).save_pretrained(tmp_path / "model")
    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model", quantization_config=config, dtype=torch.float32)
    trainer = train(model=model, peft_config=lora(target_modules=["q_proj", "down_proj"]), merge_adapter=is_merged)
    assert trainer.history.depth == 4
    expected = logits_in_float32(trainer.model)
    trainer.save_model(str(tmp_path / "out"))
    assert (
        trainer.history.trimmed.num_parameters
        == make_model(num_layers=4, hidden_size=64, intermediate_size=128, head_dim=16).num_parameters()
    )  # as they are, not as four bits are packed
    saved = json.loads((tmp_path / "out" / "config.json").read_text())
    assert saved["num_hidden_layers"] == 4 and ("quantization_config" in saved) == (not is_merged)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    if not is_merged:
        loaded = PeftModel.from_pretrained(loaded, tmp_path / "out" / "adapter")
    assert_close(logits_in_float32(loaded), expected, atol=2e-2, rtol=1e-2)


def test_a_checkpoint_of_a_trimmed_model_loads_in_a_run_that_resumes_or_nowhere(train, tmp_path):
    """Its adapter, numbered as the layers that are left, is not put into other layers of the base model."""
    make_model().save_pretrained(tmp_path / "base")
    fields = {"save_strategy": "steps", "save_steps": 4, "importance": "tail", "protected_layers": [4, 5]}
    whole = train(model=str(tmp_path / "base"), peft_config=lora(), **fields)
    checkpoint = tmp_path / "run" / "checkpoint-4"
    assert TrimHistory.load(checkpoint).depth == 4
    for load in (
        AutoPeftModelForCausalLM.from_pretrained,
        AutoModelForCausalLM.from_pretrained,
        PeftConfig.from_pretrained,
        lambda folder: PeftModel.from_pretrained(make_model(), folder),
    ):
        with pytest.raises((KeyError, OSError, ValueError), match="trimmed to 4 layers"):
            load(checkpoint)
    resumed = train(model=str(tmp_path / "base"), peft_config=lora(), resume=str(checkpoint), **fields)
    assert torch.equal(logits(resumed.model), logits(whole.model))


def test_a_checkpoint_before_the_first_drop_is_an_ordinary_adapter(train, tmp_path):
    make_model().save_pretrained(tmp_path / "base")
    fields = {"save_strategy": "steps", "save_steps": 1, "trim_steps": 4, "trim_strategy": "steps", "max_steps": 9}
    train(model=str(tmp_path / "base"), peft_config=lora(), **fields)
    saved = {step: TrimHistory.load(tmp_path / "run" / f"checkpoint-{step}").depth for step in (1, 9)}
    assert saved == {1: 6, 9: 4}
    loaded = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "run" / "checkpoint-1")
    assert loaded.config.num_hidden_layers == 6


def test_the_name_of_a_folder_does_not_decide_what_is_saved(train, tmp_path):
    trainer = train(peft_config=lora())
    for name in ("checkpoint-final", "checkpoint-8", "best"):
        trainer.save_model(str(tmp_path / name))
        loaded = AutoModelForCausalLM.from_pretrained(tmp_path / name)
        assert loaded.config.num_hidden_layers == 4
        assert_close(logits(loaded), logits(trainer.model), atol=2e-4, rtol=1e-3)
        assert (tmp_path / name / "README.md").is_file()


def test_an_adapter_that_somebody_saves_names_no_model_with_the_dropped_layers(train, tmp_path):
    make_model().save_pretrained(tmp_path / "base")
    trainer = train(model=str(tmp_path / "base"), peft_config=lora())
    trainer.model.save_pretrained(tmp_path / "mine")
    named = json.loads((tmp_path / "mine" / "adapter_config.json").read_text())["base_model_name_or_path"]
    assert named == f"{tmp_path / 'base'}, trimmed to 4 layers"
    for load in (AutoPeftModelForCausalLM.from_pretrained, AutoModelForCausalLM.from_pretrained):
        with pytest.raises((OSError, ValueError), match="trimmed to 4 layers"):
            load(tmp_path / "mine")


def test_the_best_adapter_is_loaded_from_a_checkpoint_of_its_depth(train, tmp_path):
    best = {"load_best_model_at_end": True, "metric_for_best_model": "eval_loss", "eval_strategy": "steps"}
    fields = {"save_strategy": "steps", "save_steps": 1, "eval_steps": 1, "learning_rate": 0.5}
    trainer = train(peft_config=lora(), **best, **fields)
    trainer.save_model(str(tmp_path / "out"))
    chosen = TrimHistory.load(trainer.state.best_model_checkpoint)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert loaded.config.num_hidden_layers == chosen.depth
    assert abs(trainer.evaluate()["eval_loss"] - trainer.state.best_metric) < 1e-4


@pytest.fixture
def four_bits(tmp_path):
    """Returns a factory of models of 4 bits, on a CPU whose kernels bitsandbytes would reorder their weights for."""
    modules = pytest.importorskip("bitsandbytes.nn.modules")
    make_model(hidden_size=64, intermediate_size=128, head_dim=16).save_pretrained(tmp_path / "model")

    def load(**fields):
        config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=torch.float32, **fields)
        model = AutoModelForCausalLM.from_pretrained(
            tmp_path / "model", quantization_config=config, dtype=torch.float32
        )
        for module in model.modules():
            if isinstance(module, modules.Linear4bit):
                module.support_avx512bf16_for_cpu = True  # as it is on such a CPU
        return model

    return load


def quantized(model):
    """Tensors of the base model that do not train, by layer and module, with the state of their quantization."""
    layers = getattr(model, "get_base_model", lambda: model)().model.layers
    return [
        {
            name.replace(".base_layer", ""): tensor.clone()
            for name, tensor in layer.state_dict().items()
            if "lora_" not in name
        }
        for layer in layers
    ]


@pytest.mark.parametrize("is_double", [False, True])
def test_quantized_weights_are_bit_equal_after_a_run_that_trains_evaluates_and_saves(
    is_double, train, four_bits, tmp_path
):
    model = four_bits(bnb_4bit_use_double_quant=is_double)
    before = quantized(four_bits(bnb_4bit_use_double_quant=is_double))
    fields = {"eval_strategy": "steps", "eval_steps": 2, "save_strategy": "steps", "save_steps": 4}
    trainer = train(model=model, peft_config=lora(target_modules=["q_proj", "down_proj"]), **fields)
    trainer.evaluate()
    trainer.model.eval().generate(input_ids=torch.arange(10, 20).view(1, 10), max_new_tokens=4)
    trainer.save_model(str(tmp_path / "out"))
    after = quantized(trainer.model)
    assert len(after) == 4
    for kept, layer in zip(trainer.history.kept, after, strict=True):
        assert layer.keys() == before[kept].keys()
        for name, tensor in layer.items():
            assert torch.equal(tensor, before[kept][name]), name
    ids = torch.arange(10, 40).view(2, 15)
    assert_close(
        logits_in_float32(AutoModelForCausalLM.from_pretrained(tmp_path / "out")),
        trainer.model.train()(input_ids=ids).logits,
        atol=2e-2,  # TRL lets adapters on four bits compute in bfloat16
        rtol=1e-2,
    )


def test_a_quantized_weight_that_changes_is_noticed_at_the_next_save(train, four_bits, tmp_path):
    trainer = train(model=four_bits(), peft_config=lora(target_modules=["q_proj"]))
    base = trainer.model.get_base_model().model.layers[2].self_attn.q_proj.base_layer
    base.weight.quant_state.absmax[5] *= 1.5
    with pytest.raises(
        FrozenWeightsError, match=r"when the run began \(1\): model\.layers\.2\.self_attn\.q_proj.*weight\.absmax\."
    ):
        trainer.save_model(str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_quantized_weights_that_were_reordered_before_are_refused(train, four_bits):
    model = four_bits()
    try:
        logits(model)
    except (RuntimeError, AttributeError):
        pytest.skip("this CPU has no such kernels")
    with pytest.raises(ValueError, match="not the ones that were quantized.*Load the model again"):
        train(model=model, peft_config=lora())


def test_an_adapter_that_cannot_be_merged_is_refused_before_training(train):
    config = lora(target_modules=["q_proj"], alora_invocation_tokens=[5, 6])
    with pytest.raises(ValueError, match="`merge_adapter` is True.*alora_invocation_tokens"):
        train(peft_config=config)


class Damage(TrainerCallback):
    """Spoils the adapters, or what trains, in the middle of a run, so that the floor is crossed."""

    def on_step_end(self, args, state, control, model, **kwargs):
        if state.global_step == 3:
            with torch.no_grad():
                for weight in model.parameters():
                    if weight.requires_grad:
                        weight.add_(torch.randn_like(weight) * 3)


@pytest.mark.parametrize("kind", ["load_in_4bit", "load_in_8bit"])
def test_a_quantized_run_comes_back_to_the_last_good_depth(kind, train, tmp_path):
    """What is quantized stays and is not put back; the adapters are."""
    make_model(hidden_size=64, intermediate_size=128).save_pretrained(tmp_path / "base")
    options = {kind: True} | ({"bnb_4bit_compute_dtype": torch.float32} if kind == "load_in_4bit" else {})
    base = AutoModelForCausalLM.from_pretrained(
        tmp_path / "base", quantization_config=BitsAndBytesConfig(**options), dtype=torch.float32
    )
    settings = {
        "target_layers": 3,
        "max_metric_drop": 0.0,
        "calibration_metric": "loss",
        "trim_steps": 2,
        "layers_per_trim": 1,
    }
    trainer = train(model=base, peft_config=lora(), callbacks=[Damage()], **settings)
    assert trainer.history.depth > 3 and "was restored" in trainer.history.stopped
    assert trainer.causal_lm.config.num_hidden_layers == trainer.history.depth == len(trainer.causal_lm.model.layers)
    trainer.save_model(str(tmp_path / "out"))
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out").config.num_hidden_layers == trainer.history.depth


def test_the_speed_is_that_of_what_is_saved():
    """Merged, adapters take no time: they are not run where that is timed, and are as they were afterwards."""
    model = get_peft_model(make_model(), lora(target_modules=["q_proj", "down_proj"], modules_to_save=["lm_head"]))
    frozen = next(weight for name, weight in model.named_parameters() if "lora_A" in name)
    frozen.requires_grad_(False)
    ran, before = [], logits(model)
    for name, module in model.named_modules():
        if name.endswith("lora_A.default"):
            module.register_forward_hook(lambda *_: ran.append(1))
    assert measure_saved_tokens_per_second(model.get_base_model(), is_merged=True) > 0
    assert not ran
    assert torch.equal(logits(model), before) and ran and not frozen.requires_grad
    ran.clear()
    assert measure_saved_tokens_per_second(model.get_base_model(), is_merged=False) > 0
    assert ran


def test_what_is_dequantized_when_it_is_merged_states_no_speed(train, tmp_path):
    make_model(hidden_size=64, intermediate_size=128).save_pretrained(tmp_path / "base")
    quantization = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=torch.float32)
    base = AutoModelForCausalLM.from_pretrained(
        tmp_path / "base", quantization_config=quantization, dtype=torch.float32
    )
    trainer = train(model=base, peft_config=lora())
    assert trainer.history.trimmed.decode_tokens_per_second is None
    trainer.save_model(str(tmp_path / "out"))
    assert "tokens per second" not in (tmp_path / "out" / "README.md").read_text().lower()


@pytest.mark.parametrize("kind", ["adapter", "frozen"])
def test_the_last_layer_that_trains_stays(kind, train, tmp_path):
    """Adapters on the last layers only, or a script that has frozen the others: without them nothing would train."""
    model, settings = make_model(), {"importance": "tail"}
    if kind == "adapter":
        settings["peft_config"] = lora(target_modules=["q_proj"], layers_to_transform=[4, 5])
    else:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(".layers.4." in name or ".layers.5." in name)
    trainer = train(model=model, **settings)
    assert trainer.history.dropped == (5, 3)
    assert any(parameter.requires_grad for parameter in trainer.model.parameters())
    losses = [entry["grad_norm"] for entry in trainer.state.log_history if "grad_norm" in entry]
    assert all(norm > 0 for norm in losses)
    trainer.save_model(str(tmp_path / "out"))
    if kind == "adapter":
        assert trainer.model.peft_config["default"].layers_to_transform == [3]


def test_an_adapter_that_would_be_on_no_layer_is_refused():
    model = get_peft_model(make_model(), lora(target_modules=["q_proj"], layers_to_transform=[4, 5]))
    with pytest.raises(LayerConstraintError, match="Only layers that would be dropped have the adapter"):
        drop_layers(model, [4, 5])
    model = get_peft_model(
        make_model(), lora(layers_to_transform=[4], target_modules=["q_proj"], modules_to_save=["lm_head"])
    )
    assert drop_layers(model, [4]).peft_config["default"].layers_to_transform == []


@pytest.mark.parametrize(
    "make",
    [lambda: PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4), lambda: PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)],
    ids=["prefix", "prompt"],
)  # fmt: skip
def test_prompts_that_are_learned_are_refused_where_they_would_be_left_behind(make, tokenizer):
    model = get_peft_model(make_model(), make())
    with pytest.raises(LayerConstraintError, match="puts something in front of the prompt"):
        drop_layers(model, [1])
    with pytest.raises(ValueError, match="puts something in front of every prompt.*get_base_model"):
        score_layers(model, tokenizer, make_examples(3))


@pytest.mark.parametrize(
    "pattern",
    [
        {"alpha_pattern": {"layers.4.mlp.experts.down_proj": 64}},
        {"rank_pattern": {"layers.4.mlp.experts.down_proj": 5}},
    ],
)
def test_patterns_of_adapted_parameters_follow_their_layers(pattern, tmp_path):
    config = lora(target_modules=["q_proj"], target_parameters=["mlp.experts.down_proj"], lora_dropout=0.0, **pattern)
    model = drop_layers(get_peft_model(zoo.make("mixtral"), config), [0])
    (name,) = next(iter(pattern.values()))
    number = int(name.split(".")[1])
    trimmed = getattr(model.peft_config["default"], next(iter(pattern)))
    assert {key.partition("layers.")[2] for key in trimmed} == {f"{number - 1}.mlp.experts.down_proj"}
    model.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(drop_layers(zoo.make("mixtral"), [0]), tmp_path)
    assert {name: weight.shape for name, weight in again.named_parameters()} == {
        name: weight.shape for name, weight in model.named_parameters()
    }


def test_layers_of_another_stack_keep_their_numbers():
    kept, names = (
        Kept.without(6, [0]),
        {"model.text_model.layers.2.q_proj", "model.connector.perceiver_resampler.layers.0.q_proj"},
    )
    assert renumber_names(names, kept, ("model.text_model.layers",)) == {
        "model.text_model.layers.1.q_proj", "model.connector.perceiver_resampler.layers.0.q_proj"
    }  # fmt: skip
    assert renumber_names(["layers.2.mlp", "base_model.model.model.text_model.layers.3"], kept, ("model.text_model.layers",)) == [
        "layers.1.mlp", "base_model.model.model.text_model.layers.2"
    ]  # fmt: skip


@pytest.mark.parametrize(
    "name", [r"+:.*\.5\..*down.*", r"-:model\.layers\.(3|4)\.", "re:.*layers.5.mlp.*", r"re:layers\.[0-4]\."]
)
def test_expressions_that_tell_layers_by_their_numbers_are_not_guessed_at(name):
    with pytest.raises(CannotSay, match="is a regular expression that may tell layers by their numbers"):
        renumber_names({"ignore": ["lm_head", name]}, Kept.without(6, [1]))
    whole = {"ignore": ["re:.*lm_head", r"re:.*layers\.[0-9]+\.mlp\.w1$", r"+:.*layers\.\d+\..*"]}
    assert renumber_names(whole, Kept.without(6, [1])) == whole


@pytest.mark.parametrize("is_tied", [False, True])
def test_modules_that_train_beside_an_adapter_are_counted_once(is_tied):
    model = get_peft_model(make_model(tie_word_embeddings=is_tied), lora(modules_to_save=["lm_head"]))
    found = measure_model(model, {}, decode_tokens_per_second=1.0, cache=None)
    merged = model.merge_and_unload()
    assert (found.num_parameters, found.num_bytes) == (merged.num_parameters(), merged.get_memory_footprint())
