"""The file of an evaluation, in JSON lines. The first line has the settings, each other line an answer.

Every answer is on disk before the next prompt is asked. An interrupted evaluation continues with its file: a
half-written line is cut off, and prompts that have all their candidates are not asked again. A file holds one
evaluation. It is refused if the settings differ or another process writes to it.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from ..config.files import check_values, read_bytes
from ..console.messages import shown
from ..errors import InputError
from .task import OUTCOMES

FORMAT, _MOST_BYTES, _MOST_VALUES = 2, 200_000_000, 500_000  # values: of a line
_MOST = 2**53  # every number in a line is below this
_TEXTS, _FLAGS, _PLACES = ("task", "group", "reason"), ("strict", "lenient"), ("run", "candidate")
_COUNTS = ("new_tokens", "answer_tokens", "blocks", "denoising_steps")
Line = dict[str, Any]
Key = tuple[str, int]  # name of a task, index of a run


class Results:
    """The file of an evaluation, open for writing. A new file is created with the first answer.

    path: the file, or None to keep answers in memory. settings: JSON values; an existing file must have them.

    Raises `InputError` if the file holds something else, is not writable, or another process writes to it.
    """

    def __init__(self, path: Path | None, settings: Line):
        self.path, self.answers = path, dict[Key, list[Line]]()
        self.settings: Line = json.loads(json.dumps({"kind": "settings", "format": FORMAT} | settings))
        self._file: IO[bytes] | None = None
        if path is None:
            return
        if path.is_file():
            try:
                self._resume(self._open(path, "r+b"), path)
            except BaseException:
                self.close()
                raise
        elif path.exists() or not os.access(path.parent, os.W_OK):
            raise InputError(f"{path}: not a file, or not in a directory to write to; give another --out")

    def _resume(self, file: IO[bytes], path: Path) -> None:
        raw, first, end = read_bytes(path, _MOST_BYTES), _encoded(self.settings), 0
        half = b"\n" not in raw and first.startswith(raw)  # of line 1; true of an empty file too
        if not half:
            settings, self.answers, end = _parsed(raw, path)
            for key, was, now in differing({key: settings.get(key) for key in self.settings}, self.settings):
                found = f"{path}: holds an evaluation with {key} {was}, not {now}"
                raise InputError(f"{found}; give the same settings to go on with it, or another --out")
        file.truncate(end)
        file.seek(end)

    def _open(self, path: Path, mode: str) -> IO[bytes]:
        self._file = None
        try:
            self._file = path.open(mode, buffering=0)
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (FileExistsError, BlockingIOError):
            self.close()
            found = f"{path}: another process writes to it, or it is a broken link"
            raise InputError(f"{found}; give another --out") from None
        except OSError as error:
            if self._file is None:  # otherwise it is open, but the file system has no locks
                raise InputError(f"{path}: {error.strerror}; give another --out") from None
        return self._file

    def add(self, key: Key, lines: list[Line]) -> None:
        """Add the lines of all candidates for one task and run. They are on disk when this returns."""
        new = [{"kind": "answer"} | line for line in lines]
        if self.path is not None:
            self._write(self.path, new)
        self.answers[key] = new

    def _write(self, path: Path, new: list[Line]) -> None:
        file = self._file
        if file is None or not _is_ours(path, file):
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
            except OSError:  # a file has the directory's place
                path = self.path = Path(path.name)
            while file is not None and os.path.lexists(path):  # something else has its name now
                path = self.path = path.with_name(f"{path.stem}-answers{path.suffix}")
            self.close()  # the file is new, or was moved or removed: write all answers to another one
            file = self._open(path, "xb")
            new = [line for lines in self.answers.values() for line in lines] + new
        if file.tell() == 0:
            new = [self.settings, *new]
        data = b"".join(map(_encoded, new))
        try:
            while data:
                data = data[file.write(data) :]
            os.fsync(file.fileno())
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(path)) from None

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


def _is_ours(path: Path, file: IO[bytes]) -> bool:
    """Return True if `path` still is the open `file`, and nothing else has written to it."""
    found = os.fstat(file.fileno())
    return path.exists() and os.path.samestat(path.stat(), found) and found.st_size == file.tell()


def read(path: Path) -> tuple[Line, dict[Key, list[Line]]]:
    """Return the settings of a file, and its answers by task and run. Other files raise `InputError`."""
    try:
        raw = read_bytes(path, _MOST_BYTES)
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path}: {getattr(error, 'strerror', error)}; give a file that mlx_dg eval wrote"
        ) from None
    return _parsed(raw, path)[:2]


def _encoded(line: Line) -> bytes:
    return json.dumps(line).encode() + b"\n"


def _parsed(raw: bytes, path: Path) -> tuple[Line, dict[Key, list[Line]], int]:
    """Return settings, the answers of each key that has all its candidates, and where these end."""
    header, *lines = raw.split(b"\n")[:-1] or [b""]  # the last part is empty or a half-written line
    try:
        check_values(header, _MOST_VALUES)
        settings: Line = json.loads(header)
        version, candidates = settings["format"], settings["n"]
        known = settings["kind"] == "settings" and _is_count(candidates)
    except (ValueError, KeyError, TypeError, RecursionError):
        known = False
    if not known:
        raise InputError(f"{path}: not a file that mlx_dg eval wrote; give another")
    if version != FORMAT:
        raise InputError(
            f"{path}: its format is {shown(version)}, this version has {FORMAT}; give another file"
        )
    answers, group, end, at = dict[Key, list[Line]](), list[Line](), len(header) + 1, len(header) + 1
    for number, text in enumerate(lines, 2):
        try:
            check_values(text, _MOST_VALUES)
            line = json.loads(text)
            key = (line["task"], line["run"])
            alone = not group or key == (group[0]["task"], group[0]["run"])
            if not _is_answer(line) or line["candidate"] != len(group) or key in answers or not alone:
                raise ValueError
        except (ValueError, KeyError, TypeError, RecursionError):
            found = f"{path}: line {number} is not an answer that belongs there"
            raise InputError(f"{found}; remove it, or give another file") from None
        group.append(line)
        at += len(text) + 1
        if len(group) == candidates:
            answers[key], group, end = group, [], at
    return settings, answers, end


def _is_answer(line: Line) -> bool:
    return (
        line["kind"] == "answer"
        and all(isinstance(line[name], str) for name in _TEXTS)
        and all(isinstance(line[name], bool) for name in _FLAGS)
        and all(_is_count(line[name]) for name in _PLACES)
        and all(line[name] is None or _is_count(line[name]) for name in _COUNTS)
        and line["outcome"] in OUTCOMES
        and isinstance(line["details"], dict)
        and type(line["seconds"]) in (int, float)
        and 0 <= line["seconds"] < _MOST
    )


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < _MOST


def differing(first: Line, second: Line) -> Iterator[tuple[str, str, str]]:
    """Yield each key with different values, and both values as JSON. Objects keep only what differs."""
    for key in dict.fromkeys([*first, *second]):
        a, b = first.get(key), second.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            a, b = ({k: v for k, v in x.items() if v != y.get(k)} for x, y in ((a, b), (b, a)))
        if a != b:
            yield key, json.dumps(a), json.dumps(b)
