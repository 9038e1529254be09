"""Interoperability with mlx-vlm, live: each loads what the other converts, and computes the same logits."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx_vlm  # the parity tests fail without mlx-vlm; they never skip
import numpy as np
import pytest
from mlx.utils import tree_map
from mlx_vlm.convert import convert as convert_with_mlx_vlm
from mlx_vlm.utils import load_model as load_with_mlx_vlm
from oracle import demo, tiny
from support.converting import one_tensor_per_expert, save, tensors_of

from mlx_diffusiongemma.checkpoint.loading import load, load_model
from mlx_diffusiongemma.checkpoint.weights import tensor_infos
from mlx_diffusiongemma.converter import convert

TOLERANCE = 1e-3
TEMPERATURE = 0.7  # of the logits that the second look at a canvas is conditioned on

# What mlx-vlm's `--q-...` flags make of a checkpoint: the published conversions' names. All but bf16 keep
# embedding, attention, dense MLP and router at 8 bits, in overrides without `mode`.
THEIR_RECIPES: dict[str, dict[str, Any]] = {
    "4bit": {"quantize": True, "q_bits": 4, "q_group_size": 64},
    "8bit": {"quantize": True, "q_bits": 8, "q_group_size": 64},
    "mxfp4": {"quantize": True, "q_mode": "mxfp4", "q_bits": None, "q_group_size": None},
    "mxfp8": {"quantize": True, "q_mode": "mxfp8", "q_bits": None, "q_group_size": None},
    "nvfp4": {"quantize": True, "q_mode": "nvfp4", "q_bits": None, "q_group_size": None},
    "bf16": {"dtype": "bfloat16"},
}
OUR_RECIPES: dict[str, dict[str, Any]] = {
    name: {"recipe": name}
    for name in ("mixed-4bit", "mixed-4bit-bf16-embed", "4bit", "8bit", "mxfp4", "nvfp4", "bf16")
} | {
    "mxfp8": {"recipe": "8bit", "q_mode": "mxfp8"},
    # Every class its own bits, group size and mode, so that a default taken for an override shows.
    "motley": {
        "recipe": "mixed-4bit",
        "overrides": (
            "experts=4:16:nvfp4",
            "attention=8:32:mxfp8",
            "mlp=4:32:mxfp4",
            "self_conditioning=3:32",
            "embedding=6:32",
            "router=8:64",
        ),
    },
}
SOURCES = ("demo", "tiny")


@pytest.fixture(autouse=True)
def float32_embeddings(monkeypatch: pytest.MonkeyPatch) -> None:
    """MLX dequantizes a table in mxfp8 to bf16 whatever the activations are; mlx-vlm scales it in that."""
    look_up = nn.QuantizedEmbedding.__call__
    monkeypatch.setattr(nn.QuantizedEmbedding, "__call__", lambda self, ids: widened(look_up(self, ids)))


def build_tiny(directory: Path, dialect: str = "original", dtype: mx.Dtype = mx.float32) -> Path:
    """A tiny Hugging Face checkpoint that both converters take: with the demo's tokenizer."""
    tiny.build(tiny.ROUGH, directory, dialect, vocab=704)
    for pattern in ("tokenizer*", "chat_template*"):
        for file in demo.DIRECTORY.glob(pattern):
            shutil.copy(file, directory)
    save(directory, {name: tensor.astype(dtype) for name, tensor in tensors_of(directory).items()})
    return directory


def source_of(name: str, scratch: Path) -> Path:
    return demo.DIRECTORY if name == "demo" else build_tiny(scratch / "source")


def prompt_and_canvases() -> tuple[mx.array, list[mx.array]]:
    """A prompt longer than the tiny window, and three canvases, the last behind the second."""
    rng = np.random.default_rng(5)
    return mx.array(rng.integers(0, 704, (1, 40))), [
        mx.array(rng.integers(0, 704, (1, 16))) for _ in range(3)
    ]


def widened(array: mx.array) -> mx.array:
    return array.astype(mx.float32) if mx.issubdtype(array.dtype, mx.floating) else array


def our_logits(directory: Path) -> np.ndarray:
    """Logits [3, 1, 16, 704]: a canvas, a second conditioned on the first, a third after the second."""
    model = load_model(directory, dtype=mx.float32)
    prompt, canvases = prompt_and_canvases()
    cache = model.make_cache()
    model.encode(prompt, cache)
    first = model.decode(canvases[0], cache)
    soft = model.dense_soft_embedding(first / TEMPERATURE)
    second = model.decode(canvases[1], cache, soft)
    model.encode(canvases[1], cache)
    return np.stack([np.array(x) for x in (first, second, model.decode(canvases[2], cache))])


def their_logits(directory: Path) -> np.ndarray:
    """The same of mlx-vlm's model, in float32 as well. It loads strictly: nothing missing, nothing extra."""
    model: Any = load_with_mlx_vlm(directory)
    model.update(tree_map(widened, model.parameters()))
    prompt, canvases = prompt_and_canvases()
    cache = model.diffusion_update_cache(prompt, cache=model.make_cache())
    first = model.diffusion_decoder_logits(canvases[0], cache)
    table = model.diffusion_prepare_self_conditioning()
    belief = model.diffusion_self_conditioning(first / TEMPERATURE, table)
    second = model.diffusion_decoder_logits(canvases[1], cache, belief)
    cache = model.diffusion_update_cache(canvases[1], cache=cache)
    third = model.diffusion_decoder_logits(canvases[2], cache)
    return np.stack([np.array(x) for x in (first, second, third)])


