"""Reads config.json, in both of its dialects.

Google's file has `global_head_dim` and `num_global_key_value_heads` for layers with full attention.
Transformers >= 5.23 saves them as `per_layer_config`. Sizes are never guessed: if one is missing, a
`ConfigError` names its key.
"""

from __future__ import annotations

import dataclasses
import logging
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..console.messages import one_line, shown
from ..errors import ConfigError
from .json_file import JsonObject, read_json, token_ids
from .ranges import integer

logger = logging.getLogger(__name__)

MODEL_TYPE = "diffusion_gemma"
_MOST_LAYERS, _MOST_TOKENS, _MOST_CANVAS = (
    128,
    2**31 - 1,
    2**16,
)  # this model has 30 layers, each takes 1 ms to build
_EOS_TOKEN_ID = 1  # default, as in Transformers
SLIDING, FULL = "sliding_attention", "full_attention"

# Keys that Transformers or mlx-vlm write into every file. No warning is logged for them.
_BOOKKEEPING = set(
    """
    transformers_version architectures dtype torch_dtype model_type _name_or_path id2label label2id
    initializer_range attention_dropout chunk_size_feed_forward is_encoder_decoder problem_type return_dict
    output_hidden_states output_attentions use_cache bos_token_id eos_token_id pad_token_id
    tie_word_embeddings generation_config text_config vision_config quantization quantization_config
    boi_token_id eoi_token_id image_token_id video_token_id canvas_length
    global_head_dim num_global_key_value_heads per_layer_config head_dim num_key_value_heads
    attention_bias use_bidirectional_attention hidden_activation
    """.split()  # noqa: SIM905
)


@dataclass(frozen=True)
class RopeParameters:
    """Rotary embedding of one layer type. `rotated` is the share of a head's values that are rotated."""

    theta: float
    rotated: float


@dataclass(frozen=True)
class TextConfig:
    """Shapes of the stack of layers, which both encodes and decodes. Names are Hugging Face's.

    `head_dims[i]`, `kv_heads[i]` and `layer_types[i]` belong to layer i.
    """

    hidden_size: int
    intermediate_size: int
    moe_intermediate_size: int
    num_experts: int
    top_k_experts: int
    num_hidden_layers: int
    num_attention_heads: int
    sliding_window: int
    vocab_size: int
    max_position_embeddings: int
    layer_types: tuple[str, ...]
    head_dims: tuple[int, ...]
    kv_heads: tuple[int, ...]
    rope: dict[str, RopeParameters]
    rms_norm_eps: float = 1e-6
    final_logit_softcapping: float = 30.0

    @classmethod
    def from_dict(cls, values: Any) -> TextConfig:
        """Return the shapes in config.json's `text_config`. Raise `ConfigError` for a missing or bad key."""
        read = JsonObject(values, "text_config")
        activation = values.get("hidden_activation", "gelu_pytorch_tanh")
        if activation != "gelu_pytorch_tanh":
            raise ConfigError(
                f"{read.name('hidden_activation')} is {activation!r}, only gelu_pytorch_tanh exists"
            )
        if values.get("attention_bias"):
            raise ConfigError(f"{read.name('attention_bias')} is true, but DiffusionGemma has no biases")
        layers = read.size("num_hidden_layers", "to build the layers", _MOST_LAYERS)
        layer_types = _layer_types(read, layers)
        head_dims, kv_heads = _attention_shapes(read, layer_types)
        config = cls(
            hidden_size=read.size("hidden_size", "to build every layer"),
            intermediate_size=read.size("intermediate_size", "to build the dense MLP"),
            moe_intermediate_size=read.size("moe_intermediate_size", "to build the experts"),
            num_experts=read.size("num_experts", "to build the router"),
            top_k_experts=read.size("top_k_experts", "to route tokens"),
            num_hidden_layers=layers,
            num_attention_heads=read.size("num_attention_heads", "to build attention"),
            sliding_window=read.size("sliding_window", "to build sliding attention", _MOST_TOKENS),
            vocab_size=read.size("vocab_size", "to build the embedding"),
            max_position_embeddings=read.size(
                "max_position_embeddings", "as the context limit", _MOST_TOKENS
            ),
            layer_types=layer_types,
            head_dims=head_dims,
            kv_heads=kv_heads,
            rope=_rope_parameters(read),
            rms_norm_eps=read.number("rms_norm_eps", cls.rms_norm_eps),
            final_logit_softcapping=read.number("final_logit_softcapping", cls.final_logit_softcapping),
        )
        for name in ("rms_norm_eps", "final_logit_softcapping"):
            if getattr(config, name) <= 0:
                raise ConfigError(f"{read.name(name)} must be above 0, found {getattr(config, name):g}")
        if values.get("use_bidirectional_attention") == "all":
            raise ConfigError(
                f"{read.name('use_bidirectional_attention')} is 'all'; only a causal encoder exists"
            )
        if config.top_k_experts > config.num_experts:
            raise ConfigError(
                f"{read.name('top_k_experts')} is {config.top_k_experts}, "
                f"more than num_experts {config.num_experts}"
            )
        if config.num_attention_heads * max(head_dims) > _MOST_TOKENS:
            raise ConfigError(
                f"{read.file}: {config.num_attention_heads} heads of {max(head_dims)} are more than "
                "2**31 - 1 values"
            )
        for i, heads in enumerate(kv_heads):
            if config.num_attention_heads % heads:
                raise ConfigError(
                    f"{read.file}: layer {i} has {heads} key-value heads, "
                    f"which do not divide num_attention_heads {config.num_attention_heads}"
                )
        _report_unknown(
            values, "text_config", {f.name for f in dataclasses.fields(cls)} | {"rope_parameters"}
        )
        return config


