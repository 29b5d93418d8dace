"""Which modules of a layer are its attention half, and which its MLP half: rows of model types that are made alike.

A layer is its MLP half behind its attention half, each with what stands around it: norms in front and behind, gates,
scales. Where that is so, the MLP half of one layer may follow the attention half of another. All of the types below were
tried: docs/architectures.md.
"""

from dataclasses import dataclass

from transformers import PretrainedConfig

from .configs import text_config
from .errors import UnsupportedArchitectureError


@dataclass(frozen=True)
class Halves:
    """Names of what is in the halves of a layer, where it has them: modules, parameters and settings of its own."""

    attention: tuple[str, ...]
    mlp: tuple[str, ...]


def _halves(attention: str, mlp: str) -> Halves:
    return Halves(tuple(attention.split()), tuple(mlp.split()))


_MIXER = "self_attn linear_attn mamba"  # an attention half of another kind has the same place
_PRE_NORM = _halves(f"input_layernorm {_MIXER}", "post_attention_layernorm mlp")
_POST_NORM = _halves("self_attn post_attention_layernorm", "mlp post_feedforward_layernorm")
_FOUR_NORMS = _halves(
    "input_layernorm self_attn post_attention_layernorm", "pre_feedforward_layernorm mlp post_feedforward_layernorm"
)
_GLM = _halves("input_layernorm self_attn post_self_attn_layernorm", "post_attention_layernorm mlp post_mlp_layernorm")
_GPT = _halves("ln_1 attn", "ln_2 mlp")
_BERT = _halves("attention", "intermediate output")
_FAIRSEQ = _halves(
    "self_attn self_attn_layer_norm encoder_attn encoder_attn_layer_norm", "activation_fn fc1 fc2 ffn final_layer_norm"
)
_GEMMA4 = _halves(
    "input_layernorm self_attn post_attention_layernorm",
    "pre_feedforward_layernorm mlp post_feedforward_layernorm router experts post_feedforward_layernorm_1 "
    "pre_feedforward_layernorm_2 post_feedforward_layernorm_2 layer_scalar act_fn",
)

