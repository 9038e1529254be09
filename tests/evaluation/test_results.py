"""The file of an evaluation: whole after any cut, one evaluation, one writer."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from support.answer_lines import line

from mlx_diffusiongemma.errors import InputError
from mlx_diffusiongemma.evaluation.results import Results, read

SETTINGS: dict[str, Any] = {"suite": "six", "suite_sha256": "ab", "seed": 0, "n": 1, "versions": {"mlx": "1"}}
KEYS = [("a", 0), ("b", 0), ("a", 1)]


def written(path: Path, settings: dict[str, Any] = SETTINGS, keys: Any = KEYS) -> bytes:
    results = Results(path, settings)
    for task, run in keys:
        results.add((task, run), [line(task, run, candidate=candidate) for candidate in range(settings["n"])])
    results.close()
    return path.read_bytes()


def test_a_file_is_read_as_it_was_written(tmp_path: Path) -> None:
    written(tmp_path / "r.jsonl")
    settings, answers = read(tmp_path / "r.jsonl")
    assert settings == SETTINGS | {"kind": "settings", "format": 2}
    assert list(answers) == KEYS
    assert answers["b", 0] == [line("b") | {"kind": "answer"}]


@pytest.mark.parametrize("n", [1, 3])
def test_a_file_cut_anywhere_continues_to_the_same_file(tmp_path: Path, n: int) -> None:
    settings, path = SETTINGS | {"n": n}, tmp_path / "r.jsonl"
    whole = written(path, settings)
    ends = [place for place, byte in enumerate(whole) if byte == ord("\n")]
    for cut in sorted({*range(0, len(whole) + 1, 17), *ends, *(end + 1 for end in ends)}):
        path.write_bytes(whole[:cut])
        results = Results(path, settings)
        there = list(results.answers)
        results.close()
        assert there == KEYS[: len(there)]
        assert path.read_bytes().count(b"\n") in (0, 1 + n * len(there))
        assert whole[:cut].count(b"\n") < 1 + n * (len(there) + 1)  # nothing whole is thrown away
        assert written(path, settings, KEYS[len(there) :]) == whole


def test_other_settings_are_refused_and_the_file_stays(tmp_path: Path) -> None:
    whole = written(tmp_path / "r.jsonl")
    for more, said in (
        ({"seed": 1}, r"r.jsonl: holds an evaluation with seed 0, not 1; give the same"),
        ({"versions": {"mlx": "2"}}, r'versions {"mlx": "1"}, not {"mlx": "2"}'),
        ({"extra": 3}, "with extra null, not 3"),
    ):
        with pytest.raises(InputError, match=said):
            Results(tmp_path / "r.jsonl", SETTINGS | more)
    assert (tmp_path / "r.jsonl").read_bytes() == whole


@pytest.mark.parametrize("content", [b"notes", b"notes\n", b'{"kind": "x"}\n', b"[]\n", b"\n", b"\x00\xff\n"])
def test_a_file_of_something_else_is_refused_and_stays(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "notes.txt"
    path.write_bytes(content)
    for use in (lambda: Results(path, SETTINGS), lambda: read(path)):
        with pytest.raises(InputError, match="not a file that mlx_dg eval wrote"):
            use()
    assert path.read_bytes() == content
    path.write_text(json.dumps(SETTINGS | {"kind": "settings", "format": 1}) + "\n")
    with pytest.raises(InputError, match="its format is 1, this version has 2"):
        read(path)


@pytest.mark.parametrize("bad", [
    "garbage",
    "[1]",
    "[" * 90_000,
    "",
    line("a"),  # the same answer again
    line("c", candidate=1),  # without its siblings
    line("c", kind="other"),
    {"task": "c", "run": 0, "candidate": 0},
    *(
        line("c") | {name: value}
        for name, value in {
            "task": 3, "run": -1, "group": [1], "strict": "no", "lenient": None, "outcome": "banana",
            "reason": None, "answer_tokens": "9", "blocks": -1, "new_tokens": 10**400, "details": [],
        }.items()
    ),
    *(line("c", seconds=seconds) for seconds in (None, "1", -1.0, float("nan"), float("inf"), True)),
])  # fmt: skip
def test_a_bad_line_is_named(tmp_path: Path, bad: Any) -> None:
    path = tmp_path / "r.jsonl"
    text = bad if isinstance(bad, str) else json.dumps({"kind": "answer"} | bad)
    path.write_bytes(written(path) + text.encode() + b"\n")
    for use in (lambda: Results(path, SETTINGS), lambda: read(path)):
        with pytest.raises(InputError, match=r"r\.jsonl: line 5 is not an answer that belongs there"):
            use()


def test_candidates_of_two_prompts_do_not_mix(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    header, *lines = written(path, SETTINGS | {"n": 2}, KEYS[:2]).splitlines(keepends=True)
    path.write_bytes(header + b"".join(lines[:-1]))
    assert list(read(path)[1]) == KEYS[:1]  # the second lacks a candidate
    path.write_bytes(header + lines[0] + lines[2] + lines[1] + lines[3])
    with pytest.raises(InputError, match="line 3 is not an answer that belongs there"):
        read(path)


def test_one_writer_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    early, first = Results(path, SETTINGS), Results(path, SETTINGS)  # neither has anything to write yet
    first.add(("a", 0), [line("a")])
    for use in (lambda: Results(path, SETTINGS), lambda: early.add(("a", 0), [line("a")])):
        with pytest.raises(InputError, match="another process writes to it"):
            use()
    first.close()
    Results(path, SETTINGS).close()


@pytest.mark.parametrize("move", [Path.unlink, lambda path: path.rename(path.with_name("moved"))])
def test_a_file_that_is_moved_meanwhile_is_written_again(tmp_path: Path, move: Any) -> None:
    path = tmp_path / "r.jsonl"
    whole = written(path)
    path.unlink()
    results = Results(path, SETTINGS)
    for key in KEYS:
        results.add(key, [line(*key)])
        if key == KEYS[1]:
            move(path)
    results.close()
    assert path.read_bytes() == whole


def test_a_full_disk_is_reported_with_the_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(number: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    results = Results(tmp_path / "r.jsonl", SETTINGS)
    with pytest.raises(OSError, match=r"No space left on device: '.*r\.jsonl'"):
        results.add(("a", 0), [line("a")])
    assert results.answers == {}
    results.close()


def test_places_that_cannot_be_written_are_named(tmp_path: Path) -> None:
    for place in (tmp_path / "nowhere" / "r.jsonl", Path("/dev/null"), tmp_path):
        with pytest.raises(InputError, match=f"{place}: not a file, or not in a directory to write to"):
            Results(place, SETTINGS)
    with pytest.raises(InputError, match="No such file or directory; give a file"):
        read(tmp_path / "missing.jsonl")


def test_pipes_and_giants_are_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "giant").touch()
    os.truncate(tmp_path / "giant", 3 * 10**9)
    for name, message in (("pipe", "not a regular file"), ("giant", "larger than 200 MB")):
        with pytest.raises(InputError, match=f"{name}: {message}; give a file that mlx_dg eval wrote"):
            read(tmp_path / name)


def started_and_removed(directory: Path) -> tuple[Path, Results]:
    """Return an evaluation with one answer, whose file and its directory are then removed."""
    path = directory / "new" / "r.jsonl"
    path.parent.mkdir()
    results = Results(path, {"n": 1})
    results.add(("a", 0), [line("a")])
    path.unlink()
    path.parent.rmdir()
    return path, results


def test_a_directory_that_vanishes_is_made_again(tmp_path: Path) -> None:
    path, results = started_and_removed(tmp_path)
    results.add(("b", 0), [line("b")])
    results.close()
    assert list(read(path)[1]) == [("a", 0), ("b", 0)]


@pytest.mark.parametrize("replace", [True, False], ids=["replaced", "rewritten"])
def test_a_name_that_something_else_has_taken_is_left_to_it(replace: bool, tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    results = Results(path, {"n": 1})
    results.add(("a", 0), [line("a")])
    if replace:
        path.unlink()
    path.write_text("foreign")
    results.add(("b", 0), [line("b")])
    results.close()
    assert path.read_text() == "foreign"
    assert results.path == tmp_path / "r-answers.jsonl"
    assert list(read(results.path)[1]) == [("a", 0), ("b", 0)]


def test_a_directory_whose_place_a_file_has_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, results = started_and_removed(tmp_path)
    path.parent.write_text("foreign")
    monkeypatch.chdir(tmp_path)
    results.add(("b", 0), [line("b")])
    results.close()
    assert (tmp_path / "new").read_text() == "foreign"
    assert list(read(tmp_path / "r.jsonl")[1]) == [("a", 0), ("b", 0)]