def assert_same_logits(directory: Path) -> np.ndarray:
    """Both load the directory and agree; returns our logits."""
    ours = our_logits(directory)
    np.testing.assert_allclose(ours, their_logits(directory), rtol=0, atol=TOLERANCE)
    return ours


def is_quantized(directory: Path) -> bool:
    return any(name.endswith(".scales") for name in tensor_infos(directory))


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("recipe", THEIR_RECIPES)
def test_what_mlx_vlm_converts_loads_here(tmp_path: Path, recipe: str, source: str) -> None:
    out = tmp_path / "out"
    convert_with_mlx_vlm(str(source_of(source, tmp_path)), str(out), **THEIR_RECIPES[recipe])
    assert is_quantized(out) == (recipe != "bf16")
    if recipe != "bf16":
        quantization = json.loads((out / "config.json").read_text())["quantization"]
        assert "mode" not in quantization["model.decoder.embed_tokens"]
    assert_same_logits(out)


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("recipe", OUR_RECIPES)
def test_mlx_vlm_loads_what_we_convert(tmp_path: Path, recipe: str, source: str) -> None:
    out = convert(source_of(source, tmp_path), tmp_path / "out", **OUR_RECIPES[recipe])
    assert is_quantized(out) == (recipe != "bf16")
    assert_same_logits(out)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_sources_of_every_dtype(tmp_path: Path, dtype: str) -> None:
    """Converted by either, both compute the same; the two recipes differ in router and self-conditioning."""
    source = build_tiny(tmp_path / "source", dtype=getattr(mx, dtype))
    assert {info.dtype for info in tensor_infos(source).values()} == {
        {"float16": "F16", "bfloat16": "BF16", "float32": "F32"}[dtype]
    }
    assert_same_logits(convert(source, tmp_path / "ours"))
    convert_with_mlx_vlm(str(source), str(tmp_path / "theirs"), **THEIR_RECIPES["4bit"])
    assert_same_logits(tmp_path / "theirs")


def test_one_recipe_stores_the_same_bits_either_way(tmp_path: Path) -> None:
    """Where the recipes coincide, so do the tensors: names, dtypes, shapes and every bit."""
    source = build_tiny(tmp_path / "source", dtype=mx.bfloat16)
    ours = convert(source, tmp_path / "ours", overrides=("router=8", "self_conditioning=4"))
    convert_with_mlx_vlm(str(source), str(tmp_path / "theirs"), **THEIR_RECIPES["4bit"])
    our_tensors: Any = mx.load(str(ours / "model.safetensors"))
    their_tensors: Any = mx.load(str(tmp_path / "theirs" / "model.safetensors"))
    named = {
        f"{name}.weight" if name.endswith(("gate_up_proj", "experts.down_proj")) else name: tensor
        for name, tensor in our_tensors.items()
    }
    assert named.keys() == their_tensors.keys()
    for name, tensor in named.items():
        assert tensor.dtype == their_tensors[name].dtype, name
        assert mx.array_equal(tensor, their_tensors[name], equal_nan=True), name


@pytest.mark.parametrize("dialect", tiny.DIALECTS)
def test_either_dialect_of_config_becomes_what_mlx_vlm_loads(tmp_path: Path, dialect: str) -> None:
    """mlx-vlm knows the original dialect only, so that is what a conversion speaks whatever its source."""
    original = convert(build_tiny(tmp_path / "original"), tmp_path / "from-original")
    out = convert(build_tiny(tmp_path / "source", dialect), tmp_path / "out")
    np.testing.assert_array_equal(assert_same_logits(out), our_logits(original))


def test_experts_in_tensors_of_their_own(tmp_path: Path) -> None:
    stacked = build_tiny(tmp_path / "stacked")
    apart = build_tiny(tmp_path / "apart")
    save(apart, one_tensor_per_expert(tensors_of(apart), split_gates=True))
    ours = assert_same_logits(convert(apart, tmp_path / "ours"))
    np.testing.assert_array_equal(ours, our_logits(convert(stacked, tmp_path / "ours-stacked")))
    convert_with_mlx_vlm(str(apart), str(tmp_path / "theirs"), **THEIR_RECIPES["4bit"])
    assert_same_logits(tmp_path / "theirs")


def test_mlx_vlm_loads_model_and_processor_of_our_conversion_of_the_demo(tmp_path: Path) -> None:
    """All that `mlx_vlm.generate` needs, the tokenizer included."""
    out = convert("demo", tmp_path / "out")
    _, processor = mlx_vlm.load(str(out))
    _, tokenizer = load(out)
    text = "What is 345 + 78?"
    assert processor.tokenizer.encode(text, add_special_tokens=False) == tokenizer.encode(text)
