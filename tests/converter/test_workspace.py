"""Foreign directories in the place of a conversion's own are refused, and nothing in them changes."""

from __future__ import annotations

import errno
import json
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.converting import bytes_of, rewritten, tiny_source

from mlx_diffusiongemma.converter import conversion, convert, workspace, writing
from mlx_diffusiongemma.converter.workspace import Workspace, check_apart, check_target
from mlx_diffusiongemma.errors import DiffusionGemmaError, InputError

PROGRESS = '{"fingerprint": "x", "shards": {}}'
MODEL = '{"model_type": "diffusion_gemma"}'


def committed(out: Path, meanwhile: Callable[[Path], object]) -> None:
    """Commit a workspace after something else has happened."""
    with Workspace(out, "mine") as workspace:
        workspace.finish_shard("model.safetensors", {"pieces": []})
        meanwhile(out)
        workspace.commit()


def everything(directory: Path) -> dict[str, tuple[Any, ...]]:
    """Every entry below a directory with its kind, mode, inode and content."""
    return {
        str(path.relative_to(directory)): (
            *(getattr(path.lstat(), f"st_{field}") for field in ("mode", "ino", "size", "mtime_ns")),
            path.read_bytes() if path.is_file() else None,
        )
        for path in directory.rglob("*")
    }


def link(path: Path) -> None:
    path.symlink_to(path.parent.parent / "victim")


@pytest.mark.parametrize("planted", [
    {"lock": link},
    {"progress.json": link},
    {"progress.json": PROGRESS, "model.safetensors": link},
    {"progress.json": PROGRESS, "thesis": Path.mkdir},
    {"progress.json": PROGRESS, "notes": "x"},
    {"model.safetensors": "mine"},
    {"progress.json": "[1]", "config.json": "{}"},
    {"progress.json": os.mkfifo},
])  # fmt: skip
def test_a_planted_partial_directory_is_refused_and_left_as_it_is(
    planted: dict[str, Any], tmp_path: Path
) -> None:
    (tmp_path / "victim").write_text(PROGRESS)
    partial = tmp_path / ".out.partial"
    partial.mkdir()
    for name, what in planted.items():
        what(partial / name) if callable(what) else (partial / name).write_text(what)
    before = everything(tmp_path)
    with pytest.raises(InputError, match=r"\.out\.partial (holds|has no) .*; the conversion needs that name"):
        Workspace(tmp_path / "out", "mine")
    assert everything(tmp_path) == before


@pytest.mark.parametrize("name", ["partial", "replaced"])
@pytest.mark.parametrize("kind", ["link", "file", "foreign"])
def test_what_is_not_a_directory_of_this_user_is_refused(
    name: str, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / f".out.{name}"
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "progress.json").write_text(PROGRESS)
    if kind == "link":
        place.symlink_to(tmp_path / "other")
    elif kind == "file":
        place.write_text("mine")
    else:
        (tmp_path / "other").rename(place)
        user = os.geteuid()
        monkeypatch.setattr(os, "geteuid", lambda: user + 1)
    before = everything(tmp_path)
    words = "belongs to another user" if kind == "foreign" else "is not a directory"
    with pytest.raises(InputError, match=rf"\.out\.{name} {words}"):
        Workspace(tmp_path / "out", "mine")
    assert everything(tmp_path) == before


def test_a_foreign_replaced_directory_is_neither_adopted_nor_removed(tmp_path: Path) -> None:
    replaced = tmp_path / ".out.replaced"
    replaced.mkdir()
    (replaced / "config.json").write_text(MODEL)
    before = everything(tmp_path)
    with pytest.raises(InputError, match=r"\.out\.replaced has no progress\.json of a conversion"):
        check_target(tmp_path / "out", overwrite=False)
    assert everything(tmp_path) == before


def test_a_run_that_was_killed_before_its_first_shard_is_adopted(tmp_path: Path) -> None:
    partial = tmp_path / ".out.partial"
    for names in ((), ("lock",), ("lock", "progress.json.new")):
        partial.mkdir()
        for name in names:
            (partial / name).write_text("")
        with Workspace(tmp_path / "out", "mine"):
            progress = json.loads((partial / "progress.json").read_text())
            assert progress == {"fingerprint": "mine", "shards": {}}
        for path in partial.iterdir():
            path.unlink()
        partial.rmdir()


@pytest.mark.parametrize("plant", [os.symlink, os.link])
def test_a_link_in_the_old_model_is_not_written_through(plant: Any, tmp_path: Path) -> None:
    old, victim = tmp_path / "out", tmp_path / "victim"
    old.mkdir()
    victim.write_text("precious")
    plant(victim, old / "progress.json")
    (old / "config.json").write_text(MODEL)
    committed(old, lambda _: None)
    assert victim.read_text() == "precious"
    assert not (tmp_path / ".out.replaced").exists()


