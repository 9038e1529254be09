"""What every grade of a suite's answer has to be like."""

from __future__ import annotations

from mlx_diffusiongemma.evaluation.task import Reply, Task


def check_grade(task: Task, answer: str, strict: bool, lenient: bool) -> None:
    """The grade is the one that is asked for, with a short printable reason exactly when it is not strict."""
    grade = task.grade(Reply(answer))
    assert (grade.strict, grade.lenient) == (strict, lenient), grade.reason
    assert bool(grade.reason) == (not strict)
    assert grade.reason.isprintable()
    assert len(grade.reason) < 250
