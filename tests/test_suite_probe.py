"""probe: counting to 200, graded to the letter and leniently."""

from __future__ import annotations

import pytest

from mlx_diffusiongemma.evaluation.suites.probe import counts, tasks
from mlx_diffusiongemma.evaluation.task import Reply

NUMBERS = [str(number) for number in range(1, 201)]
RIGHT = " ".join(NUMBERS)


@pytest.mark.parametrize(
    ("answer", "strict", "lenient", "counted"),
    [
        (RIGHT, True, True, 200),
        (f"\n {RIGHT} \n", True, True, 200),
        (", ".join(NUMBERS), False, True, 200),
        ("\n".join(NUMBERS), False, True, 200),
        ("\n".join(f"- {number}" for number in NUMBERS), False, True, 200),
        ("-".join(NUMBERS), False, True, 200),
        (f"{RIGHT}.", False, True, 200),
        (RIGHT.replace(" ", "  ", 1), False, True, 200),
        (f"```text\n{RIGHT}\n```", False, True, 200),
        (f"Here I count from 1 to 200: {RIGHT}\nThere you are!", False, True, 200),
        (f"Here are the numbers from 1 to 200.\n{RIGHT}", False, True, 200),
        (f"Sure! Here are the numbers from 1 to 200:\n\n{', '.join(NUMBERS)}", False, True, 200),
        (f"{RIGHT}\n\nThat is all 200 numbers.", False, True, 200),
        (f"{RIGHT}\nNote: done", False, True, 200),
        (f"{RIGHT}\nNote: 201 is next", False, False, 200),
        (f"The first 3 numbers and more: {RIGHT}", False, False, 200),
        (f"{RIGHT}\n{RIGHT}", False, False, 200),
        (f"{RIGHT}\n200", False, False, 200),
        (f"200 {RIGHT}", False, False, 200),
        (f"1 {RIGHT}", False, False, 200),
        (f"{RIGHT}th", False, False, 200),
        (f"n{RIGHT}", False, False, 200),
        (" ".join(NUMBERS[:-1]) + " and so on to 200", False, False, 200),
        (" blah ".join(NUMBERS), False, False, 200),
        (", ".join(NUMBERS[:-1]) + " and 200", False, False, 200),
        (f"{RIGHT} 201", False, False, 200),
        (f"{RIGHT} ٩", False, False, 200),
        (" ".join(NUMBERS[:-1]), False, False, 199),
        (" ".join(NUMBERS[:137]), False, False, 137),
        (RIGHT[:-1], False, False, 199),
        (RIGHT.replace(" 77 ", " "), False, False, 76),
        (RIGHT.replace(" 77 ", " 77 77 "), False, False, 77),
        (RIGHT.replace(" 77 ", " 78 "), False, False, 76),
        (RIGHT.replace(" 77 78 ", " 78 77 "), False, False, 76),
        (RIGHT.replace(" 8 ", " 08 "), False, False, 7),
        (RIGHT.replace(" 8 ", " ٨ "), False, False, 7),
        (" ".join(f"-{number}" for number in NUMBERS), False, False, 200),
        (" ".join(f"−{number}" for number in NUMBERS), False, False, 200),
        (RIGHT.replace(" 8 ", " −8 "), False, False, 200),
        (" ".join(f"{number}th" for number in NUMBERS), False, False, 200),
        (f"0 {RIGHT}", False, False, 200),
        (" ".join(reversed(NUMBERS)), False, False, 1),
        ("1 2 3 ... 200", False, False, 3),
        ("I would rather not.", False, False, 0),
        ("", False, False, 0),
        (":", False, False, 0),
        ("\x00\ud800```", False, False, 0),
        ("9" * 100_000, False, False, 0),
        (RIGHT * 500, False, False, 199),
        ("1" + " " * 100_000, False, False, 1),
    ],
)
def test_counting(answer: str, strict: bool, lenient: bool, counted: int) -> None:
    grade = counts(Reply(answer))
    assert (grade.strict, grade.lenient) == (strict, lenient)
    assert grade.details == {"counted": counted}
    assert bool(grade.reason) is not strict
    assert len(grade.reason) < 120
    assert grade.reason.isascii()


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (RIGHT.replace(" 77 ", " 78 "), "counted to 76, then '78'"),
        (f"From 1 to 200.\n{RIGHT[:-4]}", "counted to 199"),
        ("7 8 9", "counted to 0, then '7'"),
        (f"{RIGHT}\nDone", "more than the numbers and single spaces"),
        (f"{RIGHT} 201", "other than the numbers"),
    ],
)
def test_the_reason(answer: str, reason: str) -> None:
    assert counts(Reply(answer)).reason == reason


def test_the_task() -> None:
    [task] = tasks()
    assert task.grade(Reply(RIGHT)).strict
    assert "from 1 to 200" in task.prompt
    assert not task.thinking
    assert task.settings == {"max_new_tokens": 1024}
