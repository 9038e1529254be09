"""Runs the checks one after the other and prints a report; nothing is sent anywhere.

Each section is printed when it is done, so that a crash of the whole process shows where it happened. Lines
are indented: Markdown shows them as they are.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module

from .sheet import Sheet, first_line

# Title -> module with a function `check(sheet)`. Imported one by one: what cannot be imported is a finding.
CHECKS = {
    "Versions": "versions",
    "Device": "device",
    "Kernels": "kernels",
    "Engine": "engine",
    "Memory": "memory",
}
_TITLE = "## mlx_dg doctor"


def examine(show: Callable[[str], None], progress: Callable[[str], None]) -> bool:
    """Shows the report, part by part, and tells whether nothing is wrong. progress: takes what runs now."""
    problems, notes = [], []
    show(_TITLE)
    for title, module in CHECKS.items():
        progress(f"checking {title.lower()} ...")
        sheet = Sheet()
        try:
            import_module(f"{__package__}.{module}").check(sheet)
        except Exception as error:
            sheet.problems.append(
                f"check {title} failed: {first_line(error)}; please report it with this text"
            )
        show("\n".join([f"\n### {title}\n", *(f"    {line}".rstrip() for line in sheet.lines)]))
        problems += sheet.problems
        notes += sheet.notes
    found = [f"- problem: {text}" for text in problems] + [f"- note: {text}" for text in notes]
    count = (
        f"{len(problems)} problem{'s' if len(problems) > 1 else ''} found" if problems else "no problem found"
    )
    show("\n".join(["\n### Verdict\n", *found, *([""] if found else []), count]))
    return not problems
