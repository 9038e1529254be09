"""Builds tiny random DiffusionGemma checkpoints in Hugging Face format, with the same bits on every machine.

Every weight depends only on seed, tensor name and index: splitmix64 of a counter, then exact arithmetic. No
random numbers of a library are used, so the weights need not be stored with the traces, and an update of
NumPy does not change them. No weight has a neutral value: norm weights, router scales and layer scalars
differ from 1, and the encoder's layer scalars differ from the decoder's. So code that forgets a factor
computes other logits.
"""

from __future__ import annotations

import hashlib
import json
import math
import zlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

DIALECTS = ("original", "transformers")


@dataclass(frozen=True)
class TinySpec:
    """Shapes and scales of a tiny checkpoint.

    logit_gain: mean of the last norm's weight. A higher gain gives sharper distributions.
    branch_gain: scale of the norms that end the attention and feed-forward branches. With a small gain,
        canvas tokens seldom change, so that a canvas converges in a few steps.
    conditioning_gain: scale of self-conditioning.

    The last two are so small that a difference in the logits shrinks from step to step. A chaotic model would
    magnify rounding errors.
    """

    name: str
    seed: int
    logit_gain: float
    branch_gain: float
    conditioning_gain: float
    layer_types: tuple[str, ...] = ("sliding_attention", "sliding_attention", "full_attention") * 2
    hidden: int = 64
    dense: int = 128
    expert: int = 64
    experts: int = 8
    top_k: int = 2
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 16
    full_kv_heads: int = 1
    full_head_dim: int = 32
    window: int = 16
    canvas: int = 16
    vocab: int = 96


ROUGH = TinySpec("rough", seed=11, logit_gain=3.0, branch_gain=0.3, conditioning_gain=0.2)
SHARP = TinySpec("sharp", seed=23, logit_gain=18.0, branch_gain=0.20, conditioning_gain=0.12)
SPECS = {spec.name: spec for spec in (ROUGH, SHARP)}


def _bits(seed: int, name: str, count: int) -> np.ndarray:
    """Return `count` 64-bit words of splitmix64. The counter's start depends on seed and name."""
    start = np.uint64((zlib.crc32(name.encode()) << 32) ^ (seed * 0x9E3779B1 & 0xFFFFFFFF))
    with np.errstate(over="ignore"):
        x = start + np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _normal(seed: int, name: str, shape: tuple[int, ...], std: float, mean: float = 0.0) -> np.ndarray:
    """Return nearly Gaussian numbers: exact sums of four 16-bit lanes, scaled and rounded to float32."""
    words = _bits(seed, name, math.prod(shape))
    lanes = sum(((words >> np.uint64(16 * i)) & np.uint64(0xFFFF)).astype(np.int64) for i in range(4))
    centred = (lanes - 2 * 65535).astype(np.float64)  # standard deviation 65536 * sqrt(4 / 12)
    return (mean + centred * (std / 37837.2)).astype(np.float32).reshape(shape)


def _uniform(seed: int, name: str, shape: tuple[int, ...], low: float, high: float) -> np.ndarray:
    words = _bits(seed, name, math.prod(shape)) >> np.uint64(40)
    return (low + words.astype(np.float64) * ((high - low) / 2**24)).astype(np.float32).reshape(shape)


