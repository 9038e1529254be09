"""The file of an evaluation: whole after any cut, one evaluation, one writer."""

from __future__ import annotations

import json

import pytest

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


def line(task="a", run=0, candidate=0, **changes):
    return {
        "task": task, "group": task, "run": run, "candidate": candidate, "outcome": "delivered",
        "strict": True, "lenient": True, "seconds": 1.0, "new_tokens": 5, "answer_tokens": 4, "blocks": 1,
        "denoising_steps": 2, "answer": "\u2028 \ud800 \n", **changes,
    }  # fmt: skip


def written(path, settings=SETTINGS, keys=(("a", 0), ("b", 0), ("a", 1))):
    results = Results(path, settings)
    for task, run in keys:
        results.add((task, run), [line(task, run, candidate) for candidate in range(settings["n"])])
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
        assert path.exists() == bool(there)
        if there:
            assert path.read_bytes().count(b"\n") == 1 + n * len(there)
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
        json.dumps(line("c", 0, 1) | {"kind": "answer"}).encode(),  # a candidate whose siblings are not there
        json.dumps({"kind": "answer", "task": "c", "run": 0, "candidate": 0}).encode(),
        b"[" * 100_000,
        b"",
    ],
)
def test_a_bad_line_is_named(tmp_path, bad):
    path = tmp_path / "r.jsonl"
    whole = written(path)
    path.write_bytes(whole + bad + b"\n")
    for use in (lambda: Results(path, SETTINGS), lambda: read(path)):
        with pytest.raises(InputError, match=r"r\.jsonl: line 5 is no answer that belongs there"):
            use()


def test_one_writer_at_a_time(tmp_path):
    path = tmp_path / "r.jsonl"
    first = Results(path, SETTINGS)
    with pytest.raises(InputError, match="another process is writing to it"):
        Results(path, SETTINGS)
    first.close()
    Results(path, SETTINGS).close()


def test_places_that_cannot_be_written_are_named(tmp_path):
    with pytest.raises(InputError, match=r"nowhere/r\.jsonl: No such file or directory; give another --out"):
        Results(tmp_path / "nowhere" / "r.jsonl", SETTINGS)
    with pytest.raises(InputError, match="No such file or directory; give a file"):
        read(tmp_path / "missing.jsonl")
