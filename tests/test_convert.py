"""Conversion: what is written loads, stays close to its source, and nothing half-written is left."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten
from oracle import demo, tiny

from mlx_diffusiongemma.converter import conversion, convert
from mlx_diffusiongemma.errors import InputError
from mlx_diffusiongemma.loading import load_model
from mlx_diffusiongemma.weights import tensor_infos


@pytest.fixture
def source(tmp_path: Path) -> Path:
    directory = tiny.build(tiny.ROUGH, tmp_path / "source", "transformers")
    shutil.copy(demo.DIRECTORY / "tokenizer.json", directory)
    return directory


def canvas_logits(directory: Path) -> np.ndarray:
    model = load_model(directory)
    cache = model.make_cache()
    model.encode(mx.arange(20)[None], cache)
    return np.array(model.decode(mx.arange(16)[None], cache))


def test_experts_get_4_bits_the_rest_8_and_router_norms_and_vision_none(source: Path, tmp_path: Path) -> None:
    target = convert(source, tmp_path / "out")
    model = load_model(target)
    layer: Any = model.decoder.layers[0]
    assert layer.experts.gate_up_proj.bits == layer.experts.down_proj.bits == 4
    for module in (layer.self_attn.q_proj, layer.mlp.down_proj, model.decoder.self_conditioning.up_proj):
        assert module.bits == 8
    assert model.decoder.embed_tokens.bits == 8
    assert "scales" not in layer.router.proj
    before, after = tensor_infos(source), tensor_infos(target)
    vision = {name for name in before if "vision" in name}
    assert vision
    assert vision <= after.keys()


def test_quantized_weights_are_what_quantize_and_dequantize_make_of_the_source(
    source: Path, tmp_path: Path
) -> None:
    """The converted model equals the source model with every quantized weight replaced by its rounding."""
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
    cache_a, cache_b = rounded.make_cache(), converted.make_cache()
    for model, cache in ((rounded, cache_a), (converted, cache_b)):
        model.encode(mx.arange(40)[None], cache)
    canvas = mx.arange(16)[None]
    first = rounded.decode(canvas, cache_a)
    np.testing.assert_allclose(first, converted.decode(canvas, cache_b), atol=1e-4)
    soft_a, soft_b = rounded.dense_soft_embedding(first), converted.dense_soft_embedding(first)
    np.testing.assert_allclose(soft_a, soft_b, atol=1e-4)  # the packed table, multiplied untransposed


def test_shards_and_index_hold_everything(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = canvas_logits(convert(source, tmp_path / "whole"))
    monkeypatch.setattr(conversion, "_SHARD_BYTES", 50_000)
    target = convert(source, tmp_path / "sharded")
    files = sorted(path.name for path in target.glob("*.safetensors"))
    assert len(files) > 3
    assert files[0] == f"model-00001-of-{len(files):05d}.safetensors"
    index = json.loads((target / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"].values()) == set(files)
    assert index["metadata"]["total_size"] == sum(info.nbytes for info in tensor_infos(target).values())
    np.testing.assert_array_equal(canvas_logits(target), whole)


def test_both_names_of_the_quantization_block_are_written(source: Path, tmp_path: Path) -> None:
    config = json.loads((convert(source, tmp_path / "out") / "config.json").read_text())
    assert config["quantization"] == config["quantization_config"]
    assert config["quantization"]["bits"] == 4
    assert config["quantization"]["model.decoder.embed_tokens"] == {"group_size": 64, "bits": 8}


def test_a_failure_leaves_nothing_behind(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(conversion, "_name_shards", fail)
    before = set(tmp_path.iterdir())
    with pytest.raises(OSError, match="disk full"):
        convert(source, tmp_path / "out")
    assert set(tmp_path.iterdir()) == before


def test_what_cannot_be_converted_is_refused_before_anything_is_written(source: Path, tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    with pytest.raises(InputError, match="taken exists already"):
        convert(source, tmp_path / "taken")
    once = convert(source, tmp_path / "once")
    with pytest.raises(InputError, match="is quantized already"):
        convert(once, tmp_path / "twice")
    assert not (tmp_path / "twice").exists()


def test_a_width_that_groups_do_not_divide_is_named(tmp_path: Path) -> None:
    narrow = tiny.build(tiny.ROUGH, tmp_path / "narrow", "original", expert=32)
    shutil.copy(demo.DIRECTORY / "tokenizer.json", narrow)
    with pytest.raises(
        InputError, match=r"experts\.down_proj has width 32, which groups of 64 do not divide"
    ):
        convert(narrow, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_expert_stacks_may_have_a_weight_suffix(source: Path, tmp_path: Path) -> None:
    """As other MLX conversions name them; they must not slip through unquantized."""
    (file,) = source.glob("*.safetensors")
    tensors: Any = mx.load(str(file))
    renamed = {
        f"{k}.weight" if k.endswith(("experts.gate_up_proj", "experts.down_proj")) else k: v
        for k, v in tensors.items()
    }
    plain = canvas_logits(convert(source, tmp_path / "plain"))
    mx.eval(renamed)
    mx.save_safetensors(str(file), renamed)
    np.testing.assert_array_equal(canvas_logits(convert(source, tmp_path / "suffixed")), plain)


def test_sorted_rows_are_really_sorted(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`sorted_indices=True` on unsorted rows is wrong on a GPU and passes unnoticed on the CPU."""
    model, seen = load_model(source), []
    gather_mm = mx.gather_mm

    def watched(a: mx.array, b: mx.array, **kwargs: Any) -> mx.array:
        ids = np.array(kwargs["rhs_indices"]).ravel()
        seen.append(kwargs.get("sorted_indices", False))
        assert not seen[-1] or (np.diff(ids.astype(np.int64)) >= 0).all()
        return gather_mm(a, b, **kwargs)

    monkeypatch.setattr(mx, "gather_mm", watched)
    cache = model.make_cache()
    model.encode(mx.arange(90)[None], cache)
    model.encode(mx.arange(3)[None], cache)
    assert True in seen
    assert False in seen


@pytest.mark.parametrize(
    ("mode", "group_size", "bits"), [("mxfp4", 32, 4), ("nvfp4", 16, 4), ("mxfp8", 32, 8)]
)
def test_an_override_without_mode_means_affine(
    source: Path, tmp_path: Path, mode: str, group_size: int, bits: int
) -> None:
    """As repositories of the other modes have it for their 8-bit embeddings."""
    whole = {"group_size": group_size, "bits": bits, "mode": mode}
    override = {"group_size": 64, "bits": 8}
    model = load_model(source)

    def chosen(path: str, module: Any) -> bool | dict[str, Any]:
        if "router" in path or not hasattr(module, "to_quantized"):
            return False
        return override if path == "model.decoder.embed_tokens" else whole

    nn.quantize(model, class_predicate=chosen)
    target = tmp_path / mode
    shutil.copytree(source, target)
    parameters: Any = tree_flatten(model.parameters())
    mx.save_safetensors(str(target / "model.safetensors"), dict(parameters))
    config = json.loads((target / "config.json").read_text())
    config["quantization"] = {**whole, "model.decoder.embed_tokens": override}
    (target / "config.json").write_text(json.dumps(config))

    loaded: Any = load_model(target)
    assert loaded.decoder.embed_tokens.mode == "affine"
    assert loaded.decoder.layers[0].experts.down_proj.mode == mode
    cache = model.make_cache()
    model.encode(mx.arange(20)[None], cache)
    expected = np.array(model.decode(mx.arange(16)[None], cache))
    np.testing.assert_allclose(canvas_logits(target), expected, atol=1e-5)
