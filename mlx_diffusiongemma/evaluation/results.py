"""The file of an evaluation: JSON lines, one for its settings, then one an answer.

A run that was killed goes on where it stopped: every answer is on disk before the next begins, a line that
was half written is cut, and what is there is not asked for again. All candidates of a task's run are there
together or not at all. A file holds one evaluation: what would mix two, other settings or another process
that writes, is refused.
"""

from __future__ import annotations

import fcntl
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from mlx_diffusiongemma.errors import InputError

from .task import OUTCOMES

FORMAT = 1
Line = dict[str, Any]
Key = tuple[str, int]  # task, run


class Results:
    """An evaluation's file, open for writing: `answers` so far, and `add`. It begins with an answer."""

    def __init__(self, path: Path, settings: Line):
        """settings: what has to be the same for a run to go on, ready for JSON.

        Raises `InputError` for a file that holds something else, is being written, or cannot be.
        """
        self.path = path
        self.answers: dict[Key, list[Line]] = {}
        self._header: Line = json.loads(json.dumps({"kind": "settings", "format": FORMAT} | settings))
        self._file: IO[bytes] | None = None
        if not path.exists():
            if not path.parent.is_dir():
                raise InputError(f"{path}: no such directory; give another --out")
            if not os.access(path.parent, os.W_OK):
                raise InputError(f"{path}: its directory cannot be written; give another --out")
            return
        if not path.is_file():
            raise InputError(f"{path}: is no file; give another --out")
        try:
            self._go_on()
        except BaseException:
            self.close()
            raise

    def _go_on(self) -> None:
        self._open("r+b")
        assert self._file is not None
        raw, first, end = self._file.read(), _encoded(self._header), 0
        if raw and not (b"\n" not in raw and first.startswith(raw)):  # else it is empty, or half a first line
            found = _parsed(raw, self.path)
            _check_settings(found.settings, self._header, self.path)
            self.answers, end = found.answers, found.without_half_answered(self._header["n"])
        self._file.truncate(end)
        self._file.seek(end)

    def _open(self, mode: str) -> None:
        taken = f"{self.path}: another process is writing to it; wait for that, or give another --out"
        try:
            self._file = self.path.open(mode, buffering=0)
        except FileExistsError:
            raise InputError(taken) from None
        except OSError as error:
            raise InputError(f"{self.path}: {error.strerror}; give another --out") from None
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(taken) from None
        except OSError:  # a file system without locks
            return

    def add(self, key: Key, lines: list[Line]) -> None:
        """All candidates' answers to one task in one run; on disk when this returns."""
        if self._file is None:
            self._open("xb")
        assert self._file is not None
        marked = [{"kind": "answer"} | line for line in lines]
        new = [self._header, *marked] if self._file.tell() == 0 else marked
        data = b"".join(map(_encoded, new))
        try:
            while data:
                data = data[self._file.write(data) :]
            os.fsync(self._file.fileno())
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self.path)) from None
        self.answers[key] = marked

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


def read(path: Path) -> tuple[Line, dict[Key, list[Line]]]:
    """Settings and answers of a file, by task and run. Raises `InputError` when it is none of ours."""
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}; give a file that mlx_dg eval wrote") from None
    found = _parsed(raw, path)
    found.without_half_answered(found.settings["n"])
    return found.settings, found.answers


def _encoded(line: Line) -> bytes:
    return json.dumps(line).encode() + b"\n"


@dataclass
class _Contents:
    """end: where the last whole line ends. last: where the lines of the last key begin."""

    settings: Line
    answers: dict[Key, list[Line]] = field(default_factory=dict)
    end: int = 0
    last: int = 0

    def take(self, line: Line) -> None:
        """Adds an answer; any `ValueError`, `KeyError` or `TypeError` means that it is none of ours."""
        if not _is_answer(line):
            raise ValueError
        key = (line["task"], line["run"])
        siblings = self.answers.get(key, [])
        # The same answer a second time, or one whose siblings are elsewhere.
        if line["candidate"] != len(siblings) or (siblings and key != next(reversed(self.answers))):
            raise ValueError
        if not siblings:
            self.last = self.end
        self.answers[key] = [*siblings, line]

    def without_half_answered(self, candidates: int) -> int:
        """Drops the last key unless all its candidates are there; returns where the file then ends."""
        if self.answers and len(self.answers[next(reversed(self.answers))]) < candidates:
            self.answers.popitem()
            return self.last
        return self.end


def _is_answer(line: Line) -> bool:
    counts = (line[name] for name in ("new_tokens", "answer_tokens", "blocks", "denoising_steps"))
    return (
        line["kind"] == "answer"
        and all(isinstance(line[name], str) for name in ("task", "group", "reason"))
        and all(isinstance(line[name], bool) for name in ("strict", "lenient"))
        and line["outcome"] in OUTCOMES
        and all(count is None or _is_count(count) for count in counts)
        and all(_is_count(line[name]) for name in ("run", "candidate"))
        and isinstance(line["details"], dict)
        and isinstance(line["seconds"], (int, float))
        and line["seconds"] >= 0
    )


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _parsed(raw: bytes, path: Path) -> _Contents:
    """What a file holds, but for a last line without its end, which was half written."""
    *lines, _ = raw.split(b"\n")
    settings = _header(lines[0] if lines else b"", path)
    contents = _Contents(settings, end=len(lines[0]) + 1)
    for number, text in enumerate(lines[1:], 2):
        try:
            contents.take(json.loads(text, parse_constant=_refuse))
        except (ValueError, KeyError, TypeError, RecursionError):
            raise InputError(
                f"{path}: line {number} is no answer that belongs there; mend it, or give another file"
            ) from None
        contents.end += len(text) + 1
    return contents


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")


def _header(text: bytes, path: Path) -> Line:
    try:
        settings: Line = json.loads(text)
        known, version = settings["kind"] == "settings" and _is_count(settings["n"]), settings["format"]
    except (ValueError, KeyError, TypeError, RecursionError):
        known, version = False, None
    if not known:
        raise InputError(f"{path}: not a file that mlx_dg eval wrote; give another")
    if version != FORMAT:
        raise InputError(
            f"{path}: its format is {version!r}, and {FORMAT} is what is known here; update mlx_dg"
        )
    return settings


def _check_settings(found: Line, wanted: Line, path: Path) -> None:
    differing = [key for key in wanted if found.get(key) != wanted[key]]
    if differing:
        key = differing[0]
        was, now = (_brief(settings.get(key), other.get(key)) for settings, other in
                    ((found, wanted), (wanted, found)))  # fmt: skip
        raise InputError(
            f"{path}: holds an evaluation with {key} {was}, not {now}; "
            "give the same settings to go on with it, or another --out"
        )


def _brief(value: Any, other: Any) -> str:
    """`value` as JSON; of an object, what differs from `other`."""
    if isinstance(value, dict) and isinstance(other, dict):
        value = {key: part for key, part in value.items() if part != other.get(key)}
    return json.dumps(value)
