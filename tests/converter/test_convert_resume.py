"""Conversions that are interrupted, or replace a directory: what they leave, and what the next run does."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support import converting
from support.converting import bytes_of

from mlx_diffusiongemma.checkpoint.loading import load_model
from mlx_diffusiongemma.converter import conversion, convert, writing
from mlx_diffusiongemma.converter.workspace import Workspace
from mlx_diffusiongemma.errors import InputError

pytestmark = pytest.mark.slow

SMALL_SHARDS = 50_000


@pytest.fixture
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writing, "SHARD_BYTES", SMALL_SHARDS)
    monkeypatch.setattr(writing, "_READ_BYTES", 1000)


@pytest.fixture
def rewritten(source: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    return lambda target, **settings: converting.rewritten(source, target, monkeypatch, **settings)


# --- replacing ---------------------------------------------------------------------------------------------


def test_overwrite_replaces_a_model_and_only_when_the_new_one_is_complete(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = convert(source, tmp_path / "out")
    (target / "vocab.json").write_text("")  # of another program
    before = bytes_of(target)
    with monkeypatch.context() as patch:
        patch.setattr(conversion, "_copy_files", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            convert(source, target, recipe="8bit", overwrite=True)
    assert bytes_of(target) == before
    convert(source, target, recipe="8bit", overwrite=True)
    assert not (target / "vocab.json").exists()
    assert json.loads((target / "config.json").read_text())["quantization"]["bits"] == 8
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "source"]


def test_interrupted_between_its_two_renames_the_old_model_comes_back(
    source: Path, rewritten: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = convert(source, tmp_path / "out")
    old = bytes_of(target)
    rename = Path.rename

    def once(path: Path, other: Path) -> Path:
        monkeypatch.setattr(Path, "rename", lambda *_: 1 / 0)
        return rename(path, other)

    monkeypatch.setattr(Path, "rename", once)
    with pytest.raises(ZeroDivisionError):
        convert(source, target, recipe="8bit", overwrite=True)
    monkeypatch.setattr(Path, "rename", rename)
    assert not target.exists()
    with pytest.raises(InputError, match="exists already"):
        convert(source, target, recipe="8bit")
    assert bytes_of(target) == old
    assert rewritten(target, recipe="8bit", overwrite=True) == []
    assert bytes_of(target) != old
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "source"]


def test_the_old_model_of_an_interrupted_run_is_removed(source: Path, tmp_path: Path) -> None:
    target = convert(source, tmp_path / "out")
    replaced = shutil.copytree(target, tmp_path / ".out.replaced")
    (replaced / "progress.json").write_text('{"fingerprint": "", "shards": {}}')
    convert(source, target, recipe="8bit", overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "source"]


def test_two_conversions_into_one_target_at_once_are_refused(source: Path, tmp_path: Path) -> None:
    with (
        Workspace(tmp_path / "out", "of another process"),
        pytest.raises(InputError, match="out is being written by another conversion"),
    ):
        convert(source, tmp_path / "out")
    convert(source, tmp_path / "out")


# --- interrupted and resumed --------------------------------------------------------------------------------


def start_slowly(source: Path, target: Path) -> subprocess.Popen[bytes]:
    """Start a process that converts in small shards, with a pause after each."""
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
def test_a_killed_run_leaves_nothing_that_loads_and_the_next_run_continues(
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
    times = {name: os.stat(workspace / name).st_mtime_ns for name in progress["shards"]}
    convert(source, target)
    assert bytes_of(target) == expected
    assert all(os.stat(target / name).st_mtime_ns == changed for name, changed in times.items())
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


def test_finished_shards_are_not_written_again_unless_they_changed(
    capsys: Any, interrupted: Path, source: Path, rewritten: Any, tmp_path: Path
) -> None:
    names = sorted(path.name for path in interrupted.glob("*.safetensors"))
    assert f"mlx_dg: kept {len(names)} finished shards in {interrupted}; " in capsys.readouterr().err
    assert not (interrupted / "config.json").exists()
    flipped, cut, longer = (interrupted / name for name in names[:3])
    data = bytearray(flipped.read_bytes())
    data[-7] ^= 1
    flipped.write_bytes(data)
    os.truncate(cut, cut.stat().st_size - 1)
    longer.write_bytes(longer.read_bytes() + b"\0")
    assert sorted(rewritten(tmp_path / "out")) == names[:3]
    assert bytes_of(tmp_path / "out") == bytes_of(convert(source, tmp_path / "again"))


def test_another_recipe_starts_anew(interrupted: Path, rewritten: Any, tmp_path: Path) -> None:
    shards = len(list(interrupted.glob("*.safetensors")))
    assert len(rewritten(tmp_path / "other")) == shards
    os.rename(interrupted, interrupted.with_name(".third.partial"))
    assert len(rewritten(tmp_path / "third", overrides=["router=8"])) > 3
    assert not (tmp_path / "third" / "progress.json").exists()
    assert not (tmp_path / "third" / "lock").exists()


def test_finished_shards_need_no_room_again(
    interrupted: Path, source: Path, rewritten: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(conversion, "_OTHER_FILES_BYTES", 0)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**12, 10**12, 0))
    assert rewritten(tmp_path / "out") == []
    with pytest.raises(InputError, match=r"its disk has 0\.00 GB free"):
        convert(source, tmp_path / "other")


@pytest.mark.parametrize("change", [
    lambda source, _: (source / "model.safetensors").touch(),
    lambda _, workspace: (workspace / "progress.json").write_text('{"fingerprint": 3, "shards": [1]}'),
])  # fmt: skip
def test_a_changed_source_or_strange_progress_starts_anew(
    change: Any, interrupted: Path, source: Path, rewritten: Any, tmp_path: Path
) -> None:
    change(source, interrupted)
    assert len(rewritten(tmp_path / "out")) > 3
    assert load_model(tmp_path / "out")
