"""Runs an evaluation: asks one runner for every task of a suite, run after run, and writes one file."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..config.ranges import in_range
from ..console.progress import bar
from ..engine.noise import DrawsOf
from ..engine.settings import SettingsDict
from ..errors import InputError
from ..habits import takes_settings
from ..model import DiffusionGemma
from ..text.tokenizer import Tokenizer
from . import graders, sandbox, suites
from .results import Line, Results
from .runners import Runner
from .runners.native import Native
from .table import table
from .task import Grade, Reply, Task

if TYPE_CHECKING:
    from typing_extensions import Unpack

CAPS = (8, 16, 24, 48)  # steps per canvas, and entropy bounds in nats, for `mlx_dg eval ladder`
BOUNDS = (0.02, 0.05, 0.1, 0.2, 0.4)


@dataclass(frozen=True)
class Evaluation:
    """The settings and lines of an evaluation's file. `str` of it is the table of `mlx_dg eval`."""

    settings: Line
    lines: list[Line]

    @property
    def strict(self) -> float:
        """Share of answers that are strictly right."""
        return sum(line["strict"] for line in self.lines) / len(self.lines)

    def __str__(self) -> str:
        return table(self.lines, self.settings["n"])


@takes_settings
def evaluate(
    model: DiffusionGemma,
    tokenizer: Tokenizer,
    suite: str | Sequence[Task],
    *,
    runs: int = 1,
    seed: int = 0,
    n: int = 1,
    limit: int | None = None,
    out: str | Path | None = None,
    draws: DrawsOf | None = None,
    unsafe_exec: bool = False,
    **settings: Unpack[SettingsDict],
) -> Evaluation:
    """Ask every prompt of a suite and grade the answers.

    Args:
        suite: name of a suite (six, matrix, callback, structured, demo, probe), or your own tasks.
        runs: number of runs of each prompt, each with another seed.
        seed: seed that each answer's seed is derived from.
        n: number of candidates per prompt and run. Each is graded.
        limit: number of prompts to ask, from the first. None asks all.
        out: file for the answers. If it has the answers of an interrupted evaluation, that one continues.
        draws: random draws of the canvases instead of the seeded ones (see `generate`).
        unsafe_exec: run generated code without a sandbox, with resource limits only, where none works.
        settings: settings of `generate`, which replace those of the suite.

    Raises:
        InputError: an unknown suite, a bad setting, no sandbox, or something else in the file `out`.
    """
    tasks, header = planned(suite, limit, dict(settings))
    check_contained(tasks, unsafe_exec)
    runner = Native.of(model, tokenizer, draws)
    tasks, _ = possible(tasks, runner)
    header |= {"seed": seed, "n": n} | runner.identity()
    with closing(Results(Path(out) if out else None, header)) as results:
        return Evaluation(results.settings, ask(tasks, runner, results, runs, unsafe_exec))


def planned(
    suite: str | Sequence[Task], limit: int | None, settings: dict[str, Any]
) -> tuple[list[Task], Line]:
    """Return the first `limit` tasks of a suite with these settings, and the settings to record in the file.

    Only tasks with thinking get the setting `thinking_budget`.
    """
    if isinstance(suite, str) and suite not in suites.SUITES:
        raise InputError(f"suite {suite!r}: there is none; choose from {', '.join(suites.SUITES)}")
    name, tasks = (suite, suites.tasks_of(suite)) if isinstance(suite, str) else ("tasks", list(suite))
    for task in tasks:
        if not isinstance(task, Task):
            raise InputError(f"suite: found {type(task).__name__} in it; give the name of a suite, or Tasks")
    if limit is not None:
        in_range("limit", limit)
    header = {"suite": name, "suite_sha256": digest(tasks), "settings": plain(settings)}
    brief = {key: value for key, value in settings.items() if key != "thinking_budget"}
    return [
        replace(task, settings=task.settings | (settings if task.thinking else brief))
        for task in tasks[:limit]
    ], header


def plain(value: Any) -> Any:
    """Return `value` in JSON's types, with other objects as their repr, or "not JSON" if it holds NaN."""
    try:
        return json.loads(json.dumps(value, default=repr, allow_nan=False))
    except (ValueError, RecursionError):
        return "not JSON"


