"""Lines of the report, and findings. They hold only fields that cannot name a user, a machine or a place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass
class Sheet:
    """One section of the report.

    lines: in their order. problems: something does not work. notes: it works, but there is something to
    know. details: messages from outside the package. They may hold anything, so they are not in the report.
    """

    lines: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    details: list[str] = field(default_factory=list)

    def facts(self, facts: Sequence[tuple[str, str]]) -> None:
        """Add names and their values, in two columns. Names without a value are left out."""
        facts = [(name, value) for name, value in facts if value]
        width = max(len(name) for name, _ in facts)
        self.lines += [f"{name.ljust(width)}  {value}" for name, value in facts]

    def failed(self, what: str, error: Exception) -> None:
        """Add a problem. Its message is a detail."""
        name = type(error).__name__
        self.problems.append(f"{what} failed with {name}; standard error has its message, please report both")
        self.details.append(f"{what}: {name}: {error}")
