"""The file of an evaluation: whole after any cut, one evaluation, one writer."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from answer_lines import line

from mlx_diffusiongemma.errors import InputError
from mlx_diffusiongemma.evaluation.results import Results, read

SETTINGS = {
    "suite": "six",
    "suite_sha256": "ab",
    "seed": 0,
    "n": 1,
    "model": "demo",
    "versions": {"mlx": "1"},
}


def written(path, settings=SETTINGS, keys=(("a", 0), ("b", 0), ("a", 1))):
    results = Results(path, settings)
    for task, run in keys:
        results.add((task, run), [line(task, run, candidate=candidate) for candidate in range(settings["n"])])
    results.close()
    return path.read_bytes()


def test_what_was_written_is_read(tmp_path):
    path = tmp_path / "r.jsonl"
    written(path)
    settings, answers = read(path)
    assert settings == SETTINGS | {"kind": "settings", "format": 1}
    assert list(answers) == [("a", 0), ("b", 0), ("a", 1)]
    assert answers["b", 0] == [line("b") | {"kind": "answer"}]


@pytest.mark.parametrize("n", [1, 3])
def test_a_file_cut_anywhere_goes_on_to_the_same_file(tmp_path, n):
    settings = SETTINGS | {"n": n}
    path = tmp_path / "r.jsonl"
    whole = written(path, settings)
    keys = [("a", 0), ("b", 0), ("a", 1)]
    ends = [place for place, byte in enumerate(whole) if byte == ord("\n")]
    for cut in sorted({*range(0, len(whole) + 1, 17), *ends, *(end + 1 for end in ends)}):
        path.write_bytes(whole[:cut])
        results = Results(path, settings)
        there = list(results.answers)
        assert there == keys[: len(there)]
        assert all(len(lines) == n for lines in results.answers.values())
        results.close()
        kept = path.read_bytes().count(b"\n")
        assert kept == 1 + n * len(there) or (kept == 0 and not there)
        assert whole[:cut].count(b"\n") < 1 + n * (len(there) + 1)  # nothing whole is thrown away
        assert written(path, settings, keys[len(there) :]) == whole


def test_other_settings_are_refused_and_the_file_is_left_alone(tmp_path):
    path = tmp_path / "r.jsonl"
    whole = written(path)
    with pytest.raises(InputError, match=r"r.jsonl: holds an evaluation with seed 0, not 1; give the same"):
        Results(path, SETTINGS | {"seed": 1})
    with pytest.raises(InputError, match=r'versions {"mlx": "1"}, not {"mlx": "2"}'):
        Results(path, SETTINGS | {"versions": {"mlx": "2"}})
    with pytest.raises(InputError, match="with extra null, not 3"):
        Results(path, SETTINGS | {"extra": 3})
    assert path.read_bytes() == whole


@pytest.mark.parametrize(
    "content",
    [b"notes without an end", b"notes\n", b'{"kind": "other"}\n', b"[]\n", b"\n", b"\x00\xff\n", b'{"kind"'],
)
def test_what_is_not_ours_is_refused_and_left_alone(tmp_path, content):
    path = tmp_path / "notes.txt"
    path.write_bytes(content)
    if content == b'{"kind"':  # half of our first line: what a kill can leave
        Results(path, SETTINGS).close()
        return
    for use in (lambda: Results(path, SETTINGS), lambda: read(path)):
        with pytest.raises(InputError, match="not a file that mlx_dg eval wrote"):
            use()
    assert path.read_bytes() == content


def test_another_format_says_so(tmp_path):
    path = tmp_path / "r.jsonl"
    path.write_text(json.dumps(SETTINGS | {"kind": "settings", "format": 2}) + "\n")
    with pytest.raises(InputError, match="format is 2, and 1 is what is known here"):
        read(path)


@pytest.mark.parametrize(
    "bad",
    [
        b"garbage",
        b"[1]",
        json.dumps(line("a") | {"kind": "answer"}).encode(),  # the same answer again
        json.dumps(line("c", 0, candidate=1) | {"kind": "answer"}).encode(),  # without its siblings
        json.dumps(line("c", 0) | {"kind": "other"}).encode(),
        json.dumps({"kind": "answer", "task": "c", "run": 0, "candidate": 0}).encode(),
        *(
            json.dumps(line("c") | change | {"kind": "answer"}).encode()
            for change in (
                {"task": 3},
                {"run": "0"},
                {"run": -1},
                {"group": [1]},
                {"strict": "no"},
                {"lenient": None},
                {"outcome": "banana"},
                {"seconds": None},
                {"seconds": "1"},
                {"seconds": -1.0},
                {"reason": None},
                {"seconds": float("nan")},
                {"answer_tokens": "9"},
                {"blocks": -1},
                {"details": []},
            )
        ),
        b"[" * 100_000,
        b"",
    ],
)
def test_a_bad_line_is_named(tmp_path, bad):
    path = tmp_path / "r.jsonl"
    path.write_bytes(written(path) + bad + b"\n")
    for use in (lambda: Results(path, SETTINGS), lambda: read(path)):
        with pytest.raises(InputError, match=r"r\.jsonl: line 5 is no answer that belongs there"):
            use()


def test_candidates_of_two_prompts_may_not_mix(tmp_path):
    path = tmp_path / "r.jsonl"
    header, *lines = written(path, SETTINGS | {"n": 2}, (("a", 0), ("b", 0))).splitlines(keepends=True)
    path.write_bytes(header + lines[0] + lines[2] + lines[1] + lines[3])
    with pytest.raises(InputError, match="line 4 is no answer that belongs there"):
        read(path)


def test_a_prompt_without_all_its_candidates_is_not_read(tmp_path):
    path = tmp_path / "r.jsonl"
    whole = written(path, SETTINGS | {"n": 2}, (("a", 0), ("b", 0)))
    path.write_bytes(b"".join(whole.splitlines(keepends=True)[:-1]))
    assert list(read(path)[1]) == [("a", 0)]


def test_one_writer_at_a_time(tmp_path):
    path = tmp_path / "r.jsonl"
    early, first = Results(path, SETTINGS), Results(path, SETTINGS)  # neither has anything to write yet
    first.add(("a", 0), [line("a")])
    for use in (lambda: Results(path, SETTINGS), lambda: early.add(("a", 0), [line("a")])):
        with pytest.raises(InputError, match="another process is writing to it"):
            use()
    first.close()
    assert list(read(path)[1]) == [("a", 0)]
    Results(path, SETTINGS).close()


def test_nothing_is_written_before_an_answer_and_nothing_is_removed(tmp_path):
    Results(tmp_path / "new.jsonl", SETTINGS).close()
    assert not (tmp_path / "new.jsonl").exists()
    (tmp_path / "empty").touch()
    (tmp_path / "link").symlink_to(tmp_path / "empty")
    Results(tmp_path / "link", SETTINGS).close()
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "empty").read_bytes() == b""


def test_every_answer_is_synchronised(tmp_path, monkeypatch):
    synchronised = []
    monkeypatch.setattr(os, "fsync", lambda number: synchronised.append(os.fstat(number).st_size))
    sizes = []
    results = Results(tmp_path / "r", SETTINGS)
    for run in range(3):
        results.add(("a", run), [line("a", run)])
        sizes.append((tmp_path / "r").stat().st_size)
    results.close()
    assert synchronised == sizes


def test_a_full_disk_is_told_with_the_name(tmp_path, monkeypatch):
    def full(number):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    results = Results(tmp_path / "r.jsonl", SETTINGS)
    with pytest.raises(OSError, match=r"No space left on device: '.*r\.jsonl'"):
        results.add(("a", 0), [line("a")])
    assert results.answers == {}
    results.close()


def test_places_that_cannot_be_written_are_named(tmp_path):
    with pytest.raises(InputError, match=r"nowhere/r\.jsonl: no such directory; give another --out"):
        Results(tmp_path / "nowhere" / "r.jsonl", SETTINGS)
    for place in (Path("/dev/null"), tmp_path):
        with pytest.raises(InputError, match=f"{place}: is no file; give another --out"):
            Results(place, SETTINGS)
    with pytest.raises(InputError, match="No such file or directory; give a file"):
        read(tmp_path / "missing.jsonl")
