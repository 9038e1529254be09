"""Two evaluations side by side, and the intervals, against published values and computed coverage."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import pytest
from support.answer_lines import line

from mlx_diffusiongemma.errors import InputError
from mlx_diffusiongemma.evaluation.comparison import compare
from mlx_diffusiongemma.evaluation.intervals import median_interval, paired_difference, wilson
from mlx_diffusiongemma.evaluation.results import Results

SETTINGS = {
    "suite": "six", "prompts": None, "suite_sha256": "ab", "seed": 0, "n": 1, "runner": "mlx_dg",
    "versions": {"mlx": "1", "other": "2"},
}  # fmt: skip


def written(path: Path, lines: list[dict[str, Any]], **settings: Any) -> Path:
    results = Results(path, SETTINGS | settings)
    for answer in lines:
        results.add((answer["task"], answer["run"]), [answer])
    results.close()
    return path


def row(text: str, name: str) -> list[str]:
    (found,) = [line for line in text.splitlines() if line.startswith(f"{name}  ")]
    return re.split(r"  +", found)[1:]


def both(tmp_path: Path, first: Any, second: Any, **settings: Any) -> tuple[Path, Path]:
    return written(tmp_path / "a", first), written(tmp_path / "b", second, **settings)


def test_pairs_are_the_same_task_and_run_in_any_order(tmp_path: Path) -> None:
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
    assert 'runner: "mlx_dg" | "mlx-vlm"\nversions: {"other": "2"} | {"other": "3"}\n' in text


def test_ratios_are_of_pairs_and_a_missing_answer_counts(tmp_path: Path) -> None:
    seconds = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0]
    first = [line("t", run, seconds=s) for run, s in enumerate(seconds)]
    stuck = {"outcome": "stuck", "answer_tokens": 0}
    second = [
        line("t", run, seconds=2 * s if run < 6 else s / 1000, **stuck) for run, s in enumerate(seconds)
    ]
    text = compare(*both(tmp_path, first, second))
    assert row(text, "seconds") == ["7", "127.00", "126.06", "2.00", "0.00 to 2.00"]
    assert row(text, "net tokens/s") == ["7", "1.10", "0.00", "0.00", "0.00 to 0.00"]
    turned = row(compare(tmp_path / "b", tmp_path / "a"), "net tokens/s")
    assert turned == ["7", "0.00", "1.10", "inf", "inf to inf"]


def test_candidates_are_paired_by_number_and_timed_together(tmp_path: Path) -> None:
    for name, right, seconds in (("a", (True, False), 2.0), ("b", (True, True), 4.0)):
        results = Results(tmp_path / name, SETTINGS | {"n": 2})
        for run in range(3):
            lines = [line("t", run, candidate=c, strict=s, seconds=seconds) for c, s in enumerate(right)]
            results.add(("t", run), lines)
        results.close()
    text = compare(tmp_path / "a", tmp_path / "b")
    assert row(text, "strict")[:4] == ["6", "50.0%", "100.0%", "+50.0"]
    assert row(text, "seconds") == ["3", "6.00", "12.00", "2.00", "-"]  # too few for an interval


@pytest.mark.parametrize(("settings", "lines", "message"), [
    ({"suite": "matrix"}, [line("t")], "a has suite six, .*b matrix; compare two of the same suite"),
    ({"suite_sha256": "cd"}, [line("t")], "has suite_sha256 ab, .* cd; compare two of the same suite and"),
    ({"prompts": "demo"}, [line("t")], "has prompts None, .* demo; compare two of the same suite"),
    ({}, [line("t", 1)], "have no answer to the same task in the same run"),
])  # fmt: skip
def test_files_that_cannot_be_compared(tmp_path: Path, settings: Any, lines: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        compare(*both(tmp_path, [line("t")], lines, **settings))


# --- intervals --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("right", "total", "low", "high"), [
    (81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611),
    (1, 29, 0.0061, 0.1718), (20, 20, 1 - 0.1611, 1.0), (0, 0, 0.0, 1.0),
])  # fmt: skip
def test_a_share(right: int, total: int, low: float, high: float) -> None:
    """Newcombe 1998, "Two-sided confidence intervals for the single proportion", table I, method 3."""
    assert wilson(right, total) == pytest.approx((low, high), abs=5e-5)


def pairs(*counts: int) -> list[tuple[bool, bool]]:
    """Pairs of both, first only, second only, neither."""
    kinds = ((True, True), (True, False), (False, True), (False, False))
    return [kind for kind, count in zip(kinds, counts, strict=True) for _ in range(count)]


def test_a_published_difference() -> None:
    # Newcombe 1998, "Improved confidence intervals for the difference between binomial proportions based on
    # paired data", 36 / 12 / 2 / 0, method 10; there it is the first less the second.
    difference, (low, high) = paired_difference(pairs(36, 12, 2, 0))
    assert (difference, low, high) == pytest.approx((-0.2, -0.3404, -0.0569), abs=5e-5)
    difference, (low, high) = paired_difference(pairs(20, 12, 2, 16))  # with the continuity correction
    assert (difference, low, high) == pytest.approx((-0.2, -0.3292, -0.0562), abs=5e-5)
    assert paired_difference([]) == (0.0, (-1.0, 1.0))
    difference, (low, high) = paired_difference(pairs(10, 0, 0, 10))
    assert low < difference == 0 < high


@pytest.mark.parametrize("count", [6, 7, 18, 60])
def test_a_median_is_covered_as_often_as_promised_and_no_wider(count: int) -> None:
    median, interval = median_interval(range(1, count + 1))
    assert median == (count + 1) / 2
    assert interval is not None
    low, high = interval

    def missed(k: float) -> float:  # chance that fewer than k values lie on one side of the true median
        return 2 * sum(math.comb(count, i) for i in range(int(k))) / 2**count

    assert low + high == count + 1
    assert missed(low) <= 0.05 < missed(low + 1)
    assert median_interval([5, 1, 4, 2, 3]) == (3, None)
