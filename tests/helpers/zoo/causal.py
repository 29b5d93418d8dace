"""What the generic sizes do not settle in the causal language models: rows by model type, variants of rows.

Lists have six entries, one per layer, each value once where a type allows it, and no symmetry that a dropped layer would
leave intact.
"""

SLIDING, FULL, LINEAR, INDEXED = "sliding_attention", "full_attention", "linear_attention", "indexed_attention"
CHUNKED, CONV, HYBRID, HYBRID_SLIDING = "chunked_attention", "conv", "hybrid", "hybrid_sliding"
COMPRESSED, HEAVY = "compressed_sparse_attention", "heavily_compressed_attention"

TYPES = [SLIDING, FULL, SLIDING, SLIDING, FULL, FULL]
MLPS = ["dense", "sparse", "sparse", "dense", "sparse", "dense"]
INDEXERS = ["full", "shared", "full", "shared", "shared", "full"]
ROPE = {"rope_type": "default", "rope_theta": 10000.0}
ROPES = {"rope_parameters": {SLIDING: ROPE | {"rope_theta": 100.0}, FULL: ROPE}}
WINDOW = {"layer_types": TYPES, "sliding_window": 4, "use_sliding_window": True, "max_window_layers": 3}
SPARSE_STEP = {"mlp_only_layers": [3], "decoder_sparse_step": 2}  # experts in layers 1 and 5
NO_ROPE = [1, 0, 0, 1, 1, 0]
THETAS = [10000.0, 0.0, 5000.0, 100.0, 0.0, 300.0]  # 0: no rotary embedding
NO_LISTS = {"layer_types": ..., "mlp_layer_types": ...}  # for the legacy spellings
NOT_SPARSE = {"index_topk": 64}  # no key is left out

# The last layer of a Gemma 4 has full attention; the keys and values of layers 2 and 3 serve layers 4 and 5.
SHARED_TYPES = [SLIDING, FULL, FULL, SLIDING, SLIDING, FULL]
GEMMA4 = {"layer_types": SHARED_TYPES, "num_kv_shared_layers": 2, "global_head_dim": 32, "head_dim": 16}

