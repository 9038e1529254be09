"""config.json and generation_config.json in every dialect, and what is said about broken ones."""

from __future__ import annotations

import copy
import logging
from pathlib import Path
from typing import Any

import pytest
from oracle import tiny

from mlx_diffusiongemma.config.generation import GenerationConfig
from mlx_diffusiongemma.config.model import FULL, SLIDING, ModelConfig
from mlx_diffusiongemma.errors import ConfigError, InputError

# text_config of google/diffusiongemma-26B-A4B-it, sizes only
RELEASED = {
    "hidden_size": 2816,
    "intermediate_size": 2112,
    "moe_intermediate_size": 704,
    "num_experts": 128,
    "top_k_experts": 8,
    "num_hidden_layers": 30,
    "layer_types": ([SLIDING] * 5 + [FULL]) * 5,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 256,
    "global_head_dim": 512,
    "num_global_key_value_heads": 2,
    "sliding_window": 1024,
    "vocab_size": 262144,
    "max_position_embeddings": 262144,
    "rope_parameters": {
        FULL: {"rope_type": "proportional", "rope_theta": 1e6, "partial_rotary_factor": 0.25},
        SLIDING: {"rope_type": "default", "rope_theta": 1e4},
    },
}
SIZES = [name for name, value in RELEASED.items() if isinstance(value, int)]


def released(**changes: Any) -> dict[str, Any]:
    text = copy.deepcopy(RELEASED) | changes
    return {"model_type": "diffusion_gemma", "canvas_length": 256, "text_config": text}


def test_the_released_shapes_are_read() -> None:
    config = ModelConfig.from_dict(released() | {"eos_token_id": [1, 106]})
    assert config.eos_token_id == (1, 106)
    assert config.text.head_dims == (256, 256, 256, 256, 256, 512) * 5
    assert config.text.kv_heads == (8, 8, 8, 8, 8, 2) * 5
    assert config.text.final_logit_softcapping == 30.0


@pytest.mark.parametrize("key", ["{}", "{:02}"])
def test_per_layer_config_says_the_same(key: str) -> None:
    original = released()
    saved = released(
        per_layer_config={
            key.format(i): {"head_dim": 512, "num_key_value_heads": 2} for i in (5, 11, 17, 23, 29)
        }
    )
    for name in ("global_head_dim", "num_global_key_value_heads"):
        del saved["text_config"][name]
    assert ModelConfig.from_dict(saved) == ModelConfig.from_dict(original)


@pytest.mark.parametrize("name", [*SIZES, "layer_types", "rope_parameters"])
def test_a_missing_size_is_named_and_never_guessed(name: str) -> None:
    values = released()
    del values["text_config"][name]
    with pytest.raises(ConfigError, match=rf"text_config\.{name} is missing \(needed"):
        ModelConfig.from_dict(values)


@pytest.mark.parametrize(("change", "complaint"), [
    ({"hidden_size": "2816"}, "hidden_size must be an integer from 1 to 1048576, found '2816'"),
    ({"num_experts": True}, "num_experts must be an integer from 1 to .*, found True"),
    ({"num_hidden_layers": 10_000}, "num_hidden_layers must be an integer from 1 to 128, found 10000"),
    ({"moe_intermediate_size": 2**31 - 1}, "moe_intermediate_size must be an integer from 1 to 1048576,"),
    ({"num_attention_heads": 2**16, "head_dim": 2**16}, r"65536 heads of 65536 are more than 2\*\*31"),
    ({"top_k_experts": 200}, "text_config.top_k_experts is 200, more than num_experts 128"),
    ({"num_key_value_heads": 3}, "layer 0 has 3 key-value heads, which do not divide"),
    ({"layer_types": [SLIDING]}, "must list sliding_attention or full_attention for each of 30 layers"),
    ({"hidden_activation": "silu"}, "hidden_activation is 'silu'"),
    ({"attention_bias": True}, "attention_bias is true"),
    ({"rms_norm_eps": "tiny"}, "rms_norm_eps must be a number, found 'tiny'"),
    ({"per_layer_config": []}, r"per_layer_config must be an object, found \[\]"),
    ({"rope_parameters": {FULL: {"rope_type": "yarn"}, SLIDING: {"rope_theta": 1.0}}}, "rope_type is 'yarn'"),
])  # fmt: skip
def test_impossible_values_are_named(change: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        ModelConfig.from_dict(released(**change))


def test_other_models_are_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"model_type is 'gemma3'; this package runs only 'diffusion_gemma'"
    ):
        ModelConfig.from_dict(released() | {"model_type": "gemma3"})


