"""Config fields of the image-text-to-text models that the generic shrink gets wrong or leaves regular.

Rows are by model type: composites, the text models that only they use, and their towers. Only text goes in, but for the
few models whose forward insists on an image, so most towers have just to build.
"""

import torch

SLIDING, FULL, LINEAR, INDEXED = "sliding_attention", "full_attention", "linear_attention", "indexed_attention"
TYPES = [SLIDING, FULL, SLIDING, SLIDING, FULL, FULL]
MLPS = ["dense", "sparse", "sparse", "dense", "sparse", "dense"]
THETAS = [10000.0, 0, 0, 5000.0, 300.0, 0]
WINDOW = {"layer_types": TYPES, "use_sliding_window": True, "max_window_layers": 3}


def sections(*sizes):
    """RoPE over time, height and width; the sizes add up to half of what a head rotates."""
    return {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": list(sizes)}}


SAM = {"output_channels": 8, "mlp_dim": 32, "global_attn_indexes": [1], "downsample_channels": [16, 64]}
VQ = {"base_channels": 32, "channel_multiplier": [1], "num_res_blocks": 1, "latent_channels": 8, "num_embeddings": 16}
GRID = {"num_position_embeddings": 16, "temporal_patch_size": 1}
MUSE_VISION = {"pos_emb_height": 4, "pos_emb_width": 4, "max_position_embeddings": 16}

TEXT = {
    "cosmos3_edge_text": sections(4, 2, 2),
    "deepseek_ocr2_text": {"mlp_layer_types": MLPS},
    "diffusion_gemma_text": {"top_k_experts": 2, "global_head_dim": 32},
    "ernie4_5_vl_moe_text": {"mlp_layer_types": MLPS, "moe_intermediate_size": [32, 16]} | sections(3, 3, 2),
    "glm4v_text": sections(2, 3, 3),
    "glm4v_moe_text": {"first_k_dense_replace": 3} | sections(1, 1, 2),
    "glm5_next_text": {
        "qk_rope_head_dim": 0,
        "qk_head_dim": ...,
        "head_dim": ...,
        "layer_types": [LINEAR, INDEXED, LINEAR, LINEAR, INDEXED, INDEXED],
        "indexer_types": ["full", "full", "full", "full", "full", "shared"],
        "index_kpool": 2,
        "hc_mult": 2,
    },
    "glm_ocr_text": sections(2, 3, 3),
    "hunyuan_vl_text": sections(2, 2, 2, 2),
    "mistral4": {"first_k_dense_replace": 3, "head_dim": ..., "qk_head_dim": ...},
    "mistral_large4_text": {
        "mlp_layer_types": MLPS,
        "indexer_types": ["full", "full", "shared", "full", "full", "shared"],
        "kv_source_layers": [0, 1, 1, 3, 4, 3],
        "no_rope_layers": [1, 0, 0, 1, 0, 1],
        "head_dim": ...,
        "qk_head_dim": ...,
    },
    "molmo2_text": {
        "rope_scaling_layers": [0, 2, 5],
        "rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0},
        "additional_vocab_size": 8,
    },
    "muse_glimmer_text": {"layer_rope_theta": THETAS},
    "muse_spark_text": {
        "layer_rope_theta": THETAS,
        "mlp_layer_types": MLPS,
        "moe_hidden_size": 32,
    },
    "paddleocr_vl_text": sections(2, 3, 3),
    "qwen2_vl_text": WINDOW | sections(2, 3, 3),
    "qwen2_5_vl_text": WINDOW | sections(2, 3, 3),
    "qwen2_5_omni_text": WINDOW | sections(2, 3, 3),
    "qwen3_vl_text": sections(2, 3, 3),
    # the attention of the next two has no window, yet a cache would get one from the config
    "qwen3_omni_moe_text": {"mlp_only_layers": [0, 3, 5], "sliding_window": ...} | sections(2, 3, 3),
    "qwen3_vl_moe_text": {"mlp_only_layers": [0, 3, 5], "sliding_window": ...} | sections(2, 3, 3),
    "step3p5": {
        "layer_types": [FULL, SLIDING, FULL, FULL, SLIDING, SLIDING],
        "mlp_layer_types": MLPS,
        "swiglu_limits": [0.03, 0.02, 0.2, 0.0, 0.1, 0.5],
        "swiglu_limits_shared": [0.5, 0.2, 0.02, 0.03, 0.1, 0.0],
        "num_sliding_attention_heads": 2,
        "share_expert_dim": 32,
    },
    "unlimited_ocr_text": {
        "layer_types": ["reference_" + SLIDING if kind == SLIDING else kind for kind in TYPES],
        "mlp_layer_types": MLPS,
    },
}

TOWERS = {
    "blip_2_qformer": {"num_hidden_layers": 1, "intermediate_size": 32},
    "chameleon_vqgan": VQ,
    "cohere_compass_vision": {"deepstack_visual_indexes": [0, 1]} | GRID,
    "deepseek_ocr2_sam_vision_model": SAM,
    "dots3_note_audio_encoder": {"adapter_input_size": 64, "adapter_out_dim": 64, "downsample_hidden_size": 8},
    "dots3_note_vision_encoder": {
        "mlp_layer_types": ["dense", "dense"],
        "adapter_in_dim": 64,
        "adapter_out_dim": 64,
        "adapter_merge_size": 1,
    },
    "emu3_vqgan": {"base_channels": 32, "channel_multiplier": [1], "codebook_size": 16, "num_res_blocks": 1},
    "florence_vision": {
        "depths": [1],
        "patch_size": [3],
        "patch_stride": [2],
        "patch_padding": [1],
        "patch_prenorm": [False],
        "embed_dim": [16],
        "num_heads": [2],
        "num_groups": [2],
        "projection_dim": 64,
    },
    "gemma4_unified_vision": {"mm_embed_dim": 64, "mm_posemb_size": 16, "output_proj_dims": 64},
    "gemma4_vision": {"position_embedding_size": 16},
    "glm5_next_vision": {"projection_intermediate_size": 64},
    "got_ocr2_vision": SAM,
    "granite_docling_vision": {"deepstack_visual_indexes": [0, 1], "scale_factor": 2, "hidden_size": 32},
    "hunyuan_vl_vision": {"max_image_size": 32},
    "idefics2_perceiver": {"resampler_depth": 1, "resampler_n_heads": 2, "resampler_head_dim": 16},
    "inkling_audio": {"text_hidden_size": 64, "n_mel_bins": 4, "mel_vocab_size": 8},
    "inkling_vision": {"text_hidden_size": 64, "patch_size": 2, "temporal_patch_size": 2, "n_layers": 3},
    "inkling2_vision": {"text_hidden_size": 64, "projection_hidden_dim": 64, "posemb_grid_size": 4},
    "janus_vision_model": {"projection_dim": 32},
    "janus_vqgan": VQ | {"projection_dim": 32, "image_token_embed_dim": 32},
    "kimi_k25_vision": {"pos_emb_height": 4, "pos_emb_width": 4},
    "kosmos_2_5_vision_model": {"max_num_patches": 16, "patch_embed_hidden_size": 32},
    "llama4_vision_model": {"vision_output_dim": 64, "projector_input_dim": 64, "projector_output_dim": 64},
    "minicpm_ocr_vision": {"insert_layer_id": 0, "hidden_size": 32},
    "minicpmv4_6_vision": {"insert_layer_id": 0, "hidden_size": 32},
    "minicpmv4_7_vision": {"insert_layer_id": 0, "hidden_size": 32},
    "mllama_vision_model": {"intermediate_layers_indices": [0, 1], "vision_output_dim": 192, "num_global_layers": 1},
    "molmo2_adapter": {"vision_feature_layer": [1, 0], "text_hidden_size": 64},
    "molmo2_vision": {"image_size": [32, 32], "num_position_embeddings": 16},
    "muse_glimmer_vision": MUSE_VISION,
    "muse_spark_audio": {"patch_sizes": [2, 2], "hidden_sizes": [8, 16], "depths": [1, 1]},
    "muse_spark_vision": MUSE_VISION,
    "pp_chart2table_vision": SAM,
    "qwen2_5_omni_audio_encoder": {"output_dim": 64},
    "qwen3_5_moe_vision": GRID,
    "qwen3_5_vision": GRID,
    "qwen3_omni_moe_audio_encoder": {"output_dim": 64, "downsample_hidden_size": 8},
    "qwen3_omni_moe_vision_encoder": {"deepstack_visual_indexes": [0, 1]} | GRID,
    "qwen3_vl_moe_vision": {"deepstack_visual_indexes": [0, 1]} | GRID,
    "qwen3_vl_vision": {"deepstack_visual_indexes": [0, 1]} | GRID,
    "qwen4_exp_vision": GRID,
    "radio": {"video_temporal_patch_size": 2, "max_img_size": 32},
    "sam_vision_model": SAM,
    "step3p5_vision": {"hidden_size": 16},
    "unlimited_ocr_sam_vision_model": SAM,
}

COMPOSITES = {
    "aria": {"text_config": {"intermediate_size": 32}},
    "blip-2": {"num_query_tokens": 2},
    "chameleon": {"vocabulary_map": {"<image>": 5}},
    "cohere2_vision": {"alignment_intermediate_size": 64},
    "cosmos3_edge": {"projector_hidden_size": 64},
    "diffusion_gemma": {"canvas_length": 8},
    "emu3": {"vocabulary_map": {"<image>": 5, "<|extra_200|>": 4}},
    "gemma4": {"audio_config": None},
    "gemma4_unified": {"audio_config": None},
    # pairs of a vision layer and a text layer; then text layers alone
    "granite4_vision": {
        "deepstack_layer_map": [[0, 1], [1, 4]],
        "spatial_target_layers": [0, 2, 3, 5],
        "downsample_rate": "1/2",
    },
    "idefics": {"cross_layer_interval": 2},
    "idefics2": {"perceiver_config": {"resampler_n_latents": 4}},
    "instructblip": {"num_query_tokens": 2},
    "instructblipvideo": {"num_query_tokens": 2},
    "kimi_k25": {"projection_hidden_size": 64},
    "kosmos-2": {"latent_query_num": 4},
    "lfm2_vl": {"projector_hidden_size": 64},
    "lfm3_vl": {"projector_hidden_size": 64},
    "minimax_m3_vl": {"projector_hidden_size": 64, "merged_hidden_size": 64},
    "muse_glimmer": {"projector_hidden_size": 64, "out_hidden_size": 256},
    "muse_spark": {"projector_hidden_size": 64, "out_hidden_size": 256},
    # generate reads the id, the config has no default for it
    "qwen2_5_omni_thinker": {"vision_start_token_id": 8, "audio_start_token_id": 9},
    "qwen3_omni_moe_thinker": {"vision_start_token_id": 8, "audio_start_token_id": 9},
    "nemotron_h_omni": {"audio_config": None, "projector_hidden_size": 64, "vision_hidden_size": 64},
}


def ramp(*sizes):
    """Numbers from -1 to 1."""
    return torch.linspace(-1, 1, torch.Size(sizes).numel()).view(sizes)


def tokens(images):
    """Token ids that start with as many image tokens."""
    return torch.cat([torch.full((2, images), 5), torch.arange(10, 36 - 2 * images).view(2, -1)], 1)


IMAGE = {"pixel_values": ramp(2, 3, 32, 32)}

# What `forward` takes beside, or instead of, the 2 x 13 token ids
INPUTS = {
    "blip": IMAGE,
    "blip-2": IMAGE | {"input_ids": tokens(2)},
    "diffusion_gemma": {"decoder_input_ids": torch.arange(40, 56).view(2, 8)},  # the canvas, else random
    "idefics": {"pixel_values": ramp(2, 1, 3, 32, 32), "image_attention_mask": torch.ones(2, 13, 1)},
    "instructblip": IMAGE | {"input_ids": tokens(2), "qformer_input_ids": torch.arange(10, 20).view(2, 5)},
    "instructblipvideo": {
        "pixel_values": ramp(2, 2, 3, 32, 32),
        "input_ids": tokens(4),
        "qformer_input_ids": torch.arange(10, 20).view(2, 5),
    },
    "kosmos-2": {"image_embeds": ramp(2, 4, 64), "image_embeds_position_mask": (torch.arange(13) < 4).expand(2, 13)},
}

ROWS = TEXT | TOWERS | COMPOSITES
VARIANTS = {
    "dots3_note@nosparse": {"text_config": {"index_topk": 64}},
    "gemma4@noshare": {"text_config": {"num_kv_shared_layers": 0}},
    "gemma4_unified@noshare": {"text_config": {"num_kv_shared_layers": 0}},
    "glm5_next@full": {"text_config": {"indexer_types": ["full"] * 6}},
    "glm5_next@nosparse": {"text_config": {"index_topk": 64}},
    "inkling2@1block": {"text_config": {"n_layers_per_attn_res_block": 6}},
    "mistral_large4@noshare": {"text_config": {"kv_source_layers": list(range(6))}},
    "mistral_large4@nosparse": {"text_config": {"index_topk": 64}},
}
UNBUILT = {
    "evolla": "the Auto mapping does not know its own config, from_config fails for everybody",
    "fast_vlm": "its vision tower needs the package timm",
    "gemma3n": "its vision tower needs the package timm",
    "perception_lm": "its vision tower needs the package timm",
    "pi0": "it moves a robot: forward needs the robot's state and returns actions, not logits",
    "pix2struct": "an encoder-decoder whose encoder reads image patches only",
    "pp_formulanet": "an encoder-decoder whose encoder reads images only",
    "t5gemma2": "an encoder-decoder whose forward needs decoder_input_ids",
    "udop": "an encoder-decoder whose forward needs the boxes of the words on the page",
    "vision-encoder-decoder": "an encoder-decoder whose encoder reads images only",
}
UNSOUND = {"shieldgemma2": "its weights are saved under names that from_pretrained does not read"}
NO_CACHE = {"diffusion_gemma": "it generates by diffusion, a whole canvas at a time"}

TOP_K = "its hard top-k picks other tokens when the length differs; @nosparse leaves none out"
# Greedy generation works, but the untouched model's tokens or logits are others with a cache than without
CACHE_DIFFERS = {
    "dots3_note": TOP_K,
    "glm5_next": TOP_K,
    "glm5_next@full": TOP_K,
    "mistral_large4": TOP_K,
    "mistral_large4@noshare": TOP_K,
    "paligemma": "the prompt sees itself in both directions, so a longer prompt is another prompt",
    "unlimited_ocr": "the window does not cover the prompt, and without a cache all is prompt",
}