@dataclass(frozen=True)
class ModelConfig:
    """Values of config.json.

    quantization: the block of that name, or None.
    vision: the block `vision_config` as it is, or None. `VisionConfig` checks it when an image comes.
    image_token_id: id that stands for a soft token, or None.
    """

    text: TextConfig
    canvas_length: int
    eos_token_id: tuple[int, ...]
    quantization: dict[str, Any] | None
    vision: Any = None
    image_token_id: int | None = None

    @classmethod
    def from_dict(cls, values: Any) -> ModelConfig:
        """Return the values of a parsed config.json. Raise `ConfigError` for a missing or bad key."""
        read = JsonObject(values, "")
        if values.get("model_type") != MODEL_TYPE:
            raise ConfigError(
                f"{read.name('model_type')} is {shown(values.get('model_type'))}; "
                "this package runs only 'diffusion_gemma'"
            )
        if "text_config" not in values:
            raise ConfigError(f"{read.name('text_config')} is missing (needed to build the model)")
        text = TextConfig.from_dict(values["text_config"])
        _report_unknown(values, "", set())
        # Transformers saves eos_token_id only in text_config.
        named = (values.get("eos_token_id"), values["text_config"].get("eos_token_id"))
        eos = next((value for value in named if value is not None), _EOS_TOKEN_ID)
        return cls(
            text=text,
            canvas_length=read.size("canvas_length", "to size the canvas", _MOST_CANVAS),
            eos_token_id=token_ids(eos, read.name("eos_token_id")),
            quantization=_quantization(values),
            vision=values.get("vision_config"),
            image_token_id=integer(values.get("image_token_id"), 0, 2**31 - 1),
        )

    @classmethod
    def load(cls, directory: str | Path) -> ModelConfig:
        """Read `directory`/config.json. Raise `ConfigError` if it is missing, unreadable or incomplete."""
        return cls.from_dict(read_json(Path(directory) / "config.json"))


def _quantization(values: dict[str, Any]) -> dict[str, Any] | None:
    """Return the quantization block, under either of its names, or None if it is empty or missing."""
    for name in ("quantization", "quantization_config"):
        if values.get(name):
            return JsonObject(values[name], name).values
    return None


