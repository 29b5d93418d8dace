"""A tiny random model of every decoder in Transformers, with per-layer settings that are irregular on purpose.

`ROWS` and `VARIANTS` (one file per Auto mapping) say what the generic shrink below cannot know; "type@variant" is a row
of `VARIANTS` on top of the row of "type". Parts of a composite config take the row of their own model type.
"""

from copy import deepcopy

import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, set_seed
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
)

from . import causal, image_text

NUM_LAYERS = 6
TOWER_LAYERS = 2  # of a vision or audio tower
NOISE = 0.05
INPUT_IDS = torch.arange(10, 36).view(2, 13)  # 0-9 are special tokens

# (size, the fields that get it where the default config has them with one number)
SIZES = (
    (NUM_LAYERS, "num_hidden_layers n_layer n_layers num_layers layers decoder_layers encoder_layers num_blocks"),
    (NUM_LAYERS, "num_decoder_layers num_encoder_layers num_layers_per_stack"),
    (128, "vocab_size vocab_size_per_layer_input decoder_vocab_size unpadded_vocab_size"),
    (64, "hidden_size d_model n_embd n_embed embed_dim emb_dim dim embedding_size embedding_dim input_embedding_size"),
    (64, "output_embedding_size word_embed_proj_dim out_hidden_size lru_width attention_hidden_size mamba_d_ssm"),
    (96, "intermediate_size intermediate_size_mlp dense_intermediate_size feed_forward_size ffn_hidden_size ffn_dim"),
    (96, "decoder_ffn_dim encoder_ffn_dim n_inner d_inner d_ff dff dim_ff"),
    (4, "num_attention_heads n_head n_heads num_heads attention_heads swa_num_attention_heads linear_num_heads"),
    (4, "decoder_attention_heads encoder_attention_heads num_decoder_attention_heads num_encoder_attention_heads"),
    (4, "linear_num_value_heads num_experts n_routed_experts num_local_experts moe_num_experts"),
    (2, "num_key_value_heads num_kv_heads swa_num_key_value_heads linear_num_key_heads index_n_heads depth"),
    (2, "num_experts_per_tok num_experts_per_token moe_topk moe_k num_random_blocks"),
    (1, "n_group topk_group num_expert_group n_shared_experts num_shared_experts moe_num_shared_experts"),
    (1, "mamba_n_groups n_groups spatial_merge_size"),
    (16, "head_dim qk_nope_head_dim qk_rope_head_dim v_head_dim dim_head d_head kv_channels attention_head_size"),
    (16, "linear_head_dim linear_key_head_dim linear_value_head_dim swa_head_dim mamba_d_head mamba_head_dim"),
    (32, "moe_intermediate_size shared_expert_intermediate_size shared_experts_intermediate_size image_size"),
    (32, "shared_intermediate_size moe_shared_expert_intermediate_size expert_ffn_hidden_size qk_head_dim"),
    (32, "q_lora_rank kv_lora_rank o_lora_rank index_head_dim position_bias_num_buckets"),
    (4, "sliding_window sliding_window_size attention_window_size local_attention_window_len local_attention"),
    (4, "window_size attention_chunk_size keep_window_size index_topk"),
    (8, "mamba_d_state ssm_state_size state_size mamba_dt_rank time_step_rank mamba_n_heads mamba_num_heads"),
    (8, "rotary_dim mamba_chunk_size chunk_size patch_size block_size laurel_rank hidden_size_per_layer_input"),
    (256, "max_position_embeddings n_positions n_ctx max_seq_len max_target_positions context_length"),
    (64, "max_source_positions position_bias_max_distance"),
    (0, "pad_token_id num_nextn_predict_layers num_mtp_layers"),
    (1, "bos_token_id decoder_start_token_id"),
    (2, "eos_token_id"),
    (5, "image_token_id image_token_index"),
    (6, "video_token_id video_token_index"),
    (7, "audio_token_id audio_token_index"),
    (8, "vision_start_token_id"),
    (9, "vision_end_token_id"),
    (True, "is_decoder"),
)
SIZE_OF = {field: size for size, fields in SIZES for field in fields.split()}

# Per-layer lists whose default holds two kinds or more: the kinds, in the order of the default, are dealt out like this.
PATTERNS = {
    "layer_types": (0, 1, 0, 0, 1, 1),
    "layers_block_type": (0, 1, 0, 0, 1, 1),
    "mlp_layer_types": (0, 1, 1, 0, 1, 0),
    "no_rope_layers": (0, 1, 1, 0, 0, 1),
    "indexer_types": (0, 1, 0, 0, 1, 1),
}
EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
EXPERT_SIZES = ("moe_intermediate_size", "expert_ffn_hidden_size")
DERIVED = ("slope_rate", "query_decay", "key_decay", "diagonal_decay")  # MiniMax computes them from each other
STACKS = ("num_hidden_layers", "num_layers", "encoder_layers", "depth")

