"""What holds for every suite."""

from __future__ import annotations

import pytest

from mlx_diffusiongemma.evaluation.suites import SUITES
from mlx_diffusiongemma.evaluation.task import Reply, Task

TASKS = {name: suite.tasks() for name, suite in SUITES.items()}
# Graders of the larger suites are alike: a few of their tasks stand for all.
SOME = [(name, task) for name, tasks in TASKS.items() for task in tasks[:18]]
HOSTILE = (
    "",
    " \n\t",
    "x" * 10**6,
    "\x00\x1b[31m\x07",
    "[" * 10**5,
    "9" * 5000,
    "\ud800",
    "{" * 10**5,
    "(" * 10**5,
    "```",
    "1 " * 10**5,
)


@pytest.mark.parametrize("name", SUITES)
def test_tasks_have_names_of_their_own_and_are_the_same_each_time(name: str) -> None:
    names = [task.name for task in TASKS[name]]
    assert names
    assert len(set(names)) == len(names)
    assert [task.name for task in SUITES[name].tasks()] == names
    assert {task.prompt for task in SUITES[name].tasks() if isinstance(task.prompt, str)} == {
        task.prompt for task in TASKS[name] if isinstance(task.prompt, str)
    }


@pytest.mark.parametrize(("suite", "task"), SOME, ids=[f"{suite} {task.name}" for suite, task in SOME])
def test_no_text_breaks_a_grader(suite: str, task: Task) -> None:
    for answer in HOSTILE:
        grade = task.grade(Reply(answer))
        assert not grade.strict
        assert not grade.lenient
        assert grade.reason
        assert grade.reason.isprintable()