ROWS = {
    "afmoe": {"num_dense_layers": 3},
    "axk2": {"gated_norm_rank": 8},
    "bamba": {"attn_layer_indices": [1, 3, 4]},
    "blt": {
        "vocab_size": 260,
        "encoder_hash_byte_group_size": [2, 3],
        "encoder_hash_byte_group_vocab": 100,
        "encoder_config": {"vocab_size": 260, "hidden_size_global": 64},
        "decoder_config": {"vocab_size": 260, "hidden_size_global": 64},
        "patcher_config": {"vocab_size": 260},
        "global_config": {"num_hidden_layers": 6},
    },
    "cohere": {"logit_scale": 1.0},
    "cohere2": {"logit_scale": 1.0},
    "cohere2_moe": {"logit_scale": 1.0, "mlp_layer_types": MLPS},
    "cohere_compass_text": {"layer_types": TYPES} | ROPES,
    "cpmant": {"init_std": 0.1, "prompt_length": 4, "prompt_types": 4, "segment_types": 4},
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "rope_theta": 10000.0, "clip_qkv": 8.0},
        "ffn_config": {"hidden_size": 64, "ffn_hidden_size": 32, "moe_num_experts": 4, "moe_top_k": 2},
    },
    "deepseek_v2": {"first_k_dense_replace": 3},
    "deepseek_v3": {"first_k_dense_replace": 3},
    "deepseek_v4": {
        "layer_types": [HEAVY, COMPRESSED, SLIDING, HEAVY, COMPRESSED, COMPRESSED],
        "compress_rates": {COMPRESSED: 2, HEAVY: 4},
        "partial_rotary_factor": 0.5,
        "hc_mult": 2,
        "o_groups": 2,
    },
    "dots1": {"first_k_dense_replace": 3, "layer_types": TYPES, "max_window_layers": 3},
    "dots3_note_text": {
        "layer_types": [INDEXED, SLIDING, INDEXED, INDEXED, SLIDING, SLIDING],
        "head_dim": 32,
        "swa_num_attention_heads": 2,
        "swa_num_key_value_heads": 2,
        "swa_q_lora_rank": 16,
        "swa_kv_lora_rank": 16,
        "swa_head_dim": 24,
        "swa_qk_nope_head_dim": 16,
        "swa_v_head_dim": 16,
    },
    "ernie4_5_moe": {"moe_layer_start_index": 1, "moe_layer_end_index": 4, "moe_layer_interval": 2},  # 1 and 3
    "falcon_h1": {"mamba_d_ssm": 128, "mlp_multipliers": [1.5, 0.7], "ssm_multipliers": [1.2, 0.8, 1.1, 0.9, 1.3]},
    "flint": {"mlp_only_layers": [0, 3, 5]},
    "gemma3n_text": {
        "layer_types": SHARED_TYPES,
        "num_kv_shared_layers": 2,
        "intermediate_size": [96, 64, 80, 48, 112, 32],
        "activation_sparsity_pattern": [0.9, 0.0, 0.5, 0.3, 0.7, 0.8],
        "altup_num_inputs": 2,
    },
    "gemma4_text": GEMMA4,
    "gemma4_unified_text": GEMMA4,
    "glm4_moe": {"first_k_dense_replace": 3},
    "glm_moe_dsa": {"indexer_types": INDEXERS},
    "gpt_neo": {"attention_types": [[["global", "local", "global"], 1], [["global", "local", "local"], 1]]},
    "granite_swa": {"layer_rope_theta": THETAS},
    "granitemoe_swa": {"layer_rope_theta": THETAS},
    "granitemoehybrid": {"layer_types": [LINEAR, FULL, LINEAR, LINEAR, FULL, FULL]},
    "hrm_text": {"num_hidden_layers": 48, "intermediate_size": 32},  # 2 x (3 + 1) passes through six layers
    "hunyuan_v1_moe": {"num_experts": 6, "moe_topk": [1, 2, 6, 5, 3, 4]},
    "hy_v4": {"indexer_types": INDEXERS, "hc_mult": 2},
    "inkling2_text": {"n_layers_per_attn_res_block": 2},
    "inkling_text": {"mlp_layer_types": MLPS, "logits_mup_width_multiplier": 1.0},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2, "expert_layer_offset": 0},
    "laguna": {"layer_types": TYPES, "num_attention_heads_per_layer": [4, 2, 8, 6, 12, 10]},
    "lfm2": {"layer_types": [CONV, FULL, CONV, CONV, FULL, FULL], "block_auto_adjust_ff_dim": False},
    "lfm2_moe": {"layer_types": [CONV, FULL, CONV, CONV, FULL, FULL], "num_dense_layers": 3},
    "lfm3": {"layer_types": [CONV, FULL, SLIDING, CONV, SLIDING, FULL]},
    "llama4_text": {
        "layer_types": [CHUNKED, FULL, CHUNKED, CHUNKED, FULL, FULL],
        "no_rope_layers": [1, 1, 0, 1, 0, 0],
        "moe_layers": [1, 2, 4],
        "floor_scale": 4,
    },
    "longcat_flash": {"zero_expert_num": 2, "ffn_hidden_size": 32, "expert_ffn_hidden_size": 16},
    "mamba2": {"num_heads": 8},
    "mellum": {"layer_types": TYPES, "mlp_layer_types": MLPS},
    "minicpm3": {"dim_model_base": 64, "scale_emb": 2},
    "minimax": {"sliding_window": None},  # with one, only the full-attention layers have it
    "minimax_m3_vl_text": {
        "layer_types": [FULL, "minimax_m3_sparse", FULL, FULL, "minimax_m3_sparse", "minimax_m3_sparse"],
        "mlp_layer_types": MLPS,
        "index_block_size": 2,
        "index_topk_blocks": 2,
        "rotary_dim": 8,
    },
    "ministral": {"layer_types": TYPES},
    "modernbert-decoder": {"local_attention": 8},  # half of it on each side
    "moshi": {"sliding_window": 256},  # only the cache heeds it
    "nemotron_h": {"layers_block_type": [LINEAR, FULL, "moe", LINEAR, FULL, "mlp"], "sliding_window": None},
    "olmo3": ROPES,
    "phi4_multimodal": {
        "audio_config": {"hidden_size": 32, "ext_pw_out_channel": 32, "nemo_conv_channels": 16, "num_blocks": 2}
        | {"depthwise_separable_out_channel": 32, "intermediate_size": 32},
        "vision_config": {"hidden_size": 32, "crop_size": 32},
    },
    "qwen2": WINDOW,
    "qwen2_moe": WINDOW | SPARSE_STEP,
    "qwen3": WINDOW,
    "qwen3_moe": SPARSE_STEP,
    "qwen3_next": SPARSE_STEP,
    "qwen4_exp_text": {
        "hc_count": 2,
        "hc_lowrank": 8,
        "ple_layer_ids": [1, 4],
        "ple_embed_dim": 16,
        "heads_per_ngram": 2,
        "ngram_vocab_size_base": 50,
        "make_ngram_vocab_size_divisible_by": 8,
        "split_ngram_parts": 2,
        "indexer_n_heads": 2,
        "indexer_kv_heads": 1,
        "indexer_head_dim": 16,
        "indexer_budget": 4,
        "indexer_compress_ratio": 2,
    },
    "recurrent_gemma": {"block_types": ["recurrent", "attention", "recurrent", "recurrent", "attention", "attention"]},
    "reformer": {
        "attn_layers": ["local", "lsh", "local", "local", "lsh", "lsh"],
        "axial_pos_shape": [16, 16],
        "axial_pos_embds_dim": [16, 48],
        "num_buckets": 4,
        "hash_seed": 0,
    },
    "roc_bert": {
        "pronunciation_embed_dim": 16,
        "pronunciation_vocab_size": 128,
        "shape_embed_dim": 16,
        "shape_vocab_size": 128,
    },
    "smollm3": WINDOW | {"no_rope_layers": NO_ROPE},
    "xlstm": {"qk_dim_factor": 1.0},  # the cache rounds the width of keys up, the layer does not
    "xmod": {"default_language": "en_XX"},
    "zamba": {"attention_hidden_size": 128, "attention_head_dim": 32},
    "zamba2": {
        "attention_hidden_size": ...,
        "attention_head_dim": ...,
        "kv_channels": ...,
        "num_key_value_heads": 4,
        "num_mem_blocks": 2,
        "use_shared_attention_adapter": True,
        "adapter_rank": 4,
        "use_mem_rope": True,
    },
    "zaya": {
        "layer_types": [HYBRID_SLIDING, HYBRID, HYBRID_SLIDING, HYBRID_SLIDING, HYBRID, HYBRID],
        "num_experts_per_tok": 1,
        "router_hidden_size": 16,
    },
}

