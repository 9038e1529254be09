"""Tied weights under other names and stored twice: read as if stored once, or refused by name."""

from __future__ import annotations

import json
import math
import os
import shutil
import tracemalloc
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import pytest
from click.testing import CliRunner
from mlx.utils import tree_flatten
from oracle import tiny
from support.bad_weights import pack
from support.converting import bytes_of, tiny_source
from support.tied_checkpoints import EMBEDDING, Tensors, different, silent

from mlx_diffusiongemma.checkpoint import tied_weights
from mlx_diffusiongemma.checkpoint.loading import load_model
from mlx_diffusiongemma.checkpoint.tied_weights import canonical_name, compare_copies, model_tensors
from mlx_diffusiongemma.checkpoint.weights import read_tensors, tensor_infos, weight_files
from mlx_diffusiongemma.cli import main
from mlx_diffusiongemma.converter import convert
from mlx_diffusiongemma.errors import CheckpointError

PLAIN: Tensors = {name: mx.array(tensor) for name, tensor in tiny.weights(tiny.ROUGH).items()}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return tiny_source(tmp_path / "source")


def refused(message: str) -> Any:
    return pytest.raises(CheckpointError, match=message)


def store(tensors: Tensors, directory: Path) -> Path:
    mx.save_safetensors(str(directory / "model.safetensors"), tensors)
    return directory


def parameters(directory: Path) -> dict[str, mx.array]:
    flat: Any = tree_flatten(load_model(directory).parameters())
    return dict(flat)


def assert_equal(found: dict[str, mx.array], expected: dict[str, mx.array]) -> None:
    assert found.keys() == expected.keys()
    for name in expected:
        assert mx.array_equal(found[name], expected[name]), name


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Any, dict[str, bytes]]]:
    """Parameters and conversion of the checkpoint whose weights are stored once, by dtype."""
    out = {}
    for dtype in (mx.float32, mx.bfloat16):
        root = tmp_path_factory.mktemp("plain")
        source = tiny_source(root / "source")
        store({name: tensor.astype(dtype) for name, tensor in PLAIN.items()}, source)
        out[str(dtype)] = parameters(source), bytes_of(convert(source, root / "out"))
    return out


@pytest.mark.parametrize("label", silent(PLAIN))
def test_weights_are_those_of_the_plain_checkpoint(
    label: str,
    plain: dict[str, tuple[Any, dict[str, bytes]]],
    source: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tied_weights, "_CHUNK_VALUES", 1000)
    store(silent(PLAIN)[label], source)
    expected, converted = plain[str(mx.bfloat16 if label == "other dtype" else mx.float32)]
    assert_equal(parameters(source), expected)
    assert bytes_of(convert(source, tmp_path / "out")) == converted


def test_a_conversion_is_verified_against_the_aliases(source: Path, tmp_path: Path) -> None:
    records = []
    for tensors in (PLAIN, silent(PLAIN)["encoder instead"]):
        target = convert(store(tensors, source), tmp_path / f"out{len(records)}", verify=True)
        records.append(json.loads((target / "conversion.json").read_text())["verification"])
    assert records[0] == records[1]


@pytest.mark.parametrize("case", different(PLAIN))
def test_two_values_of_a_weight_are_refused_by_name(
    case: str, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tied_weights, "_CHUNK_VALUES", 1000)
    tensors, name, other = different(PLAIN)[case]
    store(tensors, source)
    expected = rf"source: {name} and {other} are one weight of .* \(their values differ\); save"
    for use in (load_model, lambda source: convert(source, tmp_path / "out")):
        with refused(expected):
            use(source)
    assert os.listdir(tmp_path) == ["source"]
    # Plans read headers only.
    assert CliRunner().invoke(main, ["info", str(source)]).exit_code == 0
    assert CliRunner().invoke(main, ["convert", "--dry-run", str(source)]).exit_code == 0


@pytest.mark.parametrize("copy", [PLAIN[EMBEDDING][:-1], PLAIN[EMBEDDING].view(mx.uint32)])
def test_headers_alone_may_show_that_copies_differ(copy: mx.array, source: Path) -> None:
    store(PLAIN | {"lm_head.weight": mx.contiguous(copy)}, source)
    with refused(rf"{EMBEDDING} and lm_head\.weight are one weight of .* \(F32 \["):
        model_tensors(source)


