"""The hidden directory beside the target in which a conversion grows, and from which it can be resumed."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from pathlib import Path
from typing import Any

import click

from mlx_diffusiongemma.errors import InputError

from .writing import is_intact

_PROGRESS = "progress.json"


class Workspace:
    """`.NAME.partial` beside the target NAME. It has no config.json before the end, so nothing loads it."""

    def __init__(self, target: Path, fingerprint: str):
        self.target, self.fingerprint = target, fingerprint
        self.path = target.parent / f".{target.name}.partial"
        self._new_parents = [parent for parent in target.parents if not parent.exists()]
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = (self.path / "lock").open("w")
        except (OSError, ValueError) as error:
            self._remove_new_parents()
            raise InputError(f"{str(target)[:80]!r} cannot be created ({error}); give another path") from None
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._lock.close()
            raise InputError(f"{target} is being written by another conversion; wait for it") from None
        self.finished: dict[str, Any] = self._resumable()

    def _resumable(self) -> dict[str, Any]:
        """Records of finished shards by file name, if they are of this very conversion and intact."""
        try:
            progress = json.loads((self.path / _PROGRESS).read_text(encoding="utf-8"))
            shards: dict[str, Any] = progress["shards"] if progress["fingerprint"] == self.fingerprint else {}
            kept = {
                name: shards[name] for name in shards if is_intact(self.path / name, shards[name]["pieces"])
            }
        except (OSError, ValueError, KeyError, TypeError):
            kept = {}
        for file in self.path.iterdir():
            if file.name not in kept and file.name != "lock":
                file.unlink()
        return kept

    def finish_shard(self, name: str, record: dict[str, Any]) -> None:
        self.finished[name] = record
        progress = {"fingerprint": self.fingerprint, "shards": self.finished}
        temporary = self.path / f"{_PROGRESS}.new"
        temporary.write_text(json.dumps(progress), encoding="utf-8")
        temporary.replace(self.path / _PROGRESS)

    def commit(self) -> None:
        """Puts the workspace in the target's place; what was there before goes."""
        (self.path / _PROGRESS).unlink(missing_ok=True)
        replaced = self.target.parent / f".{self.target.name}.replaced"
        if os.path.lexists(self.target):
            self.target.rename(replaced)
        (self.path / "lock").unlink()
        self.path.rename(self.target)
        shutil.rmtree(replaced, ignore_errors=True)

    def __enter__(self) -> Workspace:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """After an interrupt or a crash, keeps finished shards and says so; else leaves nothing behind."""
        self._lock.close()
        if kind is None:
            return
        if self.finished and not issubclass(kind, InputError):
            click.echo(
                f"mlx_dg: kept {len(self.finished)} finished shards in {self.path}; "
                "the same command goes on from there",
                err=True,
            )
            return
        shutil.rmtree(self.path, ignore_errors=True)
        self._remove_new_parents()

    def _remove_new_parents(self) -> None:
        for parent in self._new_parents:
            try:
                parent.rmdir()
            except OSError:  # somebody else put something there, or it was never made
                return


def check_target(target: Path, overwrite: bool) -> None:
    """`InputError` if the target exists and may not be replaced. Only what looks like a model ever is."""
    if not os.path.lexists(target):
        return
    if not overwrite:
        raise InputError(f"{target} exists already; remove it, give another path, or use --overwrite")
    is_model = target.is_dir() and not target.is_symlink() and (target / "config.json").is_file()
    if not is_model:
        raise InputError(f"{target} is not a model directory, so it is not overwritten; remove it yourself")


def check_disk(target: Path, nbytes: int) -> None:
    """`InputError` if the target's file system has no room for this many bytes."""
    existing = next(parent for parent in target.absolute().parents if parent.exists())
    try:
        free = shutil.disk_usage(existing).free
    except OSError:  # some network file systems do not say
        return
    if free < nbytes:
        raise InputError(
            f"{target} needs {nbytes / 1e9:.2f} GB, but its disk has {free / 1e9:.2f} GB free; "
            "free some or give a path on another disk"
        )
