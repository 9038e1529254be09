"""Conversions that are refused, in one line and without a trace on the disk."""

from __future__ import annotations

import json
import math
import os
import shutil
from collections import namedtuple
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from support.converting import bytes_of, change_weights, save, tensors_of

from mlx_diffusiongemma.converter import conversion, convert
from mlx_diffusiongemma.errors import CheckpointError, ConfigError, InputError

NORM = "model.decoder.norm.weight"

# --- refused before weights are read -----------------------------------------------------------------------


def refuse(source: Path, target: Path, message: str, **settings: Any) -> None:
    before = set(source.parent.rglob("*"))
    with pytest.raises(InputError, match=message) as caught:
        convert(source, target, **settings)
    assert "\n" not in str(caught.value)
    assert set(source.parent.rglob("*")) == before


def test_bad_targets(source: Path, tmp_path: Path) -> None:
    (tmp_path / "directory").mkdir()
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for name in ("directory", "file", "link"):
        refuse(source, tmp_path / name, f"{name} exists already; remove it or give another path")
        message = f"{name} is not a model directory without other files, so it is"
        refuse(source, tmp_path / name, message, overwrite=True)
    for place in (tmp_path / "file" / "below", tmp_path / ("x" * 300)):
        refuse(source, place, "cannot be created")


def test_bad_names(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refuse(source, tmp_path / "a\nb", "has unprintable characters")
    refuse(source, tmp_path / os.fsdecode(b"bad\xff"), "has unprintable characters")
    with pytest.raises(InputError, match="~nobody-of-this-name/x: "):
        convert(source, "~nobody-of-this-name/x")
    monkeypatch.chdir(source)
    for name in (".", "..", "../..", "/"):
        with pytest.raises(InputError, match="is the working directory or above it"):
            convert(source, name, overwrite=True)


def test_a_source_is_never_replaced_by_its_conversion(source: Path, tmp_path: Path) -> None:
    before = bytes_of(source)
    (tmp_path / "link").symlink_to(source)
    for given in (source, tmp_path / "link"):
        with pytest.raises(InputError, match="source holds the source, "):
            convert(given, source, overwrite=True)
    assert bytes_of(source) == before


def test_only_a_directory_with_nothing_but_a_model_is_replaced(source: Path, tmp_path: Path) -> None:
    other, nested = tmp_path / "other", tmp_path / "nested"
    other.mkdir()
    (other / "config.json").write_text("{}")
    shutil.copytree(convert(source, tmp_path / "out"), nested)
    (nested / "mine").mkdir()
    message = "is not a model directory without other files, so it is not overwritten"
    for target in (other, nested):
        refuse(source, target, message, overwrite=True)


def test_links_are_not_followed(source: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("")
    (source / "LICENSE").symlink_to(tmp_path / "secret")
    refuse(source, tmp_path / "out", "LICENSE is a link that leads out of its directory")
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "file").write_text("")
    (tmp_path / ".out.partial").symlink_to(tmp_path / "precious")
    refuse(source, tmp_path / "out", r"\.out\.partial is not a directory; ")


def test_a_source_without_tokenizer(source: Path, tmp_path: Path) -> None:
    (source / "tokenizer.json").unlink()
    refuse(source, tmp_path / "out", "tokenizer")


def test_shapes_that_contradict_the_config(source: Path, tmp_path: Path) -> None:
    save(source, tensors_of(source) | {NORM: mx.ones((32,))})
    refuse(source, tmp_path / "out", r"wrong shapes, .* model\.decoder\.norm\.weight is \[32\], not \[64\]")


def test_experts_that_do_not_stack(source: Path, tmp_path: Path) -> None:
    tensors = tensors_of(source)
    layer = "model.decoder.layers.0.experts"
    down, both = tensors.pop(f"{layer}.down_proj"), tensors.pop(f"{layer}.gate_up_proj")

    def refuse_with(extra: dict[str, mx.array], message: str) -> None:
        save(source, tensors | extra)
        refuse(source, tmp_path / "out", message)

    one = down[0]
    refuse_with({f"{layer}.99999.down_proj.weight": one}, "not numbered 0 to 99999 without a gap")
    most = {f"{layer}.{i}.down_proj": down[i] for i in range(8) if i != 3}
    refuse_with(most, f"{layer}.down_proj: its experts are not numbered 0 to 7 without a gap")
    gates = {f"{layer}.{i}.gate_proj": both[i, :64] for i in range(8)}
    refuse_with(gates, "expert 0 has gate_proj, which do not make a stack")
    again = {f"{name}.weight": value for name, value in gates.items()}
    refuse_with(gates | again, "expert 0 has gate_proj, gate_proj, which do not make a stack")
    stacks = {f"{layer}.gate_up_proj": both, f"{layer}.down_proj": down}
    apart = {f"{layer}.{i}.gate_up_proj.weight": both[i] for i in range(8)}
    refuse_with(stacks | apart, "gate_up_proj is stored both as a stack and expert by expert; remove one")


def test_bad_settings(source: Path, tmp_path: Path) -> None:
    refuse(source, tmp_path / "out", "dtype 'int4' is unknown; there are float32, float16, bf", dtype="int4")
    refuse(source, tmp_path / "out", "recipe 'q4' is unknown", recipe="q4")
    refuse(source, tmp_path / "out", r"down_proj is \[8, 64, 64\]: groups of", overrides=["experts=4:128"])
    once = convert(source, tmp_path / "once")
    refuse(once, tmp_path / "twice", "is quantized already")


def test_a_disk_that_is_too_small(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**12, 10**12 - 10**7, 10**7))
    refuse(source, tmp_path / "out", r"out needs 0\.05 GB, but its disk has 0\.01 GB free")
    monkeypatch.setattr(conversion, "_OTHER_FILES_BYTES", 0)
    nbytes = conversion.planned_conversion(source)[1].bytes_out
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**12, 0, nbytes - 1))
    refuse(source, tmp_path / "out", "GB free; free some or give a path on another disk")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**12, 0, nbytes))
    convert(source, tmp_path / "out")