def test_a_copy_in_another_dtype_must_have_the_same_values(source: Path) -> None:
    narrow = {name: tensor.astype(mx.bfloat16) for name, tensor in PLAIN.items()}
    store(narrow | {"lm_head.weight": PLAIN[EMBEDDING]}, source)  # before it was rounded
    with refused("their values differ"):
        load_model(source)
    halves = {"lm_head.weight": mx.full((3, 2), math.nan, mx.float16), EMBEDDING: mx.full((3, 2), math.nan)}
    store(halves, source)
    compare_copies(source)


def test_the_tables_of_a_plan_count_each_weight_once(source: Path) -> None:
    plain = CliRunner().invoke(main, ["info", str(source)]).stdout
    store(silent(PLAIN)["all names"] | silent(PLAIN)["buffers"], source)
    assert CliRunner().invoke(main, ["info", str(source)]).stdout == plain


def test_names_in_messages_are_those_of_the_file(source: Path) -> None:
    bare = {name.removeprefix("model."): tensor for name, tensor in PLAIN.items() if name != EMBEDDING}
    store(bare, source)
    with refused(f"{EMBEDDING} missing; the download is incomplete"):
        load_model(source)
    store(PLAIN | {"lm_head.bias": mx.zeros(96)}, source)
    with refused(r"source: lm_head\.bias unknown to this model"):
        load_model(source)
    store(silent(PLAIN)["lm_head instead"] | {"lm_head.weight": mx.zeros((95, 64))}, source)
    for use in (load_model, lambda source: convert(source, source.parent / "out")):
        with refused(r"lm_head\.weight is \[95, 64\], not \[96, 64\]"):
            use(source)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "base_model.model."])
def test_names_that_transformers_does_not_know_are_named(prefix: str, source: Path) -> None:
    store({prefix + name: tensor for name, tensor in PLAIN.items()}, source)
    with refused(rf"{EMBEDDING}, .* missing, {prefix}model.* unknown to this model"):
        load_model(source)


def test_the_encoders_own_scalars_are_not_guessed(source: Path) -> None:
    scalar = "model.encoder.language_model.layers.0.layer_scalar"
    assert canonical_name(scalar) == scalar
    store({name: tensor for name, tensor in PLAIN.items() if name != scalar}, source)
    with refused(f"{scalar} missing"):
        load_model(source)


def test_experts_one_by_one_are_to_be_converted(source: Path, tmp_path: Path) -> None:
    stack = "model.encoder.language_model.layers.0.experts.down_proj"
    tensors = dict(PLAIN)
    experts = tensors.pop("model.decoder.layers.0.experts.down_proj")
    for i, expert in enumerate(experts):
        tensors[f"{stack.removesuffix('.down_proj')}.{i}.down_proj.weight"] = mx.contiguous(expert)
    expected = bytes_of(convert(source, tmp_path / "plain"))
    store(tensors, source)
    with refused("each expert is a tensor of its own; stack them with `mlx_dg conv"):
        load_model(source)
    assert bytes_of(convert(source, tmp_path / "out")) == expected


# --- MLX conversions ----------------------------------------------------------------------------------------


@pytest.fixture
def conversion(source: Path, tmp_path: Path) -> tuple[Path, Tensors]:
    """A 4-bit conversion with an 8-bit embedding, and its tensors."""
    target = convert(source, tmp_path / "conversion")
    tensors = read_tensors(weight_files(target))
    mx.eval(tensors)
    (target / "model.safetensors.index.json").unlink()  # it would have to list what the tests add
    return target, tensors


def renamed_embedding(tensors: Tensors, path: str) -> Tensors:
    own = EMBEDDING.removesuffix(".weight")
    return {name.replace(own, path): tensor for name, tensor in tensors.items() if name.startswith(own)}