ROWS = causal.ROWS | image_text.ROWS
VARIANTS = causal.VARIANTS | image_text.VARIANTS
UNBUILT = causal.UNBUILT | image_text.UNBUILT
IMAGE_TEXT = (*MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES, *image_text.VARIANTS)
CAUSAL = (*MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, *causal.VARIANTS)


def shrink_sizes(default):
    """The fields of `SIZES` that the config has, under their real names."""
    now, alias = default.to_dict(), default.attribute_map
    values = {}
    for field in sorted((set(now) | set(alias)) & set(SIZE_OF)):
        if isinstance(now.get(alias.get(field, field)), (int, float, type(None))):
            values[alias.get(field, field)] = SIZE_OF[field]
    if "kv_lora_rank" in values:  # latent attention has no grouped heads
        values["num_key_value_heads"] = values["num_attention_heads"]
    if set(EXPERTS) & set(values) and not set(EXPERT_SIZES) & set(values):
        values["intermediate_size"] = SIZE_OF["moe_intermediate_size"]
    return values


def shrink_lists(default):
    """The per-layer lists of the config, made irregular where its default has more than one kind."""
    values = {}
    for field, pattern in PATTERNS.items():
        full = default.to_dict().get(field)
        if full and not isinstance(getattr(type(default), field, None), property):
            kinds = list(dict.fromkeys(full))
            values[field] = [kinds[i % len(kinds)] for i in pattern]
    return values


def shrink_parts(default, row):
    """The sub configs, each with the row of its own model type under what `row` says of it."""
    parts = {}
    for field, declared in (default.sub_configs or {}).items():
        if isinstance(row.get(field, {}), dict):
            cls = type(getattr(default, field, None) or declared())
            parts[field] = shrink(cls, ROWS.get(cls.model_type, {}) | row.get(field, {}))
            if field not in ("text_config", "decoder"):
                parts[field] = shorten_tower(parts[field], ROWS.get(cls.model_type, {}) | row.get(field, {}))
    return parts


def shorten_tower(values, row):
    """A tower with 2 layers, except where its row says another number."""
    stacks = {field: TOWER_LAYERS for field in STACKS if field in values}
    lists = {field: values[field][:TOWER_LAYERS] for field in PATTERNS if field in values}
    return values | stacks | lists | row


def shrink(cls, row):
    """Keyword arguments of a tiny config of `cls`; what `row` says goes before the tables above."""
    default = cls()
    values = shrink_sizes(default) | shrink_lists(default) | row | shrink_parts(default, row)
    return {"model_type": cls.model_type} | {k: v for k, v in values.items() if v is not ...}


def make_config(name):
    """The tiny config of a model type, or of "type@variant"."""
    base = name.partition("@")[0]
    cls = CONFIG_MAPPING[base]
    values = shrink(cls, ROWS.get(base, {}) | VARIANTS.get(name, {}))
    return cls(**deepcopy({k: v for k, v in values.items() if k != "model_type"}))  # configs edit their lists


def make(name, auto=AutoModelForCausalLM):
    """The model of `make_config(name)`: float32, evaluation mode, the same weights each time, no weight at its default."""
    set_seed(0)
    model = auto.from_config(make_config(name)).float().eval()
    with torch.no_grad():
        for key, tensor in model.state_dict(keep_vars=True).items():
            if tensor.is_floating_point() and not key.endswith(DERIVED):
                tensor.add_(torch.randn_like(tensor) * NOISE)
            elif key.endswith("tid2eid"):  # the experts of a token, zeros before a checkpoint is loaded
                tensor.random_(SIZE_OF["num_experts"])
        for key, tensor in model.state_dict(keep_vars=True).items():
            if key.endswith("balancing_biases"):
                tensor[-1] = -1.0  # Zaya's from_pretrained puts it there whatever is saved
        for module in model.modules():
            if isinstance(module, torch.nn.Embedding) and module.padding_idx is not None:
                module.weight[module.padding_idx] = 0.0  # no gradient reaches it; Youtu's from_pretrained zeroes it
    return model


def make_inputs(model, name):
    """Keyword arguments of `forward`: 2 x 13 token ids, and what the model needs beside them."""
    inputs = {"input_ids": INPUT_IDS} | image_text.INPUTS.get(name.partition("@")[0], {})
    return {field: value.clone() for field, value in inputs.items()}


def logits(model, inputs):
    """The logits of `inputs`, (batch, tokens, vocabulary), without a cache."""
    with torch.no_grad():
        return model(**inputs, use_cache=False).logits
