"""Runs the checks one after the other and prints a report; nothing is sent anywhere.

Each section is printed when it is done, so that a crash of the whole process shows where it happened. Lines
are indented: Markdown shows them as they are.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module

from ..console.messages import count
from ..errors import DiffusionGemmaError
from . import system
from .sheet import Sheet, first_line, foreign

# Title -> module with a function `check(sheet)`. Imported one by one: what cannot be imported is a finding.
CHECKS = {
    "Versions": "versions",
    "Device": "device",
    "Kernels": "kernels",
    "Engine": "engine",
    "Memory": "memory",
}
_WITHOUT_MLX = "Versions"
_TITLE = "## mlx_dg doctor"


def examine(show: Callable[[str], None], progress: Callable[[str], None]) -> bool:
    """Show the report, part by part. Return True if nothing is wrong. progress: takes what runs now."""
    problems: dict[str, None] = {}  # in their order; what several checks meet is shown once
    notes = []
    show(_TITLE)
    for title, module in CHECKS.items():
        progress(f"checking {title.lower()} ...")
        sheet = Sheet()
        if title == _WITHOUT_MLX or _imports_mlx(sheet):
            _check(sheet, title, module)
        show("\n".join([f"\n### {title}\n", *(f"    {line}".rstrip() for line in sheet.lines)]))
        problems |= dict.fromkeys(sheet.problems)
        notes += sheet.notes
    found = [f"- problem: {text}" for text in problems] + [f"- note: {text}" for text in notes]
    verdict = f"{count(len(problems), 'problem') if problems else 'no problem'} found"
    show("\n".join(["\n### Verdict\n", *found, *([""] if found else []), verdict]))
    return not problems


def _imports_mlx(sheet: Sheet) -> bool:
    """True if MLX can be imported. Otherwise write why, unless another finding says so: Rosetta."""
    try:
        import_module("mlx.core")
    except Exception as error:
        sheet.lines.append("not checked: mlx cannot be imported")
        if not system.is_translated():
            sheet.problems.append(
                f"mlx cannot be imported: {first_line(error)}; make a new environment and install again"
            )
        return False
    return True


def _check(sheet: Sheet, title: str, module: str) -> None:
    try:
        import_module(f"{__package__}.{module}").check(sheet)
    except DiffusionGemmaError as error:
        sheet.problems.append(foreign(str(error)))
    except Exception as error:
        sheet.problems.append(f"check {title} failed: {first_line(error)}; please report it with this text")
