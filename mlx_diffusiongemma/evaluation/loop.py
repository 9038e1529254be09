"""The main loop: every task of a suite, run after run, through one runner into one file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from mlx_diffusiongemma.console.progress import bar

from .results import Line, Results
from .runners import Runner
from .task import Grade, Reply, Task


def ask(tasks: Sequence[Task], runner: Runner, results: Results, seed: int, runs: int, n: int) -> list[Line]:
    """Asks for what `results` does not hold yet, and returns all answers of these tasks and runs.

    All tasks' first run comes before any one's second. seed: what every answer's own follows from. n:
    candidates of each.
    """
    jobs = [(task, run) for run in range(runs) for task in tasks]
    missing = [(task, run) for task, run in jobs if (task.name, run) not in results.answers]
    with bar("eval", total=len(jobs), initial=len(jobs) - len(missing), unit="prompt") as progress:
        for task, run in missing:
            progress.set_postfix_str(task.name)
            chosen = seed_of(task, seed, run)
            replies = runner(task, chosen, n)
            lines = [_line(task, run, chosen, candidate, reply) for candidate, reply in enumerate(replies)]
            results.add((task.name, run), lines)
            progress.update()
    return [line for task, run in jobs for line in results.answers[task.name, run]]


def seed_of(task: Task, seed: int, run: int) -> int:
    """A seed of its own for every prompt and run; the same for the same prompt under other settings."""
    text = json.dumps([seed, run, task.messages, task.thinking], sort_keys=True)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") >> 1


def graded(task: Task, reply: Reply) -> Grade:
    """What the task's grader says; an answer that did not end by itself is not strictly right."""
    if reply.error is not None:
        return Grade(False, False, reply.error)
    if reply.outcome == "stuck":
        return Grade(False, False, "ended inside the thought")
    try:
        grade = task.grade(reply)
    except OSError:  # a full disk under the sandbox says nothing about the answer
        raise
    except Exception as error:  # hours of answers are worth more than a traceback
        return Grade(False, False, f"the grader failed ({type(error).__name__}: {error}); please report this")
    if grade.strict and reply.outcome == "cut":
        return Grade(False, grade.lenient, "did not end by itself", grade.details)
    return grade


def _line(task: Task, run: int, seed: int, candidate: int, reply: Reply) -> Line:
    grade = graded(task, reply)
    given: dict[str, Any] = {"thinking": task.thinking} | task.settings | reply.settings
    return {
        "task": task.name,
        "group": task.group or task.name,
        "run": run,
        "candidate": candidate,
        "seed": seed,
        "settings": given,
        "outcome": reply.outcome,
        **asdict(grade),
        "answer": reply.answer,
        "thought": reply.thought,
        "tool_calls": [[name, _json(arguments)] for name, arguments in reply.tool_calls],
        "finish_reason": reply.finish_reason,
        **asdict(reply.cost),
    }


def _json(arguments: dict[str, Any]) -> Any:
    """`arguments`, or the words "not JSON" for what no reader of the file would take, such as NaN."""
    try:
        json.loads(json.dumps(arguments, allow_nan=False))
    except (ValueError, RecursionError):
        return "not JSON"
    return arguments