def _layer_types(read: JsonObject, layers: int) -> tuple[str, ...]:
    types = read.values.get("layer_types")
    if types is None:
        raise ConfigError(f"{read.name('layer_types')} is missing (needed to know which layers slide)")
    if not isinstance(types, list) or len(types) != layers or any(t not in (SLIDING, FULL) for t in types):
        raise ConfigError(
            f"{read.name('layer_types')} must list {SLIDING} or {FULL} for each of {layers} layers"
        )
    return tuple(types)


def _attention_shapes(
    read: JsonObject, layer_types: tuple[str, ...]
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return head_dim and the number of key-value heads of each layer, from either dialect."""
    overrides = read.values.get("per_layer_config")
    if overrides is not None and not isinstance(overrides, dict):
        raise ConfigError(f"{read.name('per_layer_config')} must be an object, found {overrides!r}")
    per_layer = _by_layer(read, overrides or {}, len(layer_types))
    head_dims, kv_heads = [], []
    for i, kind in enumerate(layer_types):
        if i in per_layer:
            # Transformers omits a layer's value if it equals the shared one.
            layer = JsonObject({**read.values, **per_layer[i]}, f"text_config.per_layer_config.{i}")
            head_dims.append(layer.size("head_dim", f"to build attention of layer {i}"))
            kv_heads.append(layer.size("num_key_value_heads", f"to build attention of layer {i}"))
        elif kind == SLIDING or overrides is not None:
            head_dims.append(read.size("head_dim", "to build attention"))
            kv_heads.append(read.size("num_key_value_heads", "to build attention"))
        else:
            head_dims.append(read.size("global_head_dim", "to build full attention; or per_layer_config"))
            kv_heads.append(
                read.size("num_global_key_value_heads", "to build full attention; or per_layer_config")
            )
    return tuple(head_dims), tuple(kv_heads)


def _by_layer(read: JsonObject, overrides: dict[str, Any], layers: int) -> dict[int, dict[str, Any]]:
    """Return `per_layer_config` by layer number. Transformers pads its keys with zeros ("05")."""
    by_layer = {}
    for key, values in overrides.items():
        if not re.fullmatch("[0-9]{1,4}", key) or int(key) >= layers:
            raise ConfigError(
                f"{read.name('per_layer_config')} has key {shown(key)}; layers are 0 to {layers - 1}"
            )
        by_layer[int(key)] = JsonObject(values, f"text_config.per_layer_config.{key}").values
    return by_layer


def _rope_parameters(read: JsonObject) -> dict[str, RopeParameters]:
    parameters = read.values.get("rope_parameters")
    if not isinstance(parameters, dict):
        raise ConfigError(f"{read.name('rope_parameters')} is missing (needed to rotate queries and keys)")
    rope = {}
    for kind, rope_type in ((SLIDING, "default"), (FULL, "proportional")):
        one = JsonObject(parameters.get(kind, {}), f"text_config.rope_parameters.{kind}")
        actual = one.values.get("rope_type", rope_type)
        if actual != rope_type or one.number("factor", 1.0) != 1.0:
            raise ConfigError(
                f"{one.name('rope_type')} is {actual!r} (scaled or not); only plain {rope_type!r} exists"
            )
        if "rope_theta" not in one.values:
            raise ConfigError(f"{one.name('rope_theta')} is missing (needed to rotate queries and keys)")
        theta, rotated = one.number("rope_theta", 0.0), one.number("partial_rotary_factor", 1.0)
        if theta <= 0 or not 0 < rotated <= 1:
            raise ConfigError(
                f"{one.file}: {one.where} has rope_theta {theta:g} and partial_rotary_factor {rotated:g}; "
                "the first must be above 0, the second above 0 and at most 1"
            )
        rope[kind] = RopeParameters(theta, rotated)
    return rope


def _report_unknown(values: dict[str, Any], where: str, known: set[str]) -> None:
    unknown = sorted(set(values) - known - _BOOKKEEPING)
    if unknown:
        names = one_line(", ".join(unknown), 300)
        logger.warning("config.json: %s: unknown keys ignored: %s", where or "top level", names)