VARIANTS = {
    "axk2@nosparse": NOT_SPARSE,
    "bamba@natural": {"attn_layer_indices": [2, 3]},
    "deepseek_v3@allmoe": {"first_k_dense_replace": 0},
    "deepseek_v32@nosparse": NOT_SPARSE,
    "deepseek_v4@nosparse": NOT_SPARSE,
    "dots3_note_text@nosparse": NOT_SPARSE,
    "gemma3n_text@noshare": {"num_kv_shared_layers": 0},
    "gemma4_text@moe": {"num_kv_shared_layers": 0, "enable_moe_block": True, "top_k_experts": 2}
    | {"attention_k_eq_v": True, "num_global_key_value_heads": 1},
    "gemma4_text@noshare": {"num_kv_shared_layers": 0},
    "gemma4_text@noshare_nople": {"num_kv_shared_layers": 0, "hidden_size_per_layer_input": 0},
    "glm_moe_dsa@nosparse": NOT_SPARSE,
    "gpt2@inv_idx": {"scale_attn_by_inverse_layer_idx": True},
    "hy_v4@nosparse": NOT_SPARSE,
    "inkling2_text@1block": {"n_layers_per_attn_res_block": 6},
    "jamba@all": {"attn_layer_period": 4, "attn_layer_offset": 2, "expert_layer_period": 1, "expert_layer_offset": 0},
    "nemotron_h@b": {"layers_block_type": ["moe", LINEAR, FULL, "mlp", LINEAR, FULL]},
    "qwen2@full": {"layer_types": [FULL] * 6, "use_sliding_window": False},
    "qwen3_moe@uniform": {"mlp_only_layers": [], "decoder_sparse_step": 1},
    "reformer@hashed": {"local_attn_chunk_length": 4, "lsh_attn_chunk_length": 4},
    "rwkv@rescale": {"rescale_every": 2},
    "zamba2@1block": {"num_mem_blocks": 1},
    "zamba@3hybrid": {"layers_block_type": [LINEAR, HYBRID, HYBRID, LINEAR, LINEAR, HYBRID]},
    # legacy spellings, each without the list that replaces it
    "afmoe@interval": NO_LISTS | {"global_attn_every_n_layers": 3},
    "axk1@freq": NO_LISTS | {"moe_layer_freq": 2, "first_k_dense_replace": 1},
    "bailing_hybrid@group": NO_LISTS | {"layer_group_size": 3, "first_k_dense_replace": 2},
    "cohere2@pattern": NO_LISTS | {"sliding_window_pattern": 3},
    "cohere2_moe@pattern": NO_LISTS | {"sliding_window_pattern": 3, "first_k_dense_replace": 2},
    "deepseek_v4@ratios": NO_LISTS | {"compress_ratios": [0, 4, 128, 0, 4, 4], "num_hash_layers": 2},
    "dots1@prefix": NO_LISTS,
    "dots3_note_text@freq": {"mlp_layer_types": ..., "moe_layer_freq": [0, 1, 1, 0, 1, 0]},
    "exaone4@pattern": NO_LISTS | {"sliding_window_pattern": 3},
    "exaone_moe@pattern": NO_LISTS | {"sliding_window_pattern": 3, "first_k_dense_replace": 2},
    "gemma3_text@pattern": NO_LISTS | {"sliding_window_pattern": 3},
    "glm_moe_dsa@pattern": NO_LISTS | {"indexer_types": ..., "index_topk_pattern": "FSFSSF"},
    "granitemoehybrid@mamba": {"layer_types": ["mamba", "attention", "mamba", "mamba", "attention", "attention"]},
    "inkling_text@local_ids": NO_LISTS | {"local_layer_ids": [0, 2, 3], "dense_mlp_idx": 2},
    "kimi_linear@legacy": NO_LISTS
    | {
        "first_k_dense_replace": 2,
        "linear_attn_config": {"full_attn_layers": [2, 5, 6], "kda_layers": [1, 3, 4], "head_dim": 16, "num_heads": 4},
    },
    "lfm2@idxs": NO_LISTS | {"full_attn_idxs": [1, 4, 5]},
    "llama4_text@interval": NO_LISTS
    | {"moe_layers": ..., "no_rope_layers": ..., "no_rope_layer_interval": 3, "interleave_moe_layer_step": 2},
    "minimax_m3_vl_text@freq": NO_LISTS
    | {"moe_layer_freq": [0, 1, 1, 0, 1, 0], "sparse_attention_config": {"sparse_attention_freq": [0, 1, 0, 0, 1, 1]}},
    "modernbert-decoder@interval": NO_LISTS | {"global_attn_every_n_layers": 3},
    "nemotron_h@pattern": {"layers_block_type": ..., "hybrid_override_pattern": "M*EM*-"},
    "qwen2@prefix": NO_LISTS,
    "qwen3_5_text@interval": NO_LISTS | {"full_attention_interval": 3},
    "qwen3_moe@step": {"mlp_only_layers": [], "decoder_sparse_step": 2},
    "qwen3_next@interval": NO_LISTS | {"full_attention_interval": 3},
    "qwen4_exp_text@interval": NO_LISTS | {"full_attention_interval": 3},
    "recurrent_gemma@cycle": {"block_types": ["recurrent", "recurrent", "attention"]},
    "smollm3@interval": NO_LISTS | {"no_rope_layers": ..., "no_rope_layer_interval": 3},
    "zamba2@mamba": {"layers_block_type": ["mamba", HYBRID, "mamba", "mamba", HYBRID, HYBRID]},
    "zamba@period": {"layers_block_type": ..., "attn_layer_period": 2, "attn_layer_offset": 1},
}

