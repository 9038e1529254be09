"""Recipes: which class gets what, and what is refused."""

from __future__ import annotations

import pytest

from mlx_diffusiongemma.converter.recipes import QUANTIZABLE, Quantization, choose, tensor_class
from mlx_diffusiongemma.errors import InputError

LAYER = "model.decoder.layers.3"


@pytest.mark.parametrize(("name", "kind"), [
    (f"{LAYER}.experts.gate_up_proj", "experts"),
    (f"{LAYER}.experts.17.down_proj.weight", "experts"),
    (f"{LAYER}.self_attn.k_proj.weight", "attention"),
    (f"{LAYER}.self_attn.k_norm.weight", "norms"),
    (f"{LAYER}.mlp.gate_proj.weight", "mlp"),
    (f"{LAYER}.router.proj.weight", "router"),
    (f"{LAYER}.router.scale", "norms"),
    (f"{LAYER}.router.per_expert_scale", "norms"),
    (f"{LAYER}.layer_scalar", "norms"),
    ("model.encoder.language_model.layers.3.layer_scalar", "norms"),
    ("model.decoder.embed_tokens.weight", "embedding"),
    ("model.decoder.self_conditioning.up_proj.weight", "self_conditioning"),
    ("model.decoder.self_conditioning.pre_norm.weight", "norms"),
    ("model.encoder.vision_tower.encoder.layers.0.self_attn.q_proj.weight", "vision"),
    ("model.encoder.embed_vision.embedding_projection.weight", "vision"),
])  # fmt: skip
def test_every_tensor_has_a_class(name: str, kind: str) -> None:
    assert tensor_class(name) == kind


def test_the_default_keeps_precision_where_it_matters() -> None:
    chosen = choose()
    assert chosen.pop("experts") == Quantization(4, 64, "affine")
    assert set(chosen.values()) == {Quantization(8, 64, "affine")}
    assert set(chosen) == {"attention", "mlp", "self_conditioning", "embedding"}
    assert "embedding" not in choose("mixed-4bit-bf16-embed")
    assert choose("bf16") == {}
    assert set(choose("4bit")) == set(choose("8bit")) == set(QUANTIZABLE)


def test_changes_apply_to_all_that_the_recipe_quantizes_and_overrides_to_one_class() -> None:
    chosen = choose("mixed-4bit", q_bits=6, q_group_size=32, overrides=["experts=3", "router=8:128"])
    assert chosen["experts"] == Quantization(3, 64, "affine")
    assert chosen["router"] == Quantization(8, 128, "affine")
    assert chosen["attention"] == Quantization(6, 32, "affine")
    assert "embedding" not in choose(overrides=["embedding=16"])
    assert choose(overrides=["experts=4:16:nvfp4"])["experts"] == Quantization(4, 16, "nvfp4")


def test_a_mode_brings_its_only_width_and_group_size_along() -> None:
    assert choose(q_mode="mxfp8")["experts"] == Quantization(8, 32, "mxfp8")
    assert choose("nvfp4", q_mode="affine")["experts"] == Quantization(4, 64, "affine")


@pytest.mark.parametrize(("settings", "message"), [
    ({"recipe": "5bit"}, r"recipe '5bit' is unknown; there are mixed-4bit, "),
    ({"q_bits": 7}, r"recipe mixed-4bit, \w+: affine has no bits 7, only 1, 2, 3, 4, 5, 6, 8"),
    ({"q_group_size": 16}, r"affine has no group size 16, only 32, 64, 128"),
    ({"q_mode": "fp4"}, r"mode 'fp4' is unknown; MLX has affine, mxfp4, mxfp8, nvfp4"),
    ({"q_mode": "mxfp4", "q_bits": 8}, r"mxfp4 has no bits 8, only 4"),
    ({"recipe": "bf16", "q_bits": 4}, r"recipe bf16 quantizes nothing"),
    ({"overrides": ["expert=4"]}, r"--set expert=4: 'expert': no such class; there are experts, "),
    ({"overrides": ["norms=8"]}, r"--set norms=8: 'norms': never quantized"),
    ({"overrides": ["vision=8"]}, r"'vision': never quantized"),
    ({"overrides": ["experts"]}, r"--set experts: '' is not BITS"),
    ({"overrides": ["experts=four"]}, r"'four' is not BITS\[:GROUP\[:MODE\]\]"),
    ({"overrides": ["experts=4:32:mxfp4:1"]}, r"is not BITS"),
    ({"overrides": ["experts=4:64:mxfp4"]}, r"--set experts=4:64:mxfp4: mxfp4 has no group size 64"),
    ({"overrides": ["experts=16:64"]}, r"16 bits are not quantized, so they have no groups"),
    ({"overrides": [""]}, r"--set : '': no such class"),
])  # fmt: skip
def test_what_mlx_does_not_have_is_refused(settings: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        choose(**settings)
