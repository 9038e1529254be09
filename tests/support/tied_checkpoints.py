"""Makes checkpoints that store weights of a DiffusionGemma under other names, or some weights twice."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import mlx.core as mx

EMBEDDING = "model.decoder.embed_tokens.weight"
Tensors = dict[str, mx.array]


def of_encoder(name: str) -> str:
    """Return the encoder's name of a decoder's weight, or the same name if they do not share this weight."""
    shared = not name.endswith("layer_scalar") and "self_conditioning" not in name
    return name.replace("model.decoder.", "model.encoder.language_model.", 1) if shared else name


def silent(tensors: Mapping[str, mx.array]) -> dict[str, Tensors]:
    """Return checkpoints that Transformers loads without a warning, by label."""
    plain = dict(tensors)
    encoder = {of_encoder(name): tensor for name, tensor in plain.items() if of_encoder(name) != name}
    head = {"lm_head.weight": plain[EMBEDDING]}
    first = {name: tensor for name, tensor in encoder.items() if ".layers.0." in name}
    without_first = {name: tensor for name, tensor in plain.items() if of_encoder(name) not in first}
    bare = {name.removeprefix("model."): tensor for name, tensor in plain.items()}
    buffers = ("model.decoder.rotary_emb.inv_freq", "model.decoder.layers.0.self_attn.rotary_emb.inv_freq")
    return {
        "lm_head instead": {name: tensor for name, tensor in plain.items() if name != EMBEDDING} | head,
        "lm_head beside": plain | head,
        "encoder instead": {of_encoder(name): tensor for name, tensor in plain.items()},
        "encoder beside": plain | encoder,
        "all names": plain | encoder | head,
        "first layer of the encoder": without_first | first,
        "no prefix": bare,
        "no prefix, lm_head beside": bare | head,
        "prefix twice": {f"model.{name}": tensor for name, tensor in (plain | head).items()},
        "buffers": plain | {name: mx.arange(8, dtype=mx.float32) for name in buffers},
        "other dtype": {name: tensor.astype(mx.bfloat16) for name, tensor in plain.items()}
        | {"lm_head.weight": plain[EMBEDDING].astype(mx.bfloat16).astype(mx.float32)},
    }


def different(tensors: Mapping[str, mx.array]) -> dict[str, tuple[Tensors, str, str]]:
    """Return checkpoints with two different values of one weight, each with the two names of that weight."""
    query = "model.decoder.layers.1.self_attn.q_proj.weight"
    experts = "model.decoder.layers.1.experts.down_proj"
    out: dict[str, tuple[Tensors, str, str]] = {}
    for name, other in (
        (EMBEDDING, "lm_head.weight"),
        (EMBEDDING, "model.encoder.language_model.embed_tokens.weight"),
        (query, of_encoder(query)),
        (experts, of_encoder(experts)),
        (experts, f"{experts}.weight"),
        ("model.decoder.norm.weight", "decoder.norm.weight"),
    ):
        values: Any = mx.array(tensors[name])
        last = tuple(size - 1 for size in values.shape)
        values[last] = values[last] * 1.01  # the last value of the last chunk
        out[other] = (dict(tensors) | {other: values}, name, other)
    return out
