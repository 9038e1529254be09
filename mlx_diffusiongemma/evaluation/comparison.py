"""Compares two evaluations of one suite. Grades are paired by candidate, speeds by task and run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from ..console.messages import one_line
from ..console.tables import aligned
from ..errors import InputError
from .intervals import median_interval, paired_difference
from .results import Line, differing, read
from .table import SPEEDS, Row, number, percent

Pair = tuple[Line, Line]


def compare(first: Path, second: Path) -> str:
    """Compare the files `first` (A) and `second` (B). Return settings that differ and two tables, as text.

    One table shows shares, such as the share of right answers, for A, B and B - A. The other shows the speeds
    over all pairs, and the median of the ratios B / A. Where one speed of a pair is 0, its ratio is 0 or
    infinity. Raises `InputError` if the files are of different suites or have no task and run in common.
    """
    (settings_a, answers_a), (settings_b, answers_b) = read(first), read(second)
    for key in ("suite", "prompts", "suite_sha256"):  # suite_sha256 covers prompts and graders
        if settings_a.get(key) != settings_b.get(key):
            found = f"{first} has {key} {settings_a.get(key)}, {second} {settings_b.get(key)}"
            raise InputError(f"{found}; compare two of the same suite and version")
    common = [key for key in answers_a if key in answers_b]
    if not common:
        found = f"{first} and {second} have no answer to the same task in the same run"
        raise InputError(f"{found}; compare two that do")
    pairs = [pair for key in common for pair in zip(answers_a[key], answers_b[key], strict=False)]
    together = [(Row("A", answers_a[key]), Row("B", answers_b[key])) for key in common]
    alone = [sum(map(len, answers.values())) - len(pairs) for answers in (answers_a, answers_b)]
    differences = [one_line(f"{key}: {a} | {b}") for key, a, b in differing(settings_a, settings_b)]
    left_out = f"; left out: {alone[0]} answers of A and {alone[1]} of B, which have no partner"
    parts = [
        one_line(f"A {first}") + "\n" + one_line(f"B {second}"),
        "\n".join(differences) or "no setting differs",
        _shares(pairs),
        _speeds(together),
        f"{len(pairs)} pairs of answers" + (left_out if any(alone) else ""),
    ]
    return "\n\n".join(parts)


def _shares(pairs: Sequence[Pair]) -> str:
    """Return a table: shares of strict, lenient and delivered answers in all pairs, then strict by group."""
    judged = {name: [(bool(a[name]), bool(b[name])) for a, b in pairs] for name in ("strict", "lenient")}
    judged["delivered"] = [(a["outcome"] == "delivered", b["outcome"] == "delivered") for a, b in pairs]
    groups = dict.fromkeys(a["group"] for a, _ in pairs)
    for group in groups if len(groups) > 1 else ():
        judged[f"strict: {group}"] = [(a["strict"], b["strict"]) for a, b in pairs if a["group"] == group]
    cells = [["", "pairs", "A", "B", "B - A", "95% interval"]]
    for name, answers in judged.items():
        difference, interval = paired_difference(answers)
        shares = [percent(sum(pair[side] for pair in answers) / len(answers)) for side in (0, 1)]
        points = [f"{100 * value:+.1f}" for value in (difference, *interval)]
        cells.append([one_line(name), str(len(answers)), *shares, points[0], " to ".join(points[1:])])
    return aligned(cells, left=1)


def _speeds(pairs: Sequence[tuple[Row, Row]]) -> str:
    cells = [["", "pairs", "A", "B", "B / A", "95% interval"]]
    for name in (*SPEEDS, "seconds"):
        figures = [(_figure(a, name), _figure(b, name)) for a, b in pairs]
        known = [(x, y) for x, y in figures if x is not None and y is not None]
        ratios = [y / x if x else math.inf for x, y in known if x or y]
        if not ratios:
            cells.append([name, "0", "-", "-", "-", "-"])
            continue
        middle, interval = median_interval(ratios)
        width = f"{interval[0]:.2f} to {interval[1]:.2f}" if interval else "-"
        sides = [Row("all", [line for pair in pairs for line in pair[side].lines]) for side in (0, 1)]
        both = [number(_figure(side, name), 2) for side in sides]
        cells.append([name, str(len(ratios)), *both, f"{middle:.2f}", width])
    return aligned(cells, left=1)


def _figure(row: Row, name: str) -> float | None:
    return row.total("seconds") or None if name == "seconds" else row.speed(name)
