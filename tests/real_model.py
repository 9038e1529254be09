"""The shapes of google/diffusiongemma-26B-A4B-it, by its published config.json, without its weights."""

from __future__ import annotations

import dataclasses

from oracle import tiny

from mlx_diffusiongemma.config import ModelConfig

REAL = dataclasses.replace(
    tiny.ROUGH,
    layer_types=(("sliding_attention",) * 5 + ("full_attention",)) * 5,
    hidden=2816,
    dense=2112,
    expert=704,
    experts=128,
    top_k=8,
    heads=16,
    kv_heads=8,
    head_dim=256,
    full_kv_heads=2,
    full_head_dim=512,
    window=1024,
    canvas=256,
    vocab=262144,
)


def real_config() -> ModelConfig:
    values = tiny.config(REAL, "original")
    values["text_config"]["max_position_embeddings"] = 262144
    return ModelConfig.from_dict(values)