@pytest.mark.parametrize("name", ["thesis.docx", "notes", "photos"])
def test_a_model_with_other_files_beside_it_is_not_overwritten(name: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    shard = "model-00001-of-00002.safetensors"
    for each in ("config.json", "model.safetensors", "README.md", ".DS_Store", shard):
        (out / each).write_text(MODEL)
    assert check_target(out, overwrite=True) == out
    (out / name).write_text("mine")
    with pytest.raises(InputError, match="not a model directory without other files, so it is not over"):
        check_target(out, overwrite=True)


def test_modes_follow_the_umask(tmp_path: Path) -> None:
    partial = tmp_path / ".out.partial"
    partial.mkdir()
    partial.chmod(0o777)
    before = os.umask(0o027)
    try:
        with Workspace(tmp_path / "out", "mine"):
            assert stat.S_IMODE(partial.stat().st_mode) == 0o750
            assert stat.S_IMODE((partial / "lock").stat().st_mode) == 0o640
    finally:
        os.umask(before)


@pytest.mark.slow
def test_a_source_with_two_names_is_not_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two names for one directory stand for a bind mount and for a disk that ignores case."""
    source = tiny_source(tmp_path / "model")
    other = tmp_path / "Model"
    other.mkdir()
    same = Path.samefile

    def folded(path: Path, directory: Path) -> bool:
        return same(Path(str(path).lower()), Path(str(directory).lower()))

    monkeypatch.setattr(Path, "samefile", folded)
    opened = conversion.planned_conversion(source)[0]
    with pytest.raises(InputError, match="Model holds the source, "):
        check_apart(opened, other)
    monkeypatch.chdir(source)
    with pytest.raises(InputError, match="is the working directory or above it"):
        check_target(other, overwrite=True)


@pytest.mark.slow
def test_a_full_disk_names_the_path_and_keeps_what_is_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tiny_source(tmp_path / "source")
    monkeypatch.setattr(writing, "SHARD_BYTES", 50_000)
    write, calls = os.pwrite, iter(range(1000))

    def fill(file: int, data: Any, offset: int) -> int:
        if next(calls) == 40:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(file, data, offset)

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", fill)
        with pytest.raises(DiffusionGemmaError, match=r"out: No space left on device; free some or give"):
            convert(source, tmp_path / "out")
    kept = len(list((tmp_path / ".out.partial").glob("*.safetensors")))
    assert kept > 1
    assert 0 < len(rewritten(source, tmp_path / "out", monkeypatch)) <= 40
    assert bytes_of(tmp_path / "out") == bytes_of(convert(source, tmp_path / "again"))


@pytest.mark.slow
def test_conversions_share_their_threads(tmp_path: Path) -> None:
    source = tiny_source(tmp_path / "source")
    counts = []
    for number in range(4):
        convert(source, tmp_path / f"out{number}")
        counts.append(len(os.listdir("/proc/self/task")) if os.path.isdir("/proc/self/task") else 0)
    assert counts[1:] == counts[:1] * 3


def test_the_names_of_a_conversion_are_known(tmp_path: Path) -> None:
    """An interrupted run may leave any file that a finished one has."""
    source = tiny_source(tmp_path / "source")
    target = convert(source, tmp_path / "out")
    written = {path.name for path in target.iterdir()}
    assert all(name in workspace._WRITTEN or workspace._SHARD.fullmatch(name) for name in written)


@pytest.mark.parametrize(
    "make", [Path.mkdir, Path.touch, lambda path: path.symlink_to(path.parent / "other")]
)
def test_a_target_that_appears_meanwhile_is_not_replaced(make: Any, tmp_path: Path) -> None:
    out = tmp_path / "out"
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text(MODEL)
    with pytest.raises(DiffusionGemmaError, match="out has changed while the conversion ran; move it away"):
        committed(out, make)
    assert os.path.lexists(out)
    assert not (out / "progress.json").exists()
    assert (tmp_path / ".out.partial" / "progress.json").exists()


def test_a_file_put_into_the_old_model_meanwhile_is_kept(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "config.json").write_text(MODEL)
    with pytest.raises(DiffusionGemmaError, match="out has changed"):
        committed(out, lambda path: (path / "thesis.docx").write_text("mine"))
    assert (out / "thesis.docx").read_text() == "mine"


@pytest.mark.slow
@pytest.mark.parametrize("name", [".out.partial", ".out.replaced"])
def test_a_source_in_the_place_of_the_workspace_is_not_touched(name: str, tmp_path: Path) -> None:
    source = tiny_source(tmp_path / name)
    (source / "progress.json").write_text(PROGRESS)
    before = everything(tmp_path)
    opened = conversion.planned_conversion(source)[0]
    with pytest.raises(InputError, match="out holds the source"):
        check_apart(opened, tmp_path / "out")
    assert everything(tmp_path) == before
