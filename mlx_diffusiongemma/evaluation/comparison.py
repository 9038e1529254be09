"""Two evaluations of one suite, pair by pair.

Grades: the same task, run and candidate make a pair. Speeds: the same task and run, whose candidates ran
together.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from mlx_diffusiongemma.console.tables import aligned
from mlx_diffusiongemma.errors import InputError

from .intervals import median_interval, paired_difference
from .results import Line, read
from .table import Row, percent

Pair = tuple[Line, Line]
# As in the table; None when there is nothing to divide.
_SPEEDS: dict[str, Callable[[Row], float | None]] = {
    "net tokens/s": lambda row: row.net_tokens_per_second,
    "tokens/forward": lambda row: row.tokens_per_forward,
    "steps/block": lambda row: row.steps_per_block,
    "seconds": lambda row: row.seconds or None,
}


def compare(first: Path, second: Path) -> str:
    """What the files have in common and where they differ, as text.

    Shares of right and of delivered answers: the paired difference, second less first. Speeds: of all pairs
    together, and the median of the pairs' ratios, second over first; a pair without an answer on one side has
    the ratio 0 or infinity. Raises `InputError` when they are not of the same suite.
    """
    (settings_a, answers_a), (settings_b, answers_b) = read(first), read(second)
    for key in ("suite", "prompts", "suite_sha256"):
        if settings_a.get(key) != settings_b.get(key):
            found = f"{first} has {key} {settings_a.get(key)}, {second} {settings_b.get(key)}"
            same = "prompts and graders" if key == "suite_sha256" else "suite"
            raise InputError(f"{found}; compare two of the same {same}")
    common = [key for key in answers_a if key in answers_b]
    if not common:
        raise InputError(f"{first} and {second} have no answer to the same task in the same run")
    pairs = [pair for key in common for pair in zip(answers_a[key], answers_b[key], strict=False)]
    together = [(Row("A", answers_a[key]), Row("B", answers_b[key])) for key in common]
    unpaired = [sum(map(len, answers.values())) - len(pairs) for answers in (answers_a, answers_b)]
    parts = [
        f"A {first}\nB {second}",
        _differing(settings_a, settings_b),
        _shares(pairs),
        _speeds(together),
        f"{len(pairs)} pairs of answers" + (
            f"; left out: {unpaired[0]} answers of A and {unpaired[1]} of B, which have no partner"
            if any(unpaired) else ""
        ),
    ]  # fmt: skip
    return "\n\n".join(part for part in parts if part)


def _differing(first: Line, second: Line) -> str:
    """The settings that are not the same, one a line."""
    flat_a, flat_b = _flat(first), _flat(second)
    lines = [
        f"{key}: {json.dumps(flat_a.get(key))} | {json.dumps(flat_b.get(key))}"
        for key in dict.fromkeys([*flat_a, *flat_b])
        if flat_a.get(key) != flat_b.get(key)
    ]
    return "\n".join(lines) if lines else "no setting differs"


def _flat(settings: Line) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, dict):
            flat |= {f"{key}.{inner}": part for inner, part in value.items()}
        else:
            flat[key] = value
    return flat


def _shares(pairs: Sequence[Pair]) -> str:
    """All pairs' shares of strict, lenient and delivered, then every group's strict one."""
    cells = [["", "pairs", "A", "B", "B - A", "95% interval"]]
    for name in ("strict", "lenient", "delivered"):
        judged = [(_holds(a, name), _holds(b, name)) for a, b in pairs]
        cells.append([name, *_share_cells(judged)])
    groups: dict[str, list[tuple[bool, bool]]] = {}
    for a, b in pairs:
        groups.setdefault(a["group"], []).append((a["strict"], b["strict"]))
    if len(groups) > 1:
        cells += [[f"strict: {group}", *_share_cells(judged)] for group, judged in groups.items()]
    return aligned(cells, left=1)


def _holds(line: Line, name: str) -> bool:
    return line["outcome"] == "delivered" if name == "delivered" else bool(line[name])


def _share_cells(judged: list[tuple[bool, bool]]) -> list[str]:
    difference, (low, high) = paired_difference(judged)
    first, second = (sum(pair[side] for pair in judged) / len(judged) for side in (0, 1))
    interval = f"{_points(low)} to {_points(high)}"
    return [str(len(judged)), percent(first), percent(second), _points(difference), interval]


def _points(difference: float) -> str:
    return f"{100 * difference:+.1f}"


def _speeds(pairs: Sequence[tuple[Row, Row]]) -> str:
    cells = [["", "pairs", "A", "B", "B / A", "95% interval"]]
    for name, of in _SPEEDS.items():
        told = [(x, y) for x, y in ((of(a), of(b)) for a, b in pairs) if x is not None and y is not None]
        ratios = [y / x if x else math.inf for x, y in told if x or y]
        if not ratios:
            cells.append([name, "0", "-", "-", "-", "-"])
            continue
        middle, interval = median_interval(ratios)
        shown = f"{interval[0]:.2f} to {interval[1]:.2f}" if interval else "-"
        both = [of(Row("all", [line for pair in pairs for line in pair[side].lines])) for side in (0, 1)]
        cells.append([name, str(len(ratios)), *(_figure(value) for value in both), f"{middle:.2f}", shown])
    return aligned(cells, left=1)


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
