"""Formats an evaluation as a table: shares of right answers, speeds, and counts of missing answers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from ..console.messages import one_line
from ..console.tables import aligned
from .intervals import wilson
from .results import Line

_MISSING = {"stuck": "ended inside the thought", "cut": "cut", "empty": "empty", "error": "failed"}
# Name of a speed -> the two totals of a `Row` that are divided.
SPEEDS = {
    "net tokens/s": ("answer_tokens", "seconds"),
    "tokens/forward": ("new_tokens", "denoising_steps"),
    "steps/block": ("denoising_steps", "blocks"),
}


@dataclass
class Row:
    """The answers that one line of the table summarizes."""

    name: str
    lines: list[Line] = field(default_factory=list)

    def count(self, key: str, value: object = True) -> int:
        return sum(line[key] == value for line in self.lines)

    def share(self, key: str, value: object = True) -> float:
        return self.count(key, value) / len(self.lines)

    def best(self, key: str) -> list[float]:
        """Return the largest value of `key` among the candidates of each task and run."""
        best: dict[tuple[str, int], float] = {}
        for line in self.lines:
            place = (line["task"], line["run"])
            best[place] = max(best.get(place, 0), line[key])
        return list(best.values())

    def total(self, key: str) -> float | None:
        """Return the sum of `key`, None if a reply lacks it. For seconds, the slowest candidate counts."""
        if key == "seconds":
            return sum(self.best("seconds"))
        values = [line[key] for line in self.lines if line["outcome"] != "error"]
        return None if None in values else sum(values)

    def speed(self, name: str) -> float | None:
        """Return the speed called `name` in SPEEDS, or None if a total is unknown or the divisor is 0."""
        part, whole = map(self.total, SPEEDS[name])
        return part / whole if part is not None and whole else None


def rows(lines: Iterable[Line]) -> list[Row]:
    """Return a row for each group, in order, and then the row "all" of all lines."""
    groups, everything = dict[str, Row](), Row("all", list(lines))
    for line in everything.lines:
        groups.setdefault(line["group"], Row(line["group"])).lines.append(line)
    return [*groups.values(), everything]


def table(lines: Sequence[Line], candidates: int = 1) -> str:
    """Return the table of an evaluation. candidates: their number per task and run."""
    if not lines:
        return "no answers"
    several = [f"any of {candidates}"] if candidates > 1 else []
    cells = [["task", "answers", "strict", *several, "lenient", "delivered", "stuck", *SPEEDS]]
    *groups, row = rows(lines)
    for each in (*groups, row):
        best = each.best("strict")
        shares = [each.share("strict"), *([sum(best) / len(best)] if several else []), each.share("lenient")]
        shares += [each.share("outcome", "delivered"), each.share("outcome", "stuck")]
        figures = [number(each.speed(name)) for name in SPEEDS]
        cells.append([one_line(each.name), str(len(each.lines)), *map(percent, shares), *figures])
    low, high = wilson(row.count("strict"), len(row.lines))
    share, interval = percent(row.share("strict")), f"95% interval {percent(low)} to {percent(high)}"
    summary = f"strict: {row.count('strict')} of {len(row.lines)}, {share} ({interval})"
    return "\n".join([aligned(cells, left=1), "", summary, *_not_delivered(row), *_details(groups)])


def _not_delivered(row: Row) -> list[str]:
    """Return a line that counts outcomes other than "delivered", and a line with the most frequent error."""
    counts = [(row.count("outcome", key), text) for key, text in _MISSING.items()]
    listed = ", ".join(f"{count} {text}" for count, text in counts if count)
    errors = Counter(line["reason"] for line in row.lines if line["outcome"] == "error")
    most = [f"most frequent failure: {one_line(reason)}" for reason, _ in errors.most_common(1)]
    return [f"not delivered: {listed}", *most] if listed else []


def _details(groups: Sequence[Row]) -> Iterator[str]:
    """Yield a line for each group: for each boolean detail of its grades, how many answers have it True."""
    for row in groups:
        details = [item for line in row.lines for item in line["details"].items()]
        names = dict.fromkeys(name for name, value in details if isinstance(value, bool))
        counts = ", ".join(f"{name} {details.count((name, True))}" for name in names)
        if counts:
            yield one_line(f"{row.name}, of {len(row.lines)}: {counts}")


def percent(share: float) -> str:
    return f"{100 * share:.1f}%"


def number(value: float | None, digits: int = 1) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