def test_missing_and_damaged_files(source: Path, tmp_path: Path) -> None:
    weights = (source / "model.safetensors").read_bytes()
    (source / "model.safetensors").write_bytes(weights[:-1])
    refuse(source, tmp_path / "out", "damaged or truncated")
    (source / "model.safetensors").unlink()
    refuse(source, tmp_path / "out", "is this a model directory")
    (source / "config.json").unlink()
    with pytest.raises(ConfigError, match=r"config\.json"):
        convert(source, tmp_path / "out")


def test_parents_of_a_failed_target_are_removed(source: Path, tmp_path: Path) -> None:
    change_weights(source, NORM, math.nan, 1)
    with pytest.raises(CheckpointError):
        convert(source, tmp_path / "new" / "newer" / "out")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(("key", "value", "message"), [
    ("zz", "deep", "is nested too deeply"),
    ("eos_token_id", list(range(190_000)), "config.json would have"),
])  # fmt: skip
def test_a_config_that_could_not_be_read_again_is_refused_first(
    source: Path, tmp_path: Path, key: str, value: Any, message: str
) -> None:
    text = json.dumps(json.loads((source / "config.json").read_text()) | {key: value})
    deep = text.replace('"deep"', "[" * 900 + "]" * 900)
    (source / "config.json").write_text(deep)
    refuse(source, tmp_path / "out", message)


# --- weights that are not finite ---------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("name", [NORM, "model.decoder.layers.1.experts.down_proj"])
def test_weights_that_are_not_finite_are_counted_and_refused(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], dtype: str, name: str
) -> None:
    save(source, {name: tensor.astype(getattr(mx, dtype)) for name, tensor in tensors_of(source).items()})
    change_weights(source, name, mx.array((math.inf if name == NORM else math.nan, -math.inf, math.nan)), 3)
    refuse(source, tmp_path / "out", f"{name} holds 3 NaN or infinite weights; download it again")
    convert(source, tmp_path / "out", allow_nonfinite=True)
    assert f"mlx_dg: {name} holds 3 NaN or infinite weights" in capsys.readouterr().err


def test_weights_that_do_not_fit_the_dtype_are_not_finite(source: Path, tmp_path: Path) -> None:
    for name in (NORM, "model.decoder.embed_tokens.weight"):
        change_weights(source, name, 1e6, 2)
        refuse(source, tmp_path / "out", f"{name} holds 2 NaN or infinite weights", dtype="float16")
        change_weights(source, name, 1.0, 2)
    change_weights(source, NORM, 3.38e38, 5)  # the largest are finite
    convert(source, tmp_path / "out")


def test_weights_that_are_not_finite_can_be_verified_and_described(source: Path, tmp_path: Path) -> None:
    change_weights(source, NORM, math.nan, 1)
    target = convert(source, tmp_path / "out", allow_nonfinite=True, verify=True)
    assert json.loads((target / "conversion.json").read_text())["verification"]["rms_logit_error"] is None
    assert "RMS logit error not finite, argmax" in (target / "README.md").read_text()


def test_weights_that_were_allowed_once_are_refused_by_the_next_run(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    change_weights(source, NORM, math.nan, 1)
    with monkeypatch.context() as patch:
        patch.setattr(conversion, "_copy_files", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            convert(source, tmp_path / "out", allow_nonfinite=True)
    with pytest.raises(CheckpointError, match="holds 1 NaN or infinite weights"):
        convert(source, tmp_path / "out")