@pytest.mark.parametrize("path", ["lm_head", "model.encoder.language_model.embed_tokens"])
@pytest.mark.parametrize("instead", [False, True])
def test_aliases_of_a_quantized_embedding(path: str, instead: bool, conversion: tuple[Path, Tensors]) -> None:
    directory, tensors = conversion
    expected = parameters(directory)
    info = CliRunner().invoke(main, ["info", str(directory)]).stdout
    copy = renamed_embedding(tensors, path)
    assert len(copy) == 3  # weight, scales, biases
    kept = {name: t for name, t in tensors.items() if not (instead and name.startswith(EMBEDDING[:-6]))}
    store(kept | copy, directory)
    assert len(tensor_infos(directory)) == len(tensors) + (0 if instead else 3)
    assert_equal(parameters(directory), expected)
    assert CliRunner().invoke(main, ["info", str(directory)]).stdout == info
    if instead:  # a program that stores it under this name has its bits there, too
        config = json.loads((directory / "config.json").read_text())
        for block in (config["quantization"], config["quantization_config"]):
            block[path] = block.pop("model.decoder.embed_tokens")
        (directory / "config.json").write_text(json.dumps(config))
        assert_equal(parameters(directory), expected)


def test_quantized_copies_that_differ_are_named(conversion: tuple[Path, Tensors]) -> None:
    directory, tensors = conversion
    copy = renamed_embedding(tensors, "lm_head")
    store(tensors | copy | {"lm_head.scales": copy["lm_head.scales"] * 2}, directory)
    own = EMBEDDING.replace("weight", "scales")
    with refused(rf"{own} and lm_head\.scales are one weight .*their values differ"):
        load_model(directory)
    store(tensors | {"lm_head.weight": PLAIN[EMBEDDING]}, directory)
    with refused(rf"{EMBEDDING} and lm_head\.weight are one weight .*\(U32 .*F32 "):
        load_model(directory)


@pytest.mark.parametrize(
    ("mode", "bits", "group_size"),
    [("affine", 8, 64), ("affine", 4, 64), ("mxfp4", 4, 32), ("mxfp8", 8, 32), ("nvfp4", 4, 16)],
)
def test_sizes_that_are_left_out_are_those_of_mlx(
    mode: str, bits: int, group_size: int, source: Path, tmp_path: Path
) -> None:
    """`nn.quantize` without sizes is the oracle of the modes' defaults."""
    model = load_model(source)
    is_affine = mode == "affine"

    def quantizable(path: str, module: nn.Module) -> bool:
        return hasattr(module, "to_quantized") and "router" not in path

    nn.quantize(model, None, bits if is_affine else None, mode=mode, class_predicate=quantizable)
    flat: Any = tree_flatten(model.parameters())
    target = tmp_path / mode
    shutil.copytree(source, target)
    store(dict(flat), target)
    config = json.loads((target / "config.json").read_text())
    for sizes in ({}, {"group_size": None}, {"bits": bits}, {"bits": bits, "group_size": group_size}):
        block = {"bits": bits, **sizes} if is_affine else {"mode": mode, **sizes}
        (target / "config.json").write_text(json.dumps(config | {"quantization": block}))
        loaded: Any = load_model(target)
        embedding = loaded.decoder.embed_tokens
        assert (embedding.bits, embedding.group_size, embedding.mode) == (bits, group_size, mode)
        assert CliRunner().invoke(main, ["info", str(target)]).exit_code == 0
    # Overrides, too; without a mode they mean affine.
    if is_affine:
        quantized = (name.removesuffix(".scales") for name, _ in flat if name.endswith(".scales"))
        block = {"bits": 4, "group_size": 32, "mode": "mxfp4"} | {name: {"bits": bits} for name in quantized}
        (target / "config.json").write_text(json.dumps(config | {"quantization": block}))
        assert_equal(parameters(target), dict(flat))


# --- what comparing costs -----------------------------------------------------------------------------------


def test_copies_are_compared_a_few_megabytes_at_a_time(tmp_path: Path) -> None:
    """128 MB of zeros twice, of which nothing is on the disk."""
    size = 2**27
    entry = {"dtype": "F32", "shape": [size // 4]}
    copy = entry | {"data_offsets": [size, 2 * size]}
    content = pack({EMBEDDING: entry | {"data_offsets": [0, size]}, "lm_head.weight": copy})
    (tmp_path / "model.safetensors").write_bytes(content)
    os.truncate(tmp_path / "model.safetensors", len(content) + 2 * size)
    tracemalloc.start()
    try:
        compare_copies(tmp_path)
        assert tracemalloc.get_traced_memory()[1] < 64e6
    finally:
        tracemalloc.stop()
