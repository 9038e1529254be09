"""Lines and findings of the report. They hold only data that cannot name a user, a machine or a place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass
class Sheet:
    """One section of the report.

    lines: lines of the section, in order. problems: findings about things that do not work. notes: findings
    about things that work, but not well. details: messages from outside the package. They may hold private
    data, so they are not in the report.
    """

    lines: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    details: list[str] = field(default_factory=list)

    def facts(self, facts: Sequence[tuple[str, str]]) -> None:
        """Add lines with names and values in two columns. Names with an empty value are left out."""
        facts = [(name, value) for name, value in facts if value]
        width = max(len(name) for name, _ in facts)
        self.lines += [f"{name.ljust(width)}  {value}" for name, value in facts]

    def failed(self, what: str, error: Exception) -> None:
        """Add a problem that names the type of `error`, and a detail with its message."""
        name = type(error).__name__
        self.problems.append(f"{what} failed with {name}; standard error has its message, please report both")
        self.details.append(f"{what}: {name}: {error}")
