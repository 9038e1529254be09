"""Reads config.json's `vision_config`. No size is guessed: the defaults of other Gemma towers differ."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..errors import ConfigError
from .json_file import JsonObject

_MODEL_TYPE = "gemma4_vision"
_MOST_LAYERS = 128


@dataclass(frozen=True)
class VisionConfig:
    """Shapes of the vision tower. Names are Hugging Face's, except for `rope_theta`.

    patch_size: side of a patch in pixels.
    pooling_kernel_size: side of a soft token in patches.
    position_embedding_size: number of rows and columns of patches that have an embedding.
    standardize: True if the pooled features have a stored mean and scale.
    use_clipped_linears: True if inputs and outputs of projections are clipped to stored bounds.
    """

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    patch_size: int
    pooling_kernel_size: int
    position_embedding_size: int
    rope_theta: float
    rms_norm_eps: float
    standardize: bool
    use_clipped_linears: bool

    @classmethod
    def from_dict(cls, values: Any) -> VisionConfig:
        """Return the shapes in a `vision_config`. Raise `ConfigError` for a missing or bad key."""
        read = JsonObject(values, "vision_config")
        for key, expected in (("model_type", _MODEL_TYPE), ("hidden_activation", "gelu_pytorch_tanh")):
            if read.values.get(key) != expected:
                raise ConfigError(f"{read.name(key)} is {read.values.get(key)!r}; only {expected!r} exists")
        if read.values.get("attention_bias"):
            raise ConfigError(f"{read.name('attention_bias')} is true, but the tower has no biases")
        heads = read.size("num_attention_heads", "to build the tower")
        groups = read.size("num_key_value_heads", "to build the tower")
        head_dim = read.size("head_dim", "to build the tower")
        if heads % groups or head_dim % 4:
            raise ConfigError(
                f"{read.file}: the tower has {heads} heads of {head_dim} values, {groups} key-value heads; "
                "the first must be a multiple of the last, and head_dim of 4"
            )
        rope = read.values.get("rope_parameters")
        rope = JsonObject({} if rope is None else rope, "vision_config.rope_parameters")
        if rope.values.get("rope_type", "default") not in ("default", "axial"):
            raise ConfigError(
                f"{rope.name('rope_type')} is {rope.values['rope_type']!r}; only 'axial' exists"
            )
        theta = rope.number("rope_theta", read.number("rope_theta", 0.0))
        eps = read.number("rms_norm_eps", 0.0)
        if theta <= 0 or eps <= 0:
            raise ConfigError(f"{read.file}: vision_config needs rope_theta and rms_norm_eps above 0")
        flags: dict[str, Any] = {}
        for key in ("standardize", "use_clipped_linears"):
            flags[key] = read.values.get(key)
            if not isinstance(flags[key], bool):
                raise ConfigError(f"{read.name(key)} must be true or false, found {flags[key]!r}")
        return cls(
            hidden_size=read.size("hidden_size", "to build the tower"),
            intermediate_size=read.size("intermediate_size", "to build the tower"),
            num_hidden_layers=read.size("num_hidden_layers", "to build the tower", _MOST_LAYERS),
            num_attention_heads=heads,
            num_key_value_heads=groups,
            head_dim=head_dim,
            patch_size=read.size("patch_size", "to cut images"),
            pooling_kernel_size=read.size("pooling_kernel_size", "to pool patches"),
            position_embedding_size=read.size("position_embedding_size", "to place patches"),
            rope_theta=theta,
            rms_norm_eps=eps,
            **flags,
        )
