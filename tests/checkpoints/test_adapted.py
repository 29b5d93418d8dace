"""What is saved of a model under adapters loads plainly, and is the model that was trained, for each kind of adapter."""

import copy

import pytest
import torch
from peft import (
    AutoPeftModelForCausalLM,
    IA3Config,
    LNTuningConfig,
    LoHaConfig,
    LoKrConfig,
    LoraConfig,
    OFTConfig,
    PeftModel,
    RandLoraConfig,
    VBLoRAConfig,
    VeraConfig,
    get_peft_model,
)
from tiny import make_model
from torch.testing import assert_close
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from trim_trainer import drop_layers, verify_checkpoint
from trim_trainer.checkpoints.adapted import save_adapted
from trim_trainer.checkpoints.mergeable import check_adapters
from trim_trainer.checkpoints.verification import VerificationError

TASK = {"task_type": "CAUSAL_LM"}
SOME = ["q_proj", "v_proj", "down_proj"]


def lora(*more, targets=None, **fields):
    return LoraConfig(r=4, target_modules=[*SOME, *more] if targets is None else targets, **(TASK | fields))


KINDS = {
    "LoRA": lambda: lora(),
    "biases": lambda: lora(bias="all"),
    "rsLoRA": lambda: lora(use_rslora=True),
    "DoRA": lambda: lora(use_dora=True),
    "PiSSA": lambda: lora(init_lora_weights="pissa"),
    "OLoRA": lambda: lora(init_lora_weights="olora"),
    "embeddings": lambda: lora("embed_tokens"),
    "embeddings, tied": lambda: lora("embed_tokens", ensure_weight_tying=True),
    "embeddings, DoRA": lambda: lora("embed_tokens", use_dora=True),
    "head": lambda: lora("lm_head"),
    "embeddings and head": lambda: lora("embed_tokens", "lm_head"),
    "a trained copy of the head": lambda: lora(modules_to_save=["lm_head"]),
    "a trained copy of the embeddings": lambda: lora(modules_to_save=["embed_tokens"]),
    "a trained copy of both, tied": lambda: lora(modules_to_save=["embed_tokens"], ensure_weight_tying=True),
    "trained copies of both": lambda: lora(modules_to_save=["embed_tokens", "lm_head"]),
    "a trained copy of the norm": lambda: lora(modules_to_save=["norm"]),
    "some tokens": lambda: lora(trainable_token_indices=[90, 91]),
    "a regular expression": lambda: lora(targets=r".*layers\.[0-3]\..*(q|v)_proj"),
    "numbered names": lambda: lora(targets=["1.self_attn.q_proj", "5.mlp.down_proj", "3.mlp.up_proj"]),
    "excluded layers": lambda: lora(exclude_modules=r".*layers\.[45]\..*"),
    "ranks of layers": lambda: lora(rank_pattern={r"layers\.3\..*q_proj": 2}, alpha_pattern={r".*\.5\..*v_proj": 3}),
    "VeRA": lambda: VeraConfig(r=4, target_modules=["q_proj", "o_proj"], **TASK),
    "IA3": lambda: IA3Config(target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"], **TASK),
    "LoHa": lambda: LoHaConfig(r=4, target_modules=SOME, **TASK),
    "LoKr": lambda: LoKrConfig(r=4, target_modules=SOME, **TASK),
    "OFT": lambda: OFTConfig(r=0, oft_block_size=8, target_modules=SOME, **TASK),
    "RandLoRA": lambda: RandLoraConfig(r=4, target_modules=["q_proj", "o_proj"], **TASK),
    "VB-LoRA": lambda: VBLoRAConfig(r=2, vector_length=8, num_vectors=16, target_modules=["q_proj", "o_proj"], **TASK),
    "norms": lambda: LNTuningConfig(target_modules=["input_layernorm"], **TASK),
}
# A weight that the embedding and the head shared, and that they do not share any more once the adapter is merged.
COME_APART = {
    "embeddings", "embeddings, DoRA", "head", "embeddings and head", "a trained copy of the head",
    "a trained copy of the embeddings", "trained copies of both",
}  # fmt: skip


def adapted(config, model=None):
    """A trimmed model under an adapter that has trained."""
    model = get_peft_model(make_model(tie_word_embeddings=True) if model is None else model, config)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return drop_layers(model, [2, 4])


@torch.no_grad()
def logits(model):
    return model.eval()(input_ids=torch.arange(10, 96).view(2, 43)).logits.float()


@pytest.mark.parametrize("kind", KINDS)
def test_merged_it_computes_what_was_trained(kind, tmp_path):
    model = adapted(KINDS[kind]())
    expected, tensors = logits(model), {name: tensor.clone() for name, tensor in model.state_dict().items()}
    check_adapters(model, is_merged=True)
    save_adapted(model, tmp_path, is_merged=True)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert_close(logits(loaded), expected, atol=1e-4, rtol=1e-4)
    assert loaded.config.tie_word_embeddings == (kind not in COME_APART)
    assert torch.equal(logits(model), expected)
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("kind", KINDS)
def test_apart_it_computes_what_was_trained(kind, tmp_path):
    model = adapted(KINDS[kind]())
    expected = logits(model)
    save_adapted(model, tmp_path, is_merged=False)
    with model.disable_adapter():  # the base model, alone, is the one that the adapter was trained on
        if kind != "biases":  # which PEFT changes in place
            assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(tmp_path)), logits(model))
    base = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert_close(logits(PeftModel.from_pretrained(base, tmp_path / "adapter")), expected, atol=1e-5, rtol=1e-5)
    loaded = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter")
    assert_close(logits(loaded), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", ["LoRA", "embeddings", "DoRA"])
def test_in_half_precision_it_is_what_was_trained_up_to_rounding(kind, dtype, tmp_path):
    model = adapted(KINDS[kind](), make_model(tie_word_embeddings=True).to(dtype))
    save_adapted(model, tmp_path, is_merged=True)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype="auto")
    assert loaded.dtype == dtype
    assert (logits(loaded) - logits(model)).abs().max() < 0.03 * logits(model).abs().max()