def weights(spec: TinySpec) -> dict[str, np.ndarray]:
    """Return all float32 tensors of the checkpoint, vision tower included, by Hugging Face's names."""
    out: dict[str, np.ndarray] = {}

    def matrix(name: str, *shape: int, gain: float = 1.0) -> None:
        out[name] = _normal(spec.seed, name, shape, gain / math.sqrt(shape[-1]))

    def vector(name: str, size: int, low: float, high: float) -> None:
        out[name] = _uniform(spec.seed, name, (size,), low, high)

    hidden, branch = spec.hidden, spec.branch_gain
    out["model.decoder.embed_tokens.weight"] = _normal(spec.seed, "embed", (spec.vocab, hidden), 0.06)
    vector("model.decoder.norm.weight", hidden, 0.6 * spec.logit_gain, 1.4 * spec.logit_gain)
    conditioning = "model.decoder.self_conditioning."
    vector(conditioning + "pre_norm.weight", hidden, 0.5, 1.5)
    matrix(conditioning + "gate_proj.weight", spec.dense, hidden)
    matrix(conditioning + "up_proj.weight", spec.dense, hidden)
    matrix(conditioning + "down_proj.weight", hidden, spec.dense, gain=spec.conditioning_gain)
    for i, kind in enumerate(spec.layer_types):
        full = kind == "full_attention"
        head_dim = spec.full_head_dim if full else spec.head_dim
        kv = (spec.full_kv_heads if full else spec.kv_heads) * head_dim
        p = f"model.decoder.layers.{i}."
        vector(p + "input_layernorm.weight", hidden, 0.6, 1.4)
        vector(p + "post_attention_layernorm.weight", hidden, 0.5 * branch, 1.1 * branch)
        vector(p + "pre_feedforward_layernorm.weight", hidden, 0.6, 1.4)
        vector(p + "pre_feedforward_layernorm_2.weight", hidden, 0.5, 1.6)
        vector(p + "post_feedforward_layernorm.weight", hidden, 0.4 * branch, 1.0 * branch)
        vector(p + "post_feedforward_layernorm_1.weight", hidden, 0.5, 1.3)
        vector(p + "post_feedforward_layernorm_2.weight", hidden, 0.7, 1.5)
        vector(p + "layer_scalar", 1, 0.6, 0.95)
        vector(f"model.encoder.language_model.layers.{i}.layer_scalar", 1, 1.05, 1.4)
        matrix(p + "self_attn.q_proj.weight", spec.heads * head_dim, hidden)
        matrix(p + "self_attn.k_proj.weight", kv, hidden)
        if not full:  # full attention uses the raw keys as values
            matrix(p + "self_attn.v_proj.weight", kv, hidden)
        matrix(p + "self_attn.o_proj.weight", hidden, spec.heads * head_dim)
        vector(p + "self_attn.q_norm.weight", head_dim, 0.4, 1.0)
        vector(p + "self_attn.k_norm.weight", head_dim, 0.4, 1.0)
        matrix(p + "mlp.gate_proj.weight", spec.dense, hidden)
        matrix(p + "mlp.up_proj.weight", spec.dense, hidden)
        matrix(p + "mlp.down_proj.weight", hidden, spec.dense)
        matrix(p + "router.proj.weight", spec.experts, hidden, gain=8.0)
        vector(p + "router.scale", hidden, 1.0, 2.5)
        vector(p + "router.per_expert_scale", spec.experts, 0.5, 1.8)
        matrix(p + "experts.gate_up_proj", spec.experts, 2 * spec.expert, hidden)
        matrix(p + "experts.down_proj", spec.experts, hidden, spec.expert)
    _vision_weights(spec, out, matrix, vector)
    return out


def _vision_weights(spec: TinySpec, out: dict[str, np.ndarray], matrix: Any, vector: Any) -> None:
    """Add a vision tower of one layer. The released file has a tower, and text-only code must accept it."""
    matrix("model.encoder.embed_vision.embedding_projection.weight", spec.hidden, 16)
    tower = "model.encoder.vision_tower."
    matrix(tower + "patch_embedder.position_embedding_table", 2, 16, 16)
    matrix(tower + "patch_embedder.input_proj.weight", 16, 768)
    layer = tower + "encoder.layers.0."
    for part in ("q", "k", "v", "o"):
        matrix(f"{layer}self_attn.{part}_proj.linear.weight", 16, 16)
    for part in ("q", "k"):
        vector(f"{layer}self_attn.{part}_norm.weight", 8, 0.5, 1.5)
    for part in ("gate", "up", "down"):
        matrix(f"{layer}mlp.{part}_proj.linear.weight", 16, 16)
    for part in ("input", "post_attention", "pre_feedforward", "post_feedforward"):
        vector(f"{layer}{part}_layernorm.weight", 16, 0.5, 1.5)