def digest(tasks: Sequence[Task]) -> str:
    """Return a hash of the tasks and of the sources of suites and graders, on which grades depend."""
    texts = [[t.name, t.messages, t.thinking, plain(t.settings), t.schema, t.tools] for t in tasks]
    content = hashlib.sha256(json.dumps(texts, sort_keys=True).encode())
    for package in (graders, suites):
        for source in sorted(Path(package.__path__[0]).glob("*.*")):  # code, texts, and right answers
            content.update(source.read_bytes())
    return content.hexdigest()[:16]


def check_contained(tasks: Sequence[Task], unsafe_exec: bool) -> str:
    """Return the reason why code that tasks execute cannot be contained, or an empty text.

    Raises `InputError` if there is a reason and `unsafe_exec` is False.
    """
    problem = sandbox.problem() if any(task.executes for task in tasks) else ""
    if problem and not unsafe_exec:
        raise InputError(f"this suite runs code that the model wrote, and {problem}; {sandbox.REMEDY}")
    return problem


def possible(tasks: Sequence[Task], runner: Runner) -> tuple[list[Task], Counter[str]]:
    """Return the tasks that the runner can run, and how often it has each objection to the other tasks.

    Raises `InputError` if it can run none.
    """
    objections = [(task, runner.objection(task)) for task in tasks]
    reasons = Counter(objection for _, objection in objections if objection is not None)
    taken = [task for task, objection in objections if objection is None]
    if not taken:
        raise InputError(f"{runner.name} can run none of these prompts ({', '.join(reasons)}); give another")
    return taken, reasons


def rungs(tasks: Sequence[Task]) -> list[Task]:
    """Return a copy of each task for every step cap of CAPS and entropy bound of BOUNDS, task after task."""
    made = []
    for task, cap, bound in product(tasks, CAPS, BOUNDS):
        group = f"cap {cap}, bound {bound:.2f}"
        settings = task.settings | {"max_denoising_steps": cap, "entropy_bound": bound}
        made.append(replace(task, name=f"{task.name} at {group}", group=group, settings=settings))
    return made


def ask(
    tasks: Sequence[Task], runner: Runner, results: Results, runs: int, unsafe_exec: bool = False
) -> list[Line]:
    """Ask for the answers that `results` lacks, and return all answers of these tasks and runs.

    The first run of all tasks comes before the second of any.
    """
    jobs = [(task, run) for run in range(runs) for task in tasks]
    missing = [(task, run) for task, run in jobs if (task.name, run) not in results.answers]
    progress = bar("eval", total=len(jobs), initial=len(jobs) - len(missing), unit="prompt")
    sandbox.allow_uncontained = unsafe_exec
    with progress:
        for task, run in missing:
            progress.set_postfix_str(task.name)
            seed = seed_of(task, results.settings["seed"], run)
            place = {"task": task.name, "group": task.group or task.name, "run": run}
            replies = runner(task, seed, results.settings["n"])
            lines = [place | {"candidate": i, "seed": seed} | _line(task, r) for i, r in enumerate(replies)]
            results.add((task.name, run), lines)
            progress.update()
    return [line for task, run in jobs for line in results.answers[task.name, run]]


def seed_of(task: Task, seed: int, run: int) -> int:
    """Return the seed for a task's prompt in one run. It does not depend on the task's settings."""
    text = json.dumps([seed, run, task.messages, task.thinking], sort_keys=True)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") >> 1


def graded(task: Task, reply: Reply) -> Grade:
    """Return the grade of a reply. A reply that did not end by itself is not strictly right."""
    if reply.error is not None:
        return Grade(False, False, reply.error)
    if reply.outcome == "stuck":
        return Grade(False, False, "ended inside the thought")
    try:
        grade = task.grade(reply)
    except (OSError, InputError):  # a full disk or a missing sandbox says nothing about the answer
        raise
    except Exception as error:  # a broken grader must not end a run of hours
        return Grade(False, False, f"the grader failed ({type(error).__name__}: {error}); please report this")
    if grade.strict and reply.outcome == "cut":
        return replace(grade, strict=False, reason="did not end by itself")
    return grade


def _line(task: Task, reply: Reply) -> Line:
    return {
        "settings": plain({"thinking": task.thinking} | task.settings | reply.settings),
        "outcome": reply.outcome,
        **asdict(graded(task, reply)),
        "prompt": plain(task.prompt),
        "answer": reply.answer,
        "thought": reply.thought,
        "tool_calls": [[name, plain(arguments)] for name, arguments in reply.tool_calls],
        "finish_reason": reply.finish_reason,
        **asdict(reply.cost),
    }
