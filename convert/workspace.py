"""Hidden directory beside the target, where a conversion writes its files and can be resumed."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import shutil
import stat
from collections.abc import Set
from contextlib import suppress
from pathlib import Path
from typing import Any

from mlx_diffusiongemma.config.files import read_text
from mlx_diffusiongemma.config.model import MODEL_TYPE
from mlx_diffusiongemma.console.messages import count, one_line, say
from mlx_diffusiongemma.errors import DiffusionGemmaError, InputError

from .report import RECORD
from .source import Source
from .writing import INDEX, is_intact

# Files of the source that a converted directory has too.
COPIED = (
    "generation_config.json", "tokenizer.json", "tokenizer_config.json", "tokenizer.model",
    "special_tokens_map.json", "added_tokens.json", "chat_template.jinja", "chat_template.json",
    "processor_config.json", "preprocessor_config.json", "LICENSE", "LICENSE.md", "LICENSE.txt", "NOTICE",
)  # fmt: skip
_PROGRESS, _LOCK = "progress.json", "lock"
_STARTED = {_LOCK, _PROGRESS, f"{_PROGRESS}.new"}
_WRITTEN = {*_STARTED, *COPIED, INDEX, RECORD, "README.md", "config.json"}
# Other files that model directories have.
_OF_MODELS = {".DS_Store", ".gitattributes", "merges.txt", "vocab.json"}
_SHARD = re.compile(r"model(-\d+-of-\d+)?\.safetensors")
_MOST_PROGRESS_BYTES = 10**8  # far above that of the largest model


class Workspace:
    """`.NAME.partial` beside the target NAME. It has no config.json before the end, so nothing loads it.

    A directory of that name that another user owns, or that holds anything but a conversion's files, is
    refused before anything in it is opened or removed.
    """

    def __init__(self, target: Path, fingerprint: str):
        self.target, self.fingerprint = target, fingerprint
        self.path = partial_of(target)
        replaced = _replaced_of(target)
        self._replaces = os.path.lexists(target)  # `check_target` has allowed it
        self._new_parents = [parent for parent in target.parents if not parent.exists()]
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            if os.path.lexists(replaced):
                _check_ours(replaced, _WRITTEN | _OF_MODELS)
            if os.path.lexists(self.path):
                _check_ours(self.path, _WRITTEN)
            else:
                self.path.mkdir()
            lock = os.open(self.path / _LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        except (OSError, ValueError) as error:
            if isinstance(error, InputError):
                raise
            with suppress(OSError, ValueError):  # it was not created, or holds files of an earlier run
                self.path.rmdir()
            self._remove_new_parents()
            raise InputError(f"{str(target)[:80]!r} cannot be created ({error}); give another path") from None
        self._lock = os.fdopen(lock, "r+")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._lock.close()
            raise InputError(f"{target} is being written by another conversion; wait for it") from None
        shutil.rmtree(replaced, ignore_errors=True)  # left by a run that ended just before it removed it
        self.finished: dict[str, Any] = self._resumable()
        self._record()

    def _resumable(self) -> dict[str, Any]:
        """Return the records of intact shards that this conversion wrote, by file name.

        Remove all other files of the workspace, except its lock.
        """
        progress = _progress(self.path)
        try:
            shards: dict[str, Any] = progress["shards"] if progress["fingerprint"] == self.fingerprint else {}
            finished = {
                name: shards[name] for name in shards if is_intact(self.path / name, shards[name]["pieces"])
            }
        except (ValueError, KeyError, TypeError):
            finished = {}
        for entry in self.path.iterdir():
            if entry.name not in (*finished, _LOCK):
                entry.unlink()
        return finished

    def finish_shard(self, name: str, record: dict[str, Any]) -> None:
        self.finished[name] = record
        self._record()

    def _record(self) -> None:
        progress = {"fingerprint": self.fingerprint, "shards": self.finished}
        temporary = self.path / f"{_PROGRESS}.new"
        temporary.write_text(json.dumps(progress), encoding="utf-8")
        temporary.replace(self.path / _PROGRESS)

    def commit(self) -> None:
        """Move the workspace to the path of the target. Remove the old target."""
        replaced = _replaced_of(self.target)
        if os.path.lexists(self.target):
            if not self._replaces or not _is_model(self.target):
                raise DiffusionGemmaError(
                    f"{self.target} has changed while the conversion ran; move it away and run the command "
                    "again, which finishes at once"
                )
            mark = self.target / _PROGRESS  # says later that the old model was ours to replace
            mark.unlink(missing_ok=True)  # a link itself, not what it leads to
            with mark.open("x", encoding="utf-8") as file:
                file.write((self.path / _PROGRESS).read_text(encoding="utf-8"))
            self.target.rename(replaced)
        self.path.rename(self.target)
        for name in (_PROGRESS, _LOCK):
            (self.target / name).unlink(missing_ok=True)
        shutil.rmtree(replaced, ignore_errors=True)

    def __enter__(self) -> Workspace:
        return self

    def __exit__(self, kind: object, error: BaseException | None, _: object) -> None:
        """After an error, keep finished shards and say so. After `InputError` or without shards, clean up."""
        self._lock.close()
        if error is None:
            return
        if self.finished and not isinstance(error, InputError):
            kept = f"kept {count(len(self.finished), 'finished shard')} in {self.path}; "
            say(f"mlx_dg: {kept}the same command continues from there")
        else:
            shutil.rmtree(self.path, ignore_errors=True)
            self._remove_new_parents()
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiffusionGemmaError(
                f"{self.target}: {error.strerror}; free some or give a path on another disk"
            ) from error

    def _remove_new_parents(self) -> None:
        for parent in self._new_parents:
            try:
                parent.rmdir()
            except OSError:  # it is not empty, or it was not created
                return


def partial_of(target: Path) -> Path:
    """Return the directory where `target` is written until it is complete."""
    return target.parent / f".{target.name}.partial"


def _replaced_of(target: Path) -> Path:
    """Return the path to which an old target moves until the new one has replaced it."""
    return target.parent / f".{target.name}.replaced"


def _progress(directory: Path) -> Any:
    """Return the content of the directory's progress file, or None if it cannot be read."""
    path = directory / _PROGRESS
    try:
        return None if path.is_symlink() else json.loads(read_text(path, _MOST_PROGRESS_BYTES))
    except (OSError, ValueError, RecursionError):
        return None