def fingerprint(tensors: dict[str, np.ndarray]) -> str:
    """Return the SHA-256 of names, shapes and bytes. Traces store it, so that tests notice other weights."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(f"{name}{tensors[name].shape}".encode())
        digest.update(np.ascontiguousarray(tensors[name]).tobytes())
    return digest.hexdigest()


def config(spec: TinySpec, dialect: str) -> dict[str, Any]:
    """Return config.json. The dialects, original or Transformers (>= 5.23), differ for full attention."""
    text: dict[str, Any] = {
        "model_type": "diffusion_gemma_text",
        "hidden_size": spec.hidden,
        "intermediate_size": spec.dense,
        "moe_intermediate_size": spec.expert,
        "num_experts": spec.experts,
        "top_k_experts": spec.top_k,
        "num_hidden_layers": len(spec.layer_types),
        "num_attention_heads": spec.heads,
        "num_key_value_heads": spec.kv_heads,
        "head_dim": spec.head_dim,
        "layer_types": list(spec.layer_types),
        "sliding_window": spec.window,
        "rope_parameters": {
            "full_attention": {"rope_type": "proportional", "partial_rotary_factor": 0.25, "rope_theta": 1e6},
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
        },
        "vocab_size": spec.vocab,
        "final_logit_softcapping": 30.0,
        "rms_norm_eps": 1e-6,
        "hidden_activation": "gelu_pytorch_tanh",
        "max_position_embeddings": 4096,
        "attention_bias": False,
        "attention_dropout": 0.0,
        "use_bidirectional_attention": "vision",
        "tie_word_embeddings": True,
        "bos_token_id": 2,
        "eos_token_id": 1,
        "pad_token_id": 0,
    }
    if dialect == "original":
        text["global_head_dim"] = spec.full_head_dim
        text["num_global_key_value_heads"] = spec.full_kv_heads
    elif dialect == "transformers":
        shape = {"head_dim": spec.full_head_dim, "num_key_value_heads": spec.full_kv_heads}
        full = [i for i, kind in enumerate(spec.layer_types) if kind == "full_attention"]
        text["per_layer_config"] = {str(i): shape for i in full}
    else:
        raise ValueError(f"dialect {dialect!r} is not one of {DIALECTS}")
    vision = {"model_type": "gemma4_vision", "hidden_size": 16, "intermediate_size": 16, "head_dim": 8}
    vision |= {"num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2}
    vision |= {"position_embedding_size": 16, "patch_size": 16, "pooling_kernel_size": 3}
    vision |= {"standardize": False, "use_clipped_linears": False, "rms_norm_eps": 1e-6}
    vision |= {"hidden_activation": "gelu_pytorch_tanh", "attention_bias": False}
    vision |= {"rope_parameters": {"rope_type": "default", "rope_theta": 100.0}}
    return {
        "model_type": "diffusion_gemma",
        "architectures": ["DiffusionGemmaForBlockDiffusion"],
        "dtype": "float32",
        "canvas_length": spec.canvas,
        "tie_word_embeddings": True,
        "eos_token_id": [1, 5],
        "image_token_id": spec.vocab - 3,
        "boi_token_id": spec.vocab - 2,
        "eoi_token_id": spec.vocab - 1,
        "text_config": text,
        "vision_config": vision,
    }


def generation_config(dialect: str) -> dict[str, Any]:
    """Return generation_config.json. In the dialect "nested", of older files, two parts are nested."""
    schedule = {"t_min": 0.35, "t_max": 0.85}  # no number is the default, so that an ignored key is noticed
    stopping = {"stability_threshold": 2, "confidence_threshold": 0.006}
    out: dict[str, Any] = {
        "max_new_tokens": 64,
        "max_denoising_steps": 12,
        "sampler_config": {"_cls_name": "EntropyBoundSamplerConfig", "entropy_bound": 0.12},
        "bos_token_id": 2,
        "eos_token_id": [1, 5],
        "pad_token_id": 0,
    }
    if dialect == "nested":
        out["linear_temperature_schedule_config"] = schedule
        out["diffusion_stopping_config"] = stopping
    else:
        out |= schedule | stopping
    return out


def build(
    spec: TinySpec,
    directory: Path | str,
    dialect: str = "transformers",
    generation_dialect: str = "flat",
    **changes: Any,
) -> Path:
    """Write config.json, generation_config.json and model.safetensors. Return the directory.

    changes: fields of the spec to replace. The engine needs only ids, so no tokenizer is made.
    """
    spec = replace(spec, **changes)
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config(spec, dialect), indent=2))
    (directory / "generation_config.json").write_text(
        json.dumps(generation_config(generation_dialect), indent=2)
    )
    save_file(weights(spec), directory / "model.safetensors", metadata={"format": "pt"})
    return directory