_ROWS: tuple[tuple[Halves, str], ...] = (
    (
        _PRE_NORM,
        "arcee aria_text axk1 axk2 bailing_hybrid bitnet chameleon cosmos3_edge_text cwm deepseek_ocr2_text deepseek_v2 "
        "deepseek_v3 deepseek_v32 diffllama dots1 dots3_note_text ernie4_5 ernie4_5_moe ernie4_5_vl_moe_text exaone_moe "
        "flint gemma glm glm4_moe glm4_moe_lite glm4v_moe_text glm_moe_dsa gpt_oss granite granite4_vision_text "
        "granite_docling_text granite_swa helium hrm_text hunyuan_v1_dense hunyuan_v1_moe hunyuan_vl_text hy_v3 internlm3 "
        "iquestcoder jais2 kimi_linear laguna llama mellum mimo_v2_flash minicpm3 minimax minimax_m2 minimax_m3_vl_text "
        "ministral ministral3 mistral mistral4 mistral_large4_text mixtral molmo2_text moshi nanochat nemotron olmo "
        "olmoe paddleocr_vl_text phimoe qwen2 qwen2_5_omni_text qwen2_5_vl_text qwen2_moe qwen2_vl_text qwen3 "
        "qwen3_5_moe_text qwen3_5_text qwen3_moe qwen3_next qwen3_omni_moe_text qwen3_vl_moe_text qwen3_vl_text seed_oss "
        "smollm3 solar_open starcoder2 step3p5 unlimited_ocr_text youtu blt_global_transformer",
    ),
    (_POST_NORM, "exaone4 flex_olmo olmo2 olmo3"),
    (_FOUR_NORMS, "gemma2 gemma3_text muse_glimmer_text"),
    (_GLM, "glm4 glm4v_text glm_ocr_text kolibri1"),
    (_GPT, "gpt2 gpt_bigcode gpt_neo openai-gpt"),
    (
        _BERT,
        "bert bert-generation big_bird camembert data2vec-text electra ernie git rembert roberta roberta-prelayernorm "
        "roc_bert roformer xlm-roberta xmod",
    ),
    (_halves("attention", "ln LayerNorm intermediate output"), "megatron-bert xlm-roberta-xl"),
    (
        _FAIRSEQ,
        "bart bigbird_pegasus blenderbot blenderbot-small marian mbart mvp pegasus plbart trocr whisper biogpt opt xglm "
        "kosmos_2_5_text_model kosmos_2_text_model",
    ),
    (
        _halves("input_layernorm self_attn", "post_attention_layernorm mlp dropout"),
        "emu3_text_model persimmon stablelm",
    ),
    (_halves("input_layernorm self_attn", "post_attention_layernorm feed_forward is_moe_layer"), "llama4_text"),
    (
        _halves(f"input_layernorm {_MIXER}", "post_attention_layernorm block_sparse_moe shared_mlp"),
        "granitemoe granitemoe_swa granitemoehybrid granitemoeshared",
    ),
    (_halves(f"input_layernorm {_MIXER}", "pre_ff_layernorm feed_forward"), "bamba falcon_h1 jamba"),
    (
        _halves(
            "input_layernorm self_attn post_attention_layernorm",
            "pre_mlp_layernorm mlp post_mlp_layernorm moe_enabled",
        ),
        "afmoe",
    ),
    (_halves("input_layernorm self_attention", "post_attention_layernorm mlp"), "bloom falcon jetmoe"),
    (_halves("input_layernorm self_attn post_norm1", "post_attention_layernorm mlp post_norm2"), "hyperclovax"),
    (
        _halves("operator_norm conv self_attn post_operator_norm", "ffn_norm feed_forward post_ffn_norm"),
        "lfm2 lfm2_moe lfm3",
    ),
    (_halves("attn_norm attn", "mlp_norm mlp"), "modernbert-decoder"),
    (
        _halves("input_layernorm self_attn resid_attn_dropout", "post_attention_layernorm mlp resid_mlp_dropout"),
        "phi3 phi4_multimodal",
    ),
    (_halves("temporal_pre_norm temporal_block", "channel_pre_norm mlp_block"), "recurrent_gemma"),
    (_halves("attention_layernorm self_attn", "feedforward_layernorm mlp"), "apertus"),
    (_halves("self_att", "ffn"), "cpmant"),
    (_halves("layernorm1 multi_head_attention dropout1", "layernorm2 ffn dropout2"), "ctrl"),
    (
        _halves("input_layernorm self_attn input_residual", "post_attention_layernorm mlp post_attention_residual"),
        "doge",
    ),
    (
        _halves("input_layernorm attention post_attention_dropout", "post_attention_layernorm mlp post_mlp_dropout"),
        "gpt_neox gpt_neox_japanese",
    ),
    (_halves("norm_1 attn resid_attn_dropout", "norm_2 ffn"), "mpt"),
    (
        _halves(
            "self_attn self_attn_layer_norm cross_attn cross_attn_layer_norm", "feed_forward feed_forward_layer_norm"
        ),
        "prophetnet",
    ),
    (_halves("input_layernorm self_attn", "pre_feedforward_layernorm mlp"), "vaultgemma"),
    (_halves("rel_attn", "ff dropout"), "xlnet"),
    (_halves("norm_mlstm mlstm_layer", "norm_ffn ffn"), "xlstm"),
    (
        _halves(
            "input_layernorm self_attn post_attention_layernorm post_attention_residual_gate",
            "pre_feedforward_layernorm mlp post_feedforward_layernorm post_feedforward_residual_gate",
        ),
        "muse_spark_text",
    ),
    (_halves("input_layernorm self_attn attn_sconv", "post_attention_layernorm mlp mlp_sconv"), "inkling_text"),
    (_GEMMA4, "gemma4_text gemma4_unified_text"),
)
HALVES = {name: halves for halves, names in _ROWS for name in names.split()}
_PARALLEL = "its attention and its MLP run side by side on the same state, so that neither is a half of its own"
_STREAMS = "it has several streams, which are mixed around each half"
_ONE = "each of its layers is one block, without halves"
REFUSED = {
    **dict.fromkeys(("cohere", "cohere2", "cohere2_moe", "cohere_compass_text", "codegen", "gptj", "phi"), _PARALLEL),
    **dict.fromkeys(("mamba", "mamba2", "falcon_mamba", "nemotron_h"), _ONE),
    **dict.fromkeys(("deepseek_v4", "glm5_next_text", "hy_v4", "qwen4_exp_text"), _STREAMS),
    "beam": "each half is scaled by its place in the whole stack",
    "gemma3n_text": "what it adds of the embeddings of a layer is spread over both halves",
    "inkling2_text": "later layers read the sums of blocks of whole layers",
    "longcat_flash": "each of its layers has two attentions and two MLPs",
    "olmo_hybrid": "norms have another place in layers with linear attention",
    "reformer": "its halves run on two streams that are computed back from each other",
    "rwkv": "its weights are rescaled by their layers' numbers",
    "xlm": "it keeps the parts of a layer in lists of their own",
    **dict.fromkeys(("zamba", "zamba2"), "its layers share blocks"),
    "zaya": "its layers hand a state of their routers to each other",
}
# Model type -> (config field, why there are no halves where it is set).
REFUSED_IF = {
    "gpt_neox": (("use_parallel_residual", _PARALLEL),),
    "stablelm": (("use_parallel_residual", _PARALLEL),),
    "falcon": (("new_decoder_architecture", _PARALLEL), ("parallel_attn", _PARALLEL)),
    "gemma4_text": (
        ("hidden_size_per_layer_input", "its embeddings per layer are added behind both halves and belong to neither"),
    ),
}


def find_halves(config: PretrainedConfig) -> Halves:
    """Return the row of a config's model type.

    Raises:
        UnsupportedArchitectureError: its layers have no halves that could be joined with those of others, or it is not known
            which they are.
    """
    decoder = text_config(config)
    reason = REFUSED.get(decoder.model_type)
    for name, why in REFUSED_IF.get(decoder.model_type, ()):
        if getattr(decoder, name, None):
            reason = f"`{name}` is {getattr(decoder, name)!r}: {why}"
    if reason is None and decoder.model_type not in HALVES:
        reason = "it is not known which of its modules are which half"
    if reason is not None:
        raise UnsupportedArchitectureError(
            f"Halves of different layers of a {config.model_type!r} model cannot be joined: {reason}. Drop whole layers."
        )
    return HALVES[decoder.model_type]
