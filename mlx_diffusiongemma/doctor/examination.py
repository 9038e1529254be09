"""Runs the checks one after the other and prints a report. Nothing is sent over the network.

Each section is printed when its check is done, so that a crash of the whole process shows where it happened.
Lines are indented, so that Markdown shows them unchanged.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module

from ..console.messages import count
from . import system
from .sheet import Sheet

# Title -> module with a function `check(sheet)`. A module that cannot be imported is reported as a problem.
CHECKS = {title: title.lower() for title in ("Versions", "Device", "Kernels", "Engine", "Memory")}
_WITHOUT_MLX = "Versions"


def examine(
    show: Callable[[str], None], progress: Callable[[str], None], aside: Callable[[str], None]
) -> bool:
    """Show the report, section by section. Return True if no problem was found.

    Args:
        show: gets the report. progress: gets the check that runs now. aside: gets messages that the report
            omits, because they may hold private data.
    """
    problems: dict[str, None] = {}  # an ordered set, so that a problem of several checks is shown once
    notes = []
    show("## mlx_dg doctor")
    for title, module in CHECKS.items():
        progress(f"checking {title.lower()} ...")
        sheet = Sheet()
        if title == _WITHOUT_MLX or _imports_mlx(sheet):
            try:
                import_module(f"{__package__}.{module}").check(sheet)
            except Exception as error:
                sheet.failed(f"check {title}", error)
        show("\n".join([f"\n### {title}\n", *(f"    {line}".rstrip() for line in sheet.lines)]))
        problems |= dict.fromkeys(sheet.problems)
        notes += sheet.notes
        for detail in sheet.details:
            aside(detail)
    found = [f"- problem: {text}" for text in problems] + [f"- note: {text}" for text in notes]
    verdict = f"{count(len(problems), 'problem') if problems else 'no problem'} found"
    show("\n".join(["\n### Verdict\n", *found, *([""] if found else []), verdict]))
    return not problems


def _imports_mlx(sheet: Sheet) -> bool:
    """Return True if MLX can be imported. Otherwise report a problem, unless Rosetta is reported as one."""
    try:
        import_module("mlx.core")
    except Exception as error:
        sheet.lines.append("not checked: mlx cannot be imported")
        if not system.is_translated():
            sheet.problems.append("mlx cannot be imported; make a new environment and install again")
            sheet.details.append(f"import of mlx: {error}")
        return False
    return True
