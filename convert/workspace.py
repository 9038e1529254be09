"""Hidden directory beside the target in which a conversion grows, and from which it can be resumed."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from pathlib import Path
from typing import Any

import click

from mlx_diffusiongemma.config.model import MODEL_TYPE
from mlx_diffusiongemma.errors import InputError

from .source import Source
from .writing import is_intact

_PROGRESS, _LOCK = "progress.json", "lock"


class Workspace:
    """`.NAME.partial` beside the target NAME. It has no config.json before the end, so nothing loads it."""

    def __init__(self, target: Path, fingerprint: str):
        self.target, self.fingerprint = target, fingerprint
        self.path = partial_of(target)
        self._new_parents = [parent for parent in target.parents if not parent.exists()]
        if os.path.islink(self.path):
            raise InputError(f"{self.path} is a link; {target.name} would be written there, so remove it")
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = (self.path / _LOCK).open("w")
        except (OSError, ValueError) as error:
            self._remove_new_parents()
            raise InputError(f"{str(target)[:80]!r} cannot be created ({error}); give another path") from None
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._lock.close()
            raise InputError(f"{target} is being written by another conversion; wait for it") from None
        shutil.rmtree(_replaced_of(target), ignore_errors=True)  # of a run that ended just before its end
        self.finished: dict[str, Any] = self._resumable()

    def _resumable(self) -> dict[str, Any]:
        """Return records of finished shards by file name, if they are of this conversion and intact."""
        try:
            progress = json.loads((self.path / _PROGRESS).read_text(encoding="utf-8"))
            shards: dict[str, Any] = progress["shards"] if progress["fingerprint"] == self.fingerprint else {}
            finished = {
                name: shards[name] for name in shards if is_intact(self.path / name, shards[name]["pieces"])
            }
        except (OSError, ValueError, KeyError, TypeError):
            finished = {}
        for entry in self.path.iterdir():
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            elif entry.name not in (*finished, _LOCK):
                entry.unlink()
        return finished

    def finish_shard(self, name: str, record: dict[str, Any]) -> None:
        self.finished[name] = record
        progress = {"fingerprint": self.fingerprint, "shards": self.finished}
        temporary = self.path / f"{_PROGRESS}.new"
        temporary.write_text(json.dumps(progress), encoding="utf-8")
        temporary.replace(self.path / _PROGRESS)

    def commit(self) -> None:
        """Move the workspace to the target's place. Remove the old target."""
        replaced = _replaced_of(self.target)
        if os.path.lexists(self.target):
            self.target.rename(replaced)
        self.path.rename(self.target)
        for name in (_PROGRESS, _LOCK):
            (self.target / name).unlink(missing_ok=True)
        shutil.rmtree(replaced, ignore_errors=True)

    def __enter__(self) -> Workspace:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Keep finished shards after an interrupt or a crash, with a message. Otherwise remove everything."""
        self._lock.close()
        if kind is None:
            return
        if self.finished and not issubclass(kind, InputError):
            click.echo(
                f"mlx_dg: kept {len(self.finished)} finished shards in {self.path}; "
                "the same command continues from there",
                err=True,
            )
            return
        shutil.rmtree(self.path, ignore_errors=True)
        self._remove_new_parents()

    def _remove_new_parents(self) -> None:
        for parent in self._new_parents:
            try:
                parent.rmdir()
            except OSError:  # it is not empty, or it was not created
                return


def partial_of(target: Path) -> Path:
    """Return the directory in which `target` grows."""
    return target.parent / f".{target.name}.partial"


def _replaced_of(target: Path) -> Path:
    """Return the place of an old target until the new one is in its place."""
    return target.parent / f".{target.name}.replaced"


def check_target(mlx_path: str | Path, overwrite: bool) -> Path:
    """Return the target's absolute path. `InputError` if it is unusable or must not be replaced."""
    if not str(mlx_path).isprintable():
        raise InputError(f"{str(mlx_path)!r} has unprintable characters; give another path")
    try:
        target = Path(os.path.abspath(Path(mlx_path).expanduser()))
    except RuntimeError as error:  # no such user
        raise InputError(f"{mlx_path}: {error}; give another path") from None
    if Path.cwd().is_relative_to(target):
        raise InputError(f"{target} is the working directory or above it; give the name of a new directory")
    if not os.path.lexists(target):
        if not os.path.isdir(_replaced_of(target)):  # False where the name is too long
            return target
        _replaced_of(target).rename(target)  # a run was interrupted between its two renames
    if not overwrite:
        way_out = ", give another path, or use --overwrite" if _is_model(target) else " or give another path"
        raise InputError(f"{target} exists already; remove it{way_out}")
    if not _is_model(target):
        raise InputError(f"{target} is not a model directory, so it is not overwritten; remove it yourself")
    return target


def check_apart(source: Source, target: Path) -> None:
    """Raise `InputError` if replacing `target` would remove the source."""
    if any(path.parent.resolve().is_relative_to(target.resolve()) for path in source.paths()):
        raise InputError(f"{target} holds the source, {source.name}; give another path")


def _is_model(directory: Path) -> bool:
    """Return True for a directory with a DiffusionGemma and nothing else, so that it may be replaced."""
    try:
        config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
        plain = directory.is_dir() and not directory.is_symlink()
        return plain and config["model_type"] == MODEL_TYPE and not any(map(Path.is_dir, directory.iterdir()))
    except (OSError, ValueError, KeyError, TypeError):
        return False


def check_disk(target: Path, nbytes: int) -> None:
    """Raise `InputError` if the target's file system has too little room for the missing part of `nbytes`."""
    existing = next(parent for parent in target.parents if parent.exists())
    try:
        finished = sum(file.stat().st_blocks * 512 for file in partial_of(target).glob("*.safetensors"))
        free = shutil.disk_usage(existing).free
    except OSError:  # some network file systems do not report it
        return
    if free + finished < nbytes:
        raise InputError(
            f"{target} needs {nbytes / 1e9:.2f} GB, but its disk has {free / 1e9:.2f} GB free; "
            "free some or give a path on another disk"
        )
