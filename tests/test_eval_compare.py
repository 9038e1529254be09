"""Two evaluations side by side: what makes a pair, and what is said of it."""

from __future__ import annotations

import re

import pytest
from answer_lines import line

from mlx_diffusiongemma.errors import InputError
from mlx_diffusiongemma.evaluation.comparison import compare
from mlx_diffusiongemma.evaluation.results import Results

SETTINGS = {
    "suite": "six", "prompts": None, "suite_sha256": "ab", "seed": 0, "n": 1, "runner": "mlx_dg",
    "versions": {"mlx": "1", "other": "2"},
}  # fmt: skip


def written(path, lines, **settings):
    results = Results(path, SETTINGS | settings)
    for answer in lines:
        results.add((answer["task"], answer["run"]), [answer])
    results.close()
    return path


def row(text, name):
    (found,) = [line for line in text.splitlines() if line.startswith(f"{name}  ")]
    return re.split(r"  +", found)[1:]


def both(tmp_path, first, second, **settings):
    return written(tmp_path / "a", first), written(tmp_path / "b", second, **settings)


def test_pairs_are_the_same_task_and_run_in_whatever_order(tmp_path):
    first = [line(task, run, strict=task == "x") for run in range(4) for task in "xy"]
    second = [line(task, run, strict=task == "y", seconds=1.0) for task in "yxz" for run in (3, 1, 0)]
    text = compare(*both(tmp_path, first, second, runner="mlx-vlm", versions={"mlx": "1", "other": "3"}))
    assert row(text, "strict")[:4] == ["6", "50.0%", "50.0%", "+0.0"]
    assert row(text, "strict: x")[:4] == ["3", "100.0%", "0.0%", "-100.0"]
    assert row(text, "strict: y")[:4] == ["3", "0.0%", "100.0%", "+100.0"]
    assert "strict: z" not in text
    # every pair: 20 tokens in 2 s against 20 in 1 s
    assert row(text, "net tokens/s") == ["6", "10.00", "20.00", "2.00", "2.00 to 2.00"]
    assert row(text, "seconds") == ["6", "12.00", "6.00", "0.50", "0.50 to 0.50"]
    assert row(text, "steps/block") == ["6", "5.00", "5.00", "1.00", "1.00 to 1.00"]
    assert row(text, "tokens/forward") == ["6", "4.00", "4.00", "1.00", "1.00 to 1.00"]
    assert text.endswith("6 pairs of answers; left out: 2 answers of A and 3 of B, which have no partner")
    assert 'runner: "mlx_dg" | "mlx-vlm"\nversions.other: "2" | "3"\n' in text
    assert "versions.mlx" not in text


def test_ratios_are_of_pairs_not_of_medians(tmp_path):
    seconds = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0]
    first = [line("t", run, seconds=s) for run, s in enumerate(seconds)]
    second = [line("t", run, seconds=2 * s if run < 6 else s / 1000) for run, s in enumerate(seconds)]
    text = compare(*both(tmp_path, first, second))
    assert row(text, "seconds") == ["7", "127.00", "126.06", "2.00", "0.00 to 2.00"]


def test_an_answer_that_never_came_counts_against_its_side(tmp_path):
    first = [line("t", run) for run in range(8)]
    stuck = {"outcome": "stuck", "answer_tokens": 0, "seconds": 60.0}
    second = [line("t", run, **(stuck if run < 5 else {})) for run in range(8)]
    text = compare(*both(tmp_path, first, second))
    assert row(text, "net tokens/s") == ["8", "10.00", "0.20", "0.00", "0.00 to 1.00"]
    text = compare(tmp_path / "b", tmp_path / "a")
    assert row(text, "net tokens/s") == ["8", "0.20", "10.00", "inf", "1.00 to inf"]


def test_speeds_are_of_prompts_not_of_their_candidates(tmp_path):
    """Candidates run together: three prompts of two are three measurements, too few for an interval."""
    for name, seconds in (("a", 2.0), ("b", 4.0)):
        results = Results(tmp_path / name, SETTINGS | {"n": 2})
        for run in range(3):
            results.add(("t", run), [line("t", run, candidate=c, seconds=seconds) for c in range(2)])
        results.close()
    text = compare(tmp_path / "a", tmp_path / "b")
    assert row(text, "net tokens/s") == ["3", "20.00", "10.00", "0.50", "-"]
    assert row(text, "strict")[0] == "6"


def test_shares_of_what_was_delivered_and_lenient(tmp_path):
    first = [line("t", run, outcome="stuck" if run < 2 else "cut", strict=False) for run in range(4)]
    second = [line("t", run, lenient=run == 0) for run in range(4)]
    text = compare(*both(tmp_path, first, second))
    assert row(text, "delivered")[1:4] == ["0.0%", "100.0%", "+100.0"]
    assert row(text, "lenient")[1:4] == ["100.0%", "25.0%", "-75.0"]
    assert "no setting differs" in text
    assert "strict: t" not in text  # one task is what the line of all says already


def test_equal_answers_leave_room_for_what_so_few_cannot_show(tmp_path):
    lines = [line("t", run) for run in range(5)]
    text = compare(*both(tmp_path, lines, lines))
    difference, interval = row(text, "strict")[3:]
    assert difference == "+0.0"
    low, high = map(float, interval.split(" to "))
    assert low < -20
    assert high > 20
    assert row(text, "seconds")[-1] == "-"  # five ratios are too few


def test_what_was_not_told_is_left_out(tmp_path):
    silent = [line("t", run, answer_tokens=None, blocks=None, denoising_steps=None) for run in range(3)]
    text = compare(*both(tmp_path, silent, [line("t", run) for run in range(3)]))
    assert row(text, "net tokens/s") == ["0", "-", "-", "-", "-"]
    assert row(text, "seconds")[0] == "3"


def test_candidates_are_paired_by_number(tmp_path):
    for name, right in (("a", (True, False)), ("b", (True, True))):
        results = Results(tmp_path / name, SETTINGS | {"n": 2})
        results.add(("t", 0), [line("t", 0, candidate=c, strict=s) for c, s in enumerate(right)])
        results.close()
    text = compare(tmp_path / "a", tmp_path / "b")
    assert row(text, "strict")[:4] == ["2", "50.0%", "100.0%", "+50.0"]


@pytest.mark.parametrize(
    ("settings", "lines", "message"),
    [
        ({"suite": "matrix"}, [line("t", 0)], "a has suite six, .*b matrix; compare two of the same suite"),
        ({"suite_sha256": "cd"}, [line("t", 0)], "has suite_sha256 ab, .* cd; .* same prompts and graders"),
        ({"prompts": "demo"}, [line("t", 0)], "has prompts None, .* demo; compare two of the same suite"),
        ({}, [line("t", 1)], "have no answer to the same task in the same run"),
    ],
)
def test_what_cannot_be_compared_is_refused(tmp_path, settings, lines, message):
    with pytest.raises(InputError, match=message):
        compare(*both(tmp_path, [line("t", 0)], lines, **settings))
