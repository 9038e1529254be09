"""The suites: prompts and what a right answer to each is. One a file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module

from mlx_diffusiongemma.evaluation.task import Task


@dataclass(frozen=True)
class Suite:
    """A list of tasks; `about` is what `--help` says of it."""

    name: str
    about: str

    def tasks(self) -> list[Task]:
        module = import_module(f"{__name__}.{self.name}")
        load: Callable[[], list[Task]] = module.tasks
        return load()


SUITES = {
    suite.name: suite
    for suite in (
        Suite(
            "six",
            "Six tasks: code from a spec, strict JSON, Polish, long recall, conflicting rules, arithmetic.",
        ),
        Suite("matrix", "Ten tasks with traps: bugs, a regex, SQL, JSON, puzzles, a trace, arithmetic."),
        Suite("callback", "A long explanation that must return at its end to how it began."),
        Suite("structured", "Fifty extractions into JSON, each with and without schema=."),
        Suite("demo", "What the bundled demo checkpoint was trained on, with held-out items."),
        Suite("probe", "Count from 1 to 200: full canvases, for throughput."),
    )
}
