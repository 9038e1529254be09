"""Answers as one table: how many are right, how fast they came, and whether they came at all."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from mlx_diffusiongemma.console.tables import aligned

from .intervals import wilson
from .results import Key, Line


@dataclass
class Row:
    """Counts of one line. Sums of what a runner did not tell are None from then on."""

    name: str
    lines: list[Line] = field(default_factory=list)

    @property
    def answers(self) -> int:
        return len(self.lines)

    def count(self, key: str, value: object = True) -> int:
        return sum(line[key] == value for line in self.lines)

    def share(self, key: str, value: object = True) -> float:
        return self.count(key, value) / self.answers

    def total(self, key: str) -> float | None:
        values = [line[key] for line in self.lines if line["outcome"] != "error"]
        return None if None in values else sum(values)

    @property
    def seconds(self) -> float:
        """Candidates run together: of each group, the longest."""
        longest: dict[Key, float] = {}
        for line in self.lines:
            key = (line["task"], line["run"])
            longest[key] = max(longest.get(key, 0.0), line["seconds"])
        return sum(longest.values())

    @property
    def net_tokens_per_second(self) -> float | None:
        return ratio(self.total("answer_tokens"), self.seconds)

    @property
    def tokens_per_forward(self) -> float | None:
        return ratio(self.total("new_tokens"), self.total("denoising_steps"))

    @property
    def steps_per_block(self) -> float | None:
        return ratio(self.total("denoising_steps"), self.total("blocks"))

    @property
    def any_of_candidates(self) -> float:
        """Share of the runs of a task in which a candidate is strictly right."""
        best: dict[Key, bool] = {}
        for line in self.lines:
            key = (line["task"], line["run"])
            best[key] = best.get(key, False) or line["strict"]
        return sum(best.values()) / len(best)


def ratio(part: float | None, whole: float | None) -> float | None:
    return part / whole if part is not None and whole else None


def rows(lines: Iterable[Line]) -> list[Row]:
    """One a group, in the order in which they come, and all together under "all"."""
    groups: dict[str, Row] = {}
    everything = Row("all")
    for line in lines:
        groups.setdefault(line["group"], Row(line["group"])).lines.append(line)
        everything.lines.append(line)
    return [*groups.values(), everything]


def table(lines: Sequence[Line], candidates: int) -> str:
    """The table of an evaluation. Raises nothing, also with no answers."""
    if not lines:
        return "no answers"
    header = ["task", "answers", "strict", "lenient", "delivered", "stuck", "net tokens/s", "tokens/forward",
              "steps/block"]  # fmt: skip
    if candidates > 1:
        header.insert(3, f"any of {candidates}")
    cells = [header]
    found = rows(lines)
    for row in found:
        shares = [row.share("strict"), row.share("lenient")]
        if candidates > 1:
            shares.insert(1, row.any_of_candidates)
        shares += [row.share("outcome", "delivered"), row.share("outcome", "stuck")]
        figures = (row.net_tokens_per_second, row.tokens_per_forward, row.steps_per_block)
        cells.append(
            [row.name, str(row.answers), *map(percent, shares), *(number(figure) for figure in figures)]
        )
    everything = found[-1]
    right = everything.count("strict")
    low, high = wilson(right, everything.answers)
    summary = (
        f"strict: {right} of {everything.answers}, {percent(right / everything.answers)} "
        f"(95% interval {percent(low)} to {percent(high)})"
    )
    parts = [aligned(cells, left=1), "", summary, *_not_delivered(everything), *_details(found[:-1])]
    return "\n".join(parts)


def _not_delivered(row: Row) -> list[str]:
    """What else came than answers, in words, and the most frequent error."""
    meanings = {
        "stuck": "ended inside the thought",
        "cut": "ended inside the answer",
        "empty": "said nothing",
        "error": "failed",
    }
    counts = Counter(line["outcome"] for line in row.lines)
    listed = [f"{counts[outcome]} {meaning}" for outcome, meaning in meanings.items() if counts[outcome]]
    errors = Counter(line["reason"] for line in row.lines if line["outcome"] == "error")
    most = [f"most frequent failure: {reason}" for reason, _ in errors.most_common(1)]
    return ([f"not delivered: {', '.join(listed)}"] if listed else []) + most


def _details(found: Sequence[Row]) -> list[str]:
    """What graders say beyond right and wrong, as far as it is yes or no: in how many answers it is yes."""
    told = []
    for row in found:
        said = [item for line in row.lines for item in line["details"].items()]
        names = dict.fromkeys(name for name, value in said if isinstance(value, bool))
        counts = [f"{name} {sum(line['details'].get(name) is True for line in row.lines)}" for name in names]
        if counts:
            told.append(f"{row.name}, of {row.answers}: {', '.join(counts)}")
    return told


def percent(share: float) -> str:
    return f"{100 * share:.1f}%"


def number(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"
