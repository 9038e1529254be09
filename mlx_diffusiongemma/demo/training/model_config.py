"""The demo's configuration: DiffusionGemma's shape, scaled down."""

from __future__ import annotations

from typing import Any

HIDDEN = 128
VOCAB = 704
CANVAS = 64


def config_dict() -> dict[str, Any]:
    """Arguments of Transformers' `DiffusionGemmaConfig`."""
    text = {
        "vocab_size": VOCAB, "hidden_size": HIDDEN, "intermediate_size": 192, "moe_intermediate_size": 64,
        "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32,
        "global_head_dim": 64, "num_global_key_value_heads": 1, "num_experts": 8, "top_k_experts": 2,
        "sliding_window": 128, "max_position_embeddings": 4096, "rms_norm_eps": 1e-6,
        "hidden_activation": "gelu_pytorch_tanh", "final_logit_softcapping": 30.0,
        "use_bidirectional_attention": "vision", "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2,
        "layer_types": ["sliding_attention"] * 3 + ["full_attention"],
        "rope_parameters": {
            "full_attention": {"rope_type": "proportional", "partial_rotary_factor": 0.25, "rope_theta": 1e6},
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
        },
    }  # fmt: skip
    vision = {
        "model_type": "gemma4_vision", "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1,
        "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 8, "patch_size": 4,
        "position_embedding_size": 64, "max_position_embeddings": 4096, "standardize": True,
    }  # fmt: skip
    return {
        "text_config": text, "vision_config": vision, "canvas_length": CANVAS, "eos_token_id": [1, 106],
        "boi_token_id": 701, "image_token_id": 702, "eoi_token_id": 703, "tie_word_embeddings": True,
        "pad_token_id": 0, "bos_token_id": 2,
    }  # fmt: skip


GENERATION = {
    "_from_model_config": False,
    "max_new_tokens": 256,
    "max_denoising_steps": 48,
    "t_min": 0.4,
    "t_max": 0.8,
    "stability_threshold": 1,
    "confidence_threshold": 0.005,
    "sampler_config": {"_cls_name": "EntropyBoundSamplerConfig", "entropy_bound": 0.1},
    "bos_token_id": 2,
    "eos_token_id": [1, 106, 50],
    "pad_token_id": 0,
}
