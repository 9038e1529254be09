"""Conversion under bad luck: what is refused, what is left behind, and what a second run does."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import namedtuple
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from oracle import demo, tiny

from mlx_diffusiongemma.converter import conversion, convert, writing
from mlx_diffusiongemma.converter.workspace import Workspace
from mlx_diffusiongemma.errors import CheckpointError, ConfigError, InputError
from mlx_diffusiongemma.loading import load_model
from mlx_diffusiongemma.weights import read_tensors, weight_files

SMALL_SHARDS = 50_000


@pytest.fixture
def source(tmp_path: Path) -> Path:
    directory = tiny.build(tiny.ROUGH, tmp_path / "source", "original")
    shutil.copy(demo.DIRECTORY / "tokenizer.json", directory)
    return directory


@pytest.fixture
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writing, "SHARD_BYTES", SMALL_SHARDS)


def bytes_of(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir() if path.suffix == ".safetensors"}


def change_weights(source: Path, name: str, value: float, count: int) -> None:
    tensors = read_tensors(weight_files(source))
    flat = tensors[name].flatten()
    flat[:count] = value
    tensors[name] = flat.reshape(tensors[name].shape)
    mx.eval(tensors)
    mx.save_safetensors(str(source / "model.safetensors"), tensors)


# --- refused before ----------------------------------------------------------------------------------------


def refuse(source: Path, target: Path, message: str, **settings: Any) -> None:
    before = set(source.parent.rglob("*"))
    with pytest.raises(InputError, match=message) as caught:
        convert(source, target, **settings)
    assert "\n" not in str(caught.value)
    assert set(source.parent.rglob("*")) == before


def test_bad_targets(source: Path, tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for name in ("taken", "file", "link"):
        refuse(source, tmp_path / name, f"{name} exists already; remove it, give another path")
        refuse(source, tmp_path / name, f"{name} is not a model directory, so it is", overwrite=True)
    refuse(source, tmp_path / "file" / "below", "cannot be created")


def test_bad_settings(source: Path, tmp_path: Path) -> None:
    refuse(source, tmp_path / "out", "dtype 'int4' is unknown; there are float32, float16, bf", dtype="int4")
    refuse(source, tmp_path / "out", "recipe 'q4' is unknown", recipe="q4")
    refuse(
        source, tmp_path / "out", r"down_proj is \[8, 64, 64\]: groups of 128", overrides=["experts=4:128"]
    )
    once = convert(source, tmp_path / "once")
    refuse(once, tmp_path / "twice", "is quantized already")


def test_a_full_disk(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**12, 10**12 - 10**7, 10**7))
    refuse(source, tmp_path / "out", r"out needs 0\.05 GB, but its disk has 0\.01 GB free")


def test_missing_and_damaged_files(source: Path, tmp_path: Path) -> None:
    weights = (source / "model.safetensors").read_bytes()
    (source / "model.safetensors").write_bytes(weights[:-1])
    refuse(source, tmp_path / "out", "damaged or truncated")
    (source / "model.safetensors").unlink()
    refuse(source, tmp_path / "out", "is this a model directory")
    (source / "config.json").unlink()
    with pytest.raises(ConfigError, match=r"config\.json"):
        convert(source, tmp_path / "out")


def test_parents_made_for_a_failed_target_go_again(source: Path, tmp_path: Path) -> None:
    change_weights(source, "model.decoder.norm.weight", float("nan"), 1)
    with pytest.raises(CheckpointError):
        convert(source, tmp_path / "new" / "newer" / "out")
    assert not (tmp_path / "new").exists()


# --- weights that are no numbers ---------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("name", ["model.decoder.norm.weight", "model.decoder.layers.1.experts.down_proj"])
def test_weights_that_are_not_finite_are_counted_and_refused(
    source: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    dtype: str,
    value: float,
    name: str,
) -> None:
    tensors = {k: v.astype(getattr(mx, dtype)) for k, v in read_tensors(weight_files(source)).items()}
    mx.eval(tensors)
    mx.save_safetensors(str(source / "model.safetensors"), tensors)
    change_weights(source, name, value, 3)
    refuse(source, tmp_path / "out", f"{name} holds 3 NaN or infinite weights; download it again, or")
    convert(source, tmp_path / "out", allow_nonfinite=True)
    assert f"mlx_dg: {name} holds 3 NaN or infinite weights" in capsys.readouterr().err


def test_the_largest_finite_weights_are_finite(source: Path, tmp_path: Path) -> None:
    change_weights(source, "model.decoder.norm.weight", 3.38e38, 5)
    convert(source, tmp_path / "out")


# --- replacing ---------------------------------------------------------------------------------------------


def test_overwrite_replaces_a_model_and_only_when_the_new_one_is_complete(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = convert(source, tmp_path / "out")
    (target / "left over").write_text("")
    before = bytes_of(target)
    with monkeypatch.context() as patch:
        patch.setattr(conversion, "_copy_files", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            convert(source, target, recipe="8bit", overwrite=True)
    assert bytes_of(target) == before
    convert(source, target, recipe="8bit", overwrite=True)
    assert not (target / "left over").exists()
    assert json.loads((target / "config.json").read_text())["quantization"]["bits"] == 8
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "source"]


def test_two_conversions_into_one_target_do_not_meet(source: Path, tmp_path: Path) -> None:
    with (
        Workspace(tmp_path / "out", "of another process"),
        pytest.raises(InputError, match="out is being written by another conversion"),
    ):
        convert(source, tmp_path / "out")
    convert(source, tmp_path / "out")


# --- cut off and resumed ------------------------------------------------------------------------------------


def start_slowly(source: Path, target: Path) -> subprocess.Popen[bytes]:
    """A process that converts in small shards, with a pause in each."""
    code = (
        "import sys, time\n"
        "from mlx_diffusiongemma.converter import conversion, convert, writing\n"
        f"writing.SHARD_BYTES = {SMALL_SHARDS}\n"
        "write = conversion._write_shard\n"
        "def slowly(*arguments):\n"
        "    record = write(*arguments)\n"
        "    time.sleep(0.1)\n"
        "    return record\n"
        "conversion._write_shard = slowly\n"
        "convert(sys.argv[1], sys.argv[2])\n"
    )
    return subprocess.Popen([sys.executable, "-c", code, str(source), str(target)], stderr=subprocess.DEVNULL)


@pytest.mark.parametrize("kill_after", [1, 3])
def test_killed_at_any_moment_it_leaves_nothing_that_loads_and_the_next_run_goes_on(
    kill_after: int, source: Path, tmp_path: Path, small_shards: None
) -> None:
    expected = bytes_of(convert(source, tmp_path / "expected"))
    target, workspace = tmp_path / "out", tmp_path / ".out.partial"
    process = start_slowly(source, target)
    deadline = time.monotonic() + 60
    while process.poll() is None and time.monotonic() < deadline:
        if workspace.is_dir() and len(list(workspace.glob("*.safetensors"))) > kill_after:
            break
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not target.exists()
    with pytest.raises(InputError):
        load_model(workspace)

    progress = json.loads((workspace / "progress.json").read_text())
    assert len(progress["shards"]) >= kill_after
    kept = {name: os.stat(workspace / name).st_mtime_ns for name in progress["shards"]}
    convert(source, target)
    assert bytes_of(target) == expected
    assert all(os.stat(target / name).st_mtime_ns == changed for name, changed in kept.items())
    assert not workspace.exists()


@pytest.fixture
def interrupted(source: Path, tmp_path: Path, small_shards: None, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The workspace of a conversion into `tmp_path / "out"` that was interrupted after its last shard."""

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(conversion, "_copy_files", interrupt)
        with pytest.raises(KeyboardInterrupt):
            convert(source, tmp_path / "out")
    return tmp_path / ".out.partial"


