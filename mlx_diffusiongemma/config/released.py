"""The shapes of the released 26B model, and the quantizations that MLX supports."""

from __future__ import annotations

from .model import FULL, SLIDING, ModelConfig

REAL_LAYERS = 30
_LAYERS_PER_FULL = 6  # five sliding layers, then one with full attention

# mode -> (bits, group sizes) that MLX supports
QUANTIZATIONS: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
    "affine": ((1, 2, 3, 4, 5, 6, 8), (32, 64, 128)),
    "mxfp4": ((4,), (32,)),
    "mxfp8": ((8,), (32,)),
    "nvfp4": ((4,), (16,)),
}


def real_config(layers: int = REAL_LAYERS) -> ModelConfig:
    """Return the config of google/diffusiongemma-26B-A4B-it, or of its first `layers` layers."""
    kinds = [FULL if i % _LAYERS_PER_FULL == _LAYERS_PER_FULL - 1 else SLIDING for i in range(layers)]
    return ModelConfig.from_dict(
        {
            "model_type": "diffusion_gemma",
            "canvas_length": 256,
            "eos_token_id": [1, 106],
            "text_config": {
                "hidden_size": 2816,
                "intermediate_size": 2112,
                "moe_intermediate_size": 704,
                "num_experts": 128,
                "top_k_experts": 8,
                "num_hidden_layers": layers,
                "num_attention_heads": 16,
                "num_key_value_heads": 8,
                "head_dim": 256,
                "num_global_key_value_heads": 2,
                "global_head_dim": 512,
                "sliding_window": 1024,
                "vocab_size": 262144,
                "max_position_embeddings": 262144,
                "layer_types": kinds,
                "rope_parameters": {
                    FULL: {"rope_type": "proportional", "rope_theta": 1e6, "partial_rotary_factor": 0.25},
                    SLIDING: {"rope_type": "default", "rope_theta": 1e4},
                },
            },
        }
    )
