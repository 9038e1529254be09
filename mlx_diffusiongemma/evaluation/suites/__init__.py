"""Suites of tasks, one in each file. A task has a prompt and a grader."""

from __future__ import annotations

import re
from importlib import import_module
from importlib.resources import files

from ..task import Task

SUITES = {
    "six": "Six tasks: code from a spec, strict JSON, Polish, long recall, conflicting rules, arithmetic.",
    "matrix": "Ten tasks with traps: bugs, a regex, SQL, JSON, puzzles, a trace, arithmetic.",
    "callback": "A long explanation that must return at its end to how it began.",
    "structured": "Fifty extractions into JSON, each with and without schema=.",
    "demo": "The tasks that the bundled demo checkpoint was trained on, with held-out items.",
    "probe": "Count from 1 to 200: full canvases, for throughput.",
}
"""Names of the suites, each with its line in `--help`."""


def tasks_of(suite: str) -> list[Task]:
    """Return the tasks of the suite with this name."""
    tasks: list[Task] = import_module(f"{__name__}.{suite}").tasks()
    return tasks


def texts(suite: str, **more: str) -> dict[str, str]:
    """Return the texts of SUITE.txt by name. A line `=== name` begins each text.

    A line `{name}` in a text is replaced by the earlier text of this name, or by the one in `more`.
    """
    parts = re.split(r"^=== (\w+)\n", files(__name__).joinpath(f"{suite}.txt").read_text("utf-8"), flags=re.M)
    found = dict(more)
    for name, text in zip(parts[1::2], parts[2::2], strict=True):
        for earlier, part in found.items():
            text = text.replace(f"{{{earlier}}}\n", part)
        found[name] = text
    return found
