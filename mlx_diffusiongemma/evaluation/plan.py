"""What an evaluation asks, and what its file says of it: decided before anything is loaded."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from mlx_diffusiongemma.errors import InputError

from . import graders, ladder, sandbox, suites
from .results import Line
from .runners import Runner
from .suites import SUITES
from .task import Task


def planned(suite: str, limit: int | None, thinking_budget: int | None) -> tuple[list[Task], Line]:
    """The tasks of a suite, the first `limit` of them, and what of them goes into the file's first line."""
    tasks = SUITES[suite].tasks()
    settings: Line = {"suite": suite, "suite_sha256": digest(tasks), "thinking_budget": thinking_budget}
    return with_budget(tasks[:limit], thinking_budget), settings


def climbing(prompts: str, limit: int | None, thinking_budget: int | None) -> tuple[list[Task], Line]:
    """The same for the ladder, which takes its prompts from a suite."""
    tasks, settings = planned(prompts, limit, thinking_budget)
    return ladder.rungs(tasks), settings | {"suite": "ladder", "prompts": prompts}


def with_budget(tasks: Sequence[Task], thinking_budget: int | None) -> list[Task]:
    """The tasks, those that think with at most so many tokens of thought."""
    if thinking_budget is None:
        return list(tasks)
    more = {"thinking_budget": thinking_budget}
    return [replace(task, settings=task.settings | more) if task.thinking else task for task in tasks]


def digest(tasks: Sequence[Task]) -> str:
    """Of all that answers and grades depend on: the prompts, and the sources of suites and graders."""
    texts = [[t.name, t.messages, t.thinking, t.settings, t.schema, t.tools] for t in tasks]
    found = hashlib.sha256(json.dumps(texts, sort_keys=True).encode())
    for package in (graders, suites):
        for source in sorted(Path(package.__path__[0]).glob("*.*")):  # .py, and .json with what is right
            if source.is_file():
                found.update(source.read_bytes())
    return found.hexdigest()[:16]


def unheld(tasks: Sequence[Task], unsafe_exec: bool) -> list[str]:
    """What nothing holds generated code to on this machine, if a task's grader runs any.

    Raises `InputError` if there is such a thing and `unsafe_exec` does not allow it.
    """
    missing = sandbox.missing() if any(task.executes for task in tasks) else []
    if missing and not unsafe_exec:
        raise InputError(
            f"this suite runs code that the model wrote, and here nothing holds it to {', '.join(missing)}; "
            "run it in a container or another machine of no value, with --unsafe-exec"
        )
    return missing


def possible(tasks: Sequence[Task], runner: Runner) -> tuple[list[Task], Counter[str]]:
    """The tasks that the runner can run, and why it cannot run how many others.

    Raises `InputError` if it can run none.
    """
    objections = [runner.objection(task) for task in tasks]
    reasons = Counter(objection for objection in objections if objection is not None)
    taken = [task for task, objection in zip(tasks, objections, strict=True) if objection is None]
    if not taken:
        raise InputError(
            f"{runner.name} can run none of these prompts ({', '.join(reasons)}); "
            "give another runner, or other options"
        )
    return taken, reasons


def default_path(suite: str, identity: Line) -> Path:
    """The file of an evaluation in the current directory, when none is named."""
    model = re.sub(r"[^\w.-]+", "-", Path(identity["model"]).name or "model")
    runner = "" if identity["runner"] == "mlx_dg" else f"-{identity['runner']}"
    return Path(f"eval-{suite}-{model}{runner}.jsonl")
