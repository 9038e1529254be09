"""Conversion: stored bytes, layout, config.json and record."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
import safetensors.numpy
from mlx.utils import tree_flatten
from support.converting import (
    bytes_of,
    copied,
    one_tensor_per_expert,
    quantized,
    save,
    tensors_of,
    tiny_source,
)

from mlx_diffusiongemma.checkpoint.loading import load_model
from mlx_diffusiongemma.checkpoint.tied_weights import parameter_name
from mlx_diffusiongemma.checkpoint.weights import tensor_infos
from mlx_diffusiongemma.converter import convert, quantizing, writing
from mlx_diffusiongemma.converter.recipes import RECIPES, choose, tensor_class


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return tiny_source(tmp_path / "source", "transformers")


def canvas_logits(model: Any) -> mx.array:
    cache = model.make_cache()
    model.encode(mx.arange(40)[None], cache)
    return model.decode(mx.arange(16)[None], cache)


def test_weights_are_what_quantize_and_dequantize_make_of_the_source(source: Path, tmp_path: Path) -> None:
    """The converted model equals the source model whose weights are quantized and dequantized."""
    target = convert(source, tmp_path / "out")
    rounded, converted = load_model(source), load_model(target)
    parameters: Any = tree_flatten(rounded.parameters())
    names = dict(tree_flatten(converted.parameters()))
    for name, weight in parameters:
        path = name.removesuffix(".weight")
        if f"{path}.scales" in names:
            bits = 4 if ".experts." in name else 8
            weight = mx.dequantize(*mx.quantize(weight, 64, bits), group_size=64, bits=bits)
        rounded.load_weights([(name, weight)], strict=False)
    first = canvas_logits(rounded)
    np.testing.assert_allclose(first, canvas_logits(converted), atol=1e-4)
    soft_a, soft_b = rounded.dense_soft_embedding(first), converted.dense_soft_embedding(first)
    np.testing.assert_allclose(soft_a, soft_b, atol=1e-4)  # the packed table, multiplied untransposed


def test_shards_have_every_tensor(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # MLX's own writer divides the file in another order than that of the names.
    save(source, tensors_of(source))
    whole = canvas_logits(load_model(convert(source, tmp_path / "whole")))
    monkeypatch.setattr(writing, "SHARD_BYTES", 50_000)
    target = convert(source, tmp_path / "sharded")
    files = sorted(path.name for path in target.glob("*.safetensors"))
    assert len(files) > 3
    assert files[0] == f"model-00001-of-{len(files):05d}.safetensors"
    index = json.loads((target / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"].values()) == set(files)
    assert index["metadata"]["total_size"] == sum(info.nbytes for info in tensor_infos(target).values())
    np.testing.assert_array_equal(canvas_logits(load_model(target)), whole)
    # The source is read from front to back.
    places = {parameter_name(name): info.offset for name, info in tensor_infos(source).items()}
    order = {name: index["weight_map"][name] for name in sorted(places, key=places.__getitem__)}
    assert list(order.values()) == sorted(order.values())
    assert list(order) != sorted(order)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("recipe", ["mixed-4bit", "nvfp4"])
def test_the_layout_is_that_of_safetensors(recipe: str, dtype: str, source: Path, tmp_path: Path) -> None:
    """Byte by byte equal to the file of its own writer."""
    data = (convert(source, tmp_path / "out", recipe=recipe, dtype=dtype) / "model.safetensors").read_bytes()
    assert data == safetensors.numpy.save(safetensors.numpy.load(data), {"format": "mlx"})


def test_tensors_are_aligned(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writing, "SHARD_BYTES", 50_000)
    dtypes = (mx.float32, mx.float16, mx.bfloat16)
    tensors = sorted(tensors_of(source).items())
    save(source, {name: tensor.astype(dtypes[i % 3]) for i, (name, tensor) in enumerate(tensors)})
    for recipe in ("mixed-4bit", "mxfp4"):
        infos = tensor_infos(convert(source, tmp_path / recipe, recipe=recipe)).values()
        assert {info.dtype for info in infos} >= {"F32", "U32", "BF16", "F16"}
        assert not [info.name for info in infos if info.offset % info.item_bytes]


def test_the_quantization_block_has_both_names(source: Path, tmp_path: Path) -> None:
    config = json.loads((convert(source, tmp_path / "out") / "config.json").read_text())
    assert config["quantization"] == config["quantization_config"]
    assert config["quantization"]["bits"] == 4
    embedding = {"group_size": 64, "bits": 8, "mode": "affine"}
    assert config["quantization"]["model.decoder.embed_tokens"] == embedding


def test_expert_stacks_may_have_a_weight_suffix(source: Path, tmp_path: Path) -> None:
    """Other MLX conversions name them so. They must not stay unquantized."""
    plain = bytes_of(convert(source, tmp_path / "plain"))
    save(source, {parameter_name(name): tensor for name, tensor in tensors_of(source).items()})
    assert bytes_of(convert(source, tmp_path / "suffixed")) == plain


@pytest.mark.parametrize(
    ("recipe", "chunk_bytes"),
    [("mixed-4bit", quantizing.CHUNK_BYTES), *((recipe, 3000) for recipe in RECIPES)],
)
def test_every_recipe_stores_what_mlx_makes_of_whole_tensors(
    recipe: str, chunk_bytes: int, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quantizing, "CHUNK_BYTES", chunk_bytes)
    target = convert(source, tmp_path / "out", recipe=recipe)
    before, after = tensors_of(source), tensors_of(target)
    choices = choose(recipe)
    for name, tensor in before.items():
        how = choices.get(tensor_class(name))
        path = name.removesuffix(".weight")
        if how is None:
            expected = {name: tensor.astype(mx.bfloat16) if recipe == "bf16" else tensor}
        else:
            parts = mx.quantize(tensor, how.group_size, how.bits, mode=how.mode)
            expected = dict(zip((f"{path}.weight", f"{path}.scales", f"{path}.biases"), parts, strict=False))
        for key, value in expected.items():
            stored = after.pop(key)
            assert stored.dtype == value.dtype, key
            assert mx.array_equal(stored, value), key
    assert not after
    load_model(target)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_dtype_is_that_of_all_unquantized_tensors(dtype: str, source: Path, tmp_path: Path) -> None:
    config = json.loads((source / "config.json").read_text())
    config["dtype"] = config["text_config"]["dtype"] = "bfloat16"  # as Transformers writes it
    (source / "config.json").write_text(json.dumps(config))
    tensors = tensors_of(convert(source, tmp_path / "out", dtype=dtype))
    kinds = {tensor.dtype for tensor in tensors.values()}
    assert kinds == {getattr(mx, dtype), mx.uint32}
    before = tensors_of(source)["model.decoder.norm.weight"]
    assert mx.array_equal(tensors["model.decoder.norm.weight"], before.astype(getattr(mx, dtype)))
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["dtype"] == config["text_config"]["dtype"] == dtype


@pytest.mark.parametrize(("name", "public_name"), [("my model", "my model"), ("a\nb", "a local directory")])
def test_paths_are_not_published(name: str, public_name: str, source: Path, tmp_path: Path) -> None:
    """The model card may be published. Paths contain names of people."""
    out = convert(source.rename(tmp_path / name), tmp_path / "out")
    assert json.loads((out / "conversion.json").read_text())["source"] == public_name
    assert str(tmp_path) not in (out / "README.md").read_text()


@pytest.mark.parametrize("split_gates", [False, True])
def test_one_tensor_per_expert_gives_the_same_bytes(split_gates: bool, source: Path, tmp_path: Path) -> None:
    apart = copied(source, tmp_path / "apart", one_tensor_per_expert(tensors_of(source), split_gates))
    assert bytes_of(convert(source, tmp_path / "a")) == bytes_of(convert(apart, tmp_path / "b"))


def test_the_recorded_error_is_the_relative_rms_of_each_class(source: Path, tmp_path: Path) -> None:
    record = json.loads((convert(source, tmp_path / "out") / "conversion.json").read_text())
    tensors = tensors_of(source)
    for kind, entry in record["classes"].items():
        how = entry["quantization"]
        if how is None:
            assert entry["rms_error"] is None
            continue
        squared_error = squared = 0.0
        for name, tensor in tensors.items():
            if tensor_class(name) == kind:
                back = mx.dequantize(*mx.quantize(tensor, **how), **how).astype(mx.float32)
                squared_error += (back - tensor.astype(mx.float32)).square().sum().item()
                squared += tensor.astype(mx.float32).square().sum().item()
        assert entry["rms_error"] == pytest.approx((squared_error / squared) ** 0.5, rel=1e-4)


@pytest.mark.parametrize("mode", ["mxfp4", "nvfp4", "mxfp8"])
def test_an_override_without_mode_means_affine(source: Path, tmp_path: Path, mode: str) -> None:
    """Repositories of the other modes have such overrides for their 8-bit embeddings."""
    how = choose(q_mode=mode)["experts"].to_dict()
    target = quantized(source, tmp_path / mode, how, {"group_size": 64, "bits": 8}, "embed_tokens")
    loaded: Any = load_model(target)
    assert loaded.decoder.embed_tokens.mode == "affine"
    assert loaded.decoder.layers[0].experts.down_proj.mode == mode