@pytest.mark.parametrize("is_merged", [True, False])
@pytest.mark.parametrize("active", [["default", "second"], ["second"]])
def test_the_adapters_that_are_active_are_what_was_trained(active, is_merged, tmp_path):
    model = get_peft_model(make_model(), lora(init_lora_weights=False))
    model.add_adapter("second", lora(init_lora_weights=False))
    model.base_model.set_adapter(active)
    drop_layers(model, [2, 4])
    expected = logits(model)
    save_adapted(model, tmp_path, is_merged)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    if not is_merged:
        loaded = PeftModel.from_pretrained(loaded, tmp_path / "adapter")
        if len(active) > 1:
            loaded.load_adapter(tmp_path / "adapter" / "second", "second")
            loaded.base_model.set_adapter(active)
    assert_close(logits(loaded), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", ["LoRA", "DoRA", "IA3", "embeddings", "a trained copy of the head", "some tokens"])
@pytest.mark.parametrize("is_merged", [True, False])
def test_on_four_bits_it_computes_what_was_trained(kind, is_merged, tmp_path):
    pytest.importorskip("bitsandbytes")
    sizes = {"hidden_size": 64, "intermediate_size": 128, "head_dim": 16, "tie_word_embeddings": True}
    make_model(**sizes).save_pretrained(tmp_path / "base")
    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32)
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base", quantization_config=config, dtype=torch.float32)
    model = adapted(KINDS[kind](), base).train()
    ids = torch.arange(10, 96).view(2, 43)
    expected = model(input_ids=ids).logits  # training, 4-bit layers compute with their weights as they are
    save_adapted(model, tmp_path / "out", is_merged)
    assert model.training
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    if not is_merged:
        loaded = PeftModel.from_pretrained(loaded, tmp_path / "out" / "adapter")
    assert_close(loaded.train()(input_ids=ids).logits, expected, atol=1e-4, rtol=1e-4)


def test_what_peft_merges_wrongly_is_not_verified(tmp_path):
    """Merged into an embedding, the adapter changes the head that shares its weight."""
    model = adapted(lora("embed_tokens"))
    copy.deepcopy(model).merge_and_unload().save_pretrained(tmp_path)
    assert (logits(AutoModelForCausalLM.from_pretrained(tmp_path)) - logits(model)).abs().max() > 0.1
    with pytest.raises(VerificationError, match="lm_head.weight|logits"):
        verify_checkpoint(tmp_path, model)


def test_a_merged_layer_too_few_is_not_verified(tmp_path):
    model = adapted(lora())
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.get_base_model().model.layers[3].self_attn.v_proj.lora_B.default.weight.zero_()
    other.merge_and_unload().save_pretrained(tmp_path)
    with pytest.raises(VerificationError, match="logits differ by .*, where rounding explains"):
        verify_checkpoint(tmp_path, model)


def test_an_embedding_that_no_logit_shows_is_not_verified(tmp_path):
    model = adapted(lora(trainable_token_indices={"embed_tokens": [90, 91]}), make_model())
    other = copy.deepcopy(model).merge_and_unload()
    with torch.no_grad():
        other.get_input_embeddings().weight[91] += 0.1
    other.save_pretrained(tmp_path)
    with pytest.raises(VerificationError, match="token 91 has another embedding"):
        verify_checkpoint(tmp_path, model)


def test_an_adapter_of_an_earlier_save_is_set_aside(tmp_path):
    model = adapted(lora())
    model.save_pretrained(tmp_path)
    save_adapted(model, tmp_path, is_merged=False)
    save_adapted(model, tmp_path, is_merged=True)
    assert not list(tmp_path.glob("adapter_*.json")) and not list(tmp_path.glob("adapter_*.safetensors"))
    assert (
        not (tmp_path / "adapter").exists() and (tmp_path / "adapter.old").is_dir()
    )  # nothing that was trained is lost
    assert_close(logits(AutoModelForCausalLM.from_pretrained(tmp_path)), logits(model), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("config", "why"),
    [
        (lambda: lora(alora_invocation_tokens=[5, 6]), "alora_invocation_tokens"),
        (lambda: lora(lora_bias=True), "down_proj|v_proj|q_proj.*has no bias"),
    ],
)
def test_an_adapter_that_cannot_be_merged_is_refused_before(config, why, tmp_path):
    model = get_peft_model(make_model(), config())
    with pytest.raises(ValueError, match=f"`merge_adapter` is True.*{why}.*False"):
        check_adapters(model, is_merged=True)
    check_adapters(model, is_merged=False)