def rewritten(source: Path, target: Path, monkeypatch: pytest.MonkeyPatch, **settings: Any) -> list[str]:
    """The shards that a run writes itself."""
    names: list[str] = []
    write = conversion._write_shard

    def spy(path: Path, *arguments: Any) -> dict[str, Any]:
        names.append(path.name)
        return write(path, *arguments)

    monkeypatch.setattr(conversion, "_write_shard", spy)
    convert(source, target, **settings)
    return names


def test_an_interrupt_says_how_to_go_on(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(conversion, "_copy_files", interrupt)
    with pytest.raises(KeyboardInterrupt):
        convert(source, tmp_path / "out")
    assert "mlx_dg: kept 1 finished shards in" in capsys.readouterr().err
    assert not (tmp_path / ".out.partial" / "config.json").exists()


def test_finished_shards_are_not_written_again_unless_they_changed(
    interrupted: Path, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = sorted(path.name for path in interrupted.glob("*.safetensors"))
    flipped, cut, longer = (interrupted / name for name in names[:3])
    data = bytearray(flipped.read_bytes())
    data[-7] ^= 1
    flipped.write_bytes(data)
    os.truncate(cut, cut.stat().st_size - 1)
    longer.write_bytes(longer.read_bytes() + b"\0")
    assert sorted(rewritten(source, tmp_path / "out", monkeypatch)) == names[:3]
    assert bytes_of(tmp_path / "out") == bytes_of(convert(source, tmp_path / "again"))


def test_another_recipe_or_another_source_starts_anew(
    interrupted: Path, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (source / "model.safetensors").touch()
    assert len(rewritten(source, tmp_path / "out", monkeypatch)) > 3
    assert load_model(tmp_path / "out")


def test_a_progress_file_that_makes_no_sense_starts_anew(
    interrupted: Path, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (interrupted / "progress.json").write_text('{"fingerprint": 3, "shards": [')
    assert len(rewritten(source, tmp_path / "out", monkeypatch)) > 3