UNBUILT = {
    "gemma3n": "its vision tower needs the package timm",
    "gemma4_assistant": "a drafter for speculative decoding that reads the keys and values of another model",
    "gemma4_unified_assistant": "a drafter for speculative decoding that reads the keys and values of another model",
    "musicgen": "the Auto mapping gives the decoder class the composite config, from_config fails for everybody",
    "musicgen_melody": "the Auto mapping gives the decoder class the composite config, from_config fails for everybody",
}
UNSOUND = {  # the untouched model does not survive save_pretrained and from_pretrained
    "emu3": "AutoModelForCausalLM saves the text config, whose type is not in its mapping",
    "mllama": "AutoModelForCausalLM saves the text config, whose type is not in its mapping",
    "rwkv@rescale": "a forward in evaluation mode divides weights in place, and they are saved like that",
}
NO_CACHE = {  # the untouched model cannot generate with a cache
    "blt": "the cache wants num_hidden_layers, which the composite config has not",
    "reformer@hashed": "a cache longer than one chunk is hashed with the wrong number of dimensions",
}

TOP_K = "its hard top-k picks other tokens when the length differs; @nosparse leaves none out"
TWO_WAYS = "a longer prompt changes what the model makes of the tokens before"
ONE_STATE = "a batch of more than one mixes its states; a batch of one is right"
CACHE_DIFFERS = {  # greedy generation of the untouched model gives other tokens or logits with a cache than without
    "axk2": TOP_K,
    "cpmant": TWO_WAYS,
    "deepseek_v32": TOP_K,
    "deepseek_v4": TOP_K,
    "deepseek_v4@ratios": TOP_K,
    "dots3_note": TOP_K,
    "dots3_note_text": TOP_K,
    "dots3_note_text@freq": TOP_K,
    "glm_moe_dsa": TOP_K,
    "glm_moe_dsa@pattern": TOP_K,
    "hy_v4": TOP_K,
    "prophetnet": TWO_WAYS,
    "rwkv": ONE_STATE,
    "rwkv@rescale": ONE_STATE,
}