@pytest.mark.parametrize(("top", "text", "expected"), [
    ({"eos_token_id": [1, 106]}, {"eos_token_id": 1}, (1, 106)),
    ({}, {"eos_token_id": 106}, (106,)),
    ({"eos_token_id": None}, {"eos_token_id": [0, 106]}, (0, 106)),
    ({"eos_token_id": None}, {"eos_token_id": None}, (1,)),
    ({}, {}, (1,)),
])  # fmt: skip
def test_stop_ids_are_those_of_either_place(
    top: dict[str, Any], text: dict[str, Any], expected: tuple[int, ...]
) -> None:
    assert ModelConfig.from_dict(released(**text) | top).eos_token_id == expected


def test_unknown_keys_are_reported(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        ModelConfig.from_dict(released(num_extra_heads=3, **{"\x1b]0;title\x07\nfake": 1}))
    unknown = r"\x1b]0;title\x07 fake, num_extra_heads"
    assert caplog.messages == [f"config.json: text_config: unknown keys ignored: {unknown}"]


@pytest.mark.parametrize("dialect", tiny.DIALECTS)
def test_what_transformers_writes_has_no_unknown_keys(dialect: str, caplog: pytest.LogCaptureFixture) -> None:
    ModelConfig.from_dict(tiny.config(tiny.ROUGH, dialect))
    assert not caplog.messages


def test_generation_config_in_both_dialects() -> None:
    flat = {
        "max_new_tokens": 512, "max_denoising_steps": 24, "t_min": 0.3, "t_max": 0.9,
        "stability_threshold": 2, "confidence_threshold": 0.01, "eos_token_id": [1, 9],
        "sampler_config": {"_cls_name": "EntropyBoundSamplerConfig", "entropy_bound": 0.2},
        "transformers_version": "5.23.0",
    }  # fmt: skip
    nested = {k: v for k, v in flat.items() if not k.startswith("t_") and not k.endswith("threshold")} | {
        "linear_temperature_schedule_config": {"t_min": 0.3, "t_max": 0.9},
        "diffusion_stopping_config": {"stability_threshold": 2, "confidence_threshold": 0.01},
    }
    expected = GenerationConfig(512, 24, 0.3, 0.9, 0.2, 2, 0.01, (1, 9))
    assert GenerationConfig.from_dict(flat) == GenerationConfig.from_dict(nested) == expected


def test_without_a_generation_config_the_models_stop_ids_count(tmp_path: Path) -> None:
    assert GenerationConfig.load(tmp_path, (1, 7)) == GenerationConfig(eos_token_id=(1, 7))


@pytest.mark.parametrize(("name", "value", "range_"), [
    ("max_new_tokens", 0, "from 1 to"),
    ("max_new_tokens", 1.5, "an integer from 1 to"),
    ("max_denoising_steps", True, "an integer from 1 to 10000"),
    ("entropy_bound", -0.1, "from 0 to"),
    ("entropy_bound", float("nan"), "a number from 0 to"),
    ("t_max", "hot", "from 0.001 to 100"),
    ("confidence_threshold", float("inf"), "from 0 to"),
])  # fmt: skip
def test_settings_out_of_range_name_the_range(name: str, value: Any, range_: str) -> None:
    with pytest.raises(InputError, match=f"{name} must be .*{range_}"):
        GenerationConfig().override(**{name: value})


def test_unknown_settings_are_refused_and_none_keeps_a_value() -> None:
    with pytest.raises(InputError, match="unknown setting 'frobnicate'; known settings are max_new_tokens"):
        GenerationConfig().override(frobnicate=0.5)
    assert GenerationConfig().override(t_min=None) == GenerationConfig()
    with pytest.raises(InputError, match=r"t_min 0\.9 is above t_max 0\.8"):
        GenerationConfig().override(t_min=0.9)