def _check_ours(directory: Path, names: Set[str]) -> None:
    """Raise `InputError` unless a conversion of this user wrote the directory. Read only its progress file.

    Then remove the directory's permissions that the umask excludes.

    names: names of files that it may hold besides shards.
    """
    found, user = directory.lstat(), os.geteuid()
    problem: str | None
    if not stat.S_ISDIR(found.st_mode):
        problem = "is not a directory"
    elif found.st_uid != user:
        problem = "belongs to another user"
    else:
        problem = _strange_content(directory, user, names)
    if problem:
        raise InputError(f"{directory} {problem}; the conversion needs that name, so move it away")
    umask = os.umask(0o077)
    os.umask(umask)
    if stat.S_IMODE(found.st_mode) & umask:
        directory.chmod(0o777 & ~umask)


def _strange_content(directory: Path, user: int, names: Set[str]) -> str | None:
    """Return the reason why no conversion can have written a directory, or None."""
    entries = list(os.scandir(directory))
    for entry in entries:
        if not _is_written(entry, user, names):
            return f"holds {one_line(entry.name, 40)!r}, which no conversion writes"
    if {entry.name for entry in entries} <= _STARTED:  # of a run that ended before its first shard
        return None
    progress = _progress(directory)
    known = isinstance(progress, dict) and {"fingerprint", "shards"} <= progress.keys()
    return None if known else f"has no {_PROGRESS} of a conversion"


def _is_written(entry: os.DirEntry[str], user: int, names: Set[str]) -> bool:
    """Return True for a plain file of this user with a name that a conversion gives."""
    found = entry.stat(follow_symlinks=False)
    plain = stat.S_ISREG(found.st_mode) and found.st_uid == user
    return plain and (entry.name in names or _SHARD.fullmatch(entry.name) is not None)


def check_target(mlx_path: str | Path, overwrite: bool) -> Path:
    """Return the target's absolute path. Raise `InputError` if it is unusable or must not be replaced."""
    if not str(mlx_path).isprintable():
        raise InputError(f"{str(mlx_path)!r} has unprintable characters; give another path")
    try:
        target = Path(os.path.abspath(Path(mlx_path).expanduser()))
    except RuntimeError as error:  # no such user
        raise InputError(f"{mlx_path}: {error}; give another path") from None
    if _is_within(Path.cwd(), target):
        raise InputError(f"{target} is the working directory or above it; give the name of a new directory")
    if not os.path.lexists(target):
        if not os.path.isdir(_replaced_of(target)):  # False where the name is too long
            return target
        _check_ours(_replaced_of(target), _WRITTEN | _OF_MODELS)
        _replaced_of(target).rename(target)  # a run was interrupted between its two renames
    if not overwrite:
        way_out = ", give another path, or use --overwrite" if _is_model(target) else " or give another path"
        raise InputError(f"{target} exists already; remove it{way_out}")
    if not _is_model(target):
        raise InputError(
            f"{target} is not a model directory without other files, so it is not overwritten; "
            "remove it yourself"
        )
    return target


def check_apart(source: Source, target: Path) -> None:
    """Raise `InputError` if replacing `target` would remove the source."""
    files = {place for path in source.paths() for place in (path.parent, path.resolve().parent)}
    own = (target, partial_of(target), _replaced_of(target))  # all are replaced or removed
    if any(_is_within(directory, each) for directory in files for each in own):
        raise InputError(f"{target} holds the source, {source.name}; give another path")


def _is_within(path: Path, directory: Path) -> bool:
    """Return True if `path` is `directory` or is below it, even if links give it other names."""
    if not os.path.exists(directory):  # False also where the name is too long
        return False
    path = path.resolve()
    return any(each.samefile(directory) for each in (path, *path.parents))


def _is_model(directory: Path) -> bool:
    """Return True for a directory with a DiffusionGemma and only files of models. It may be replaced."""
    try:
        config = json.loads(read_text(directory / "config.json"))
        names = [path.name for path in directory.iterdir() if not path.is_dir()]
        plain = directory.is_dir() and not directory.is_symlink() and len(names) == len(os.listdir(directory))
        known = all(name in _WRITTEN | _OF_MODELS or name.endswith(".safetensors") for name in names)
        return plain and known and config["model_type"] == MODEL_TYPE
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return False


def check_disk(target: Path, nbytes: int) -> None:
    """Raise `InputError` if the disk has too little space for `nbytes`, minus the finished shards."""
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
