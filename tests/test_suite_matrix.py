"""The suite of ten traps: expected values by other means, and answers right, wrapped and nearly right."""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import re
from fractions import Fraction

import pytest
from grading import check_grade

from mlx_diffusiongemma.evaluation.suites import matrix

TASKS = {task.name: task for task in matrix.tasks()}
DOCUMENT = json.dumps(matrix.DOCUMENT)
MOVES = "pour A B\nfill A\npour A B\nempty B\npour A B\nfill A\npour A B"
PRINTED = "\n".join(matrix.PRINTED)
PRODUCT = "29868237184"


@pytest.mark.parametrize(
    ("name", "answer", "strict", "lenient"),
    [
        ("json_strict", DOCUMENT, True, True),
        ("json_strict", json.dumps(matrix.DOCUMENT, indent=2, sort_keys=True), True, True),
        ("json_strict", DOCUMENT.replace("one\\n", "\\u006fne\\u000a"), True, True),
        ("json_strict", f"```json\n{DOCUMENT}\n```", False, True),
        ("json_strict", f"{DOCUMENT}\nThat is all.", False, True),
        ("json_strict", DOCUMENT.replace("\\\\", "\\"), False, False),
        ("json_strict", DOCUMENT.replace("\\\\", "\\\\\\\\"), False, False),
        ("json_strict", DOCUMENT.replace("\\n", "\n"), False, False),
        ("json_strict", DOCUMENT.replace("8", "7"), False, False),
        ("json_strict", DOCUMENT.replace("8", "8.0"), False, False),
        ("json_strict", DOCUMENT.replace("true", "1"), False, False),
        ("json_strict", DOCUMENT.replace("[3, 1, 2]", "[1, 2, 3]"), False, False),
        ("json_strict", DOCUMENT[:-1], False, False),
        ("json_strict", DOCUMENT.replace("null", "null,"), False, False),
        ("trap_batball", "42", True, True),
        ("trap_batball", "\n 42 ", True, True),
        ("trap_batball", "**42** cents.", False, True),
        ("trap_batball", "The pen costs 42 cents.", False, True),
        ("trap_batball", "332 - 290 = 42\nAnswer: 42", False, True),
        ("trap_batball", "84", False, False),
        ("trap_batball", "0.42", False, False),
        ("trap_batball", "$42", False, False),
        ("trap_batball", "42 or 84", False, False),
        ("trap_batball", "not 42", False, False),
        ("trap_batball", "-42", False, False),
        ("trap_batball", "The pen costs 42 cents, the notebook 332.", False, False),
        ("trap_jugs", MOVES, True, True),
        ("trap_jugs", MOVES.replace("\n", "\r\n"), True, True),
        ("trap_jugs", "\n".join(f"{at}. {x}" for at, x in enumerate(MOVES.split("\n"), 1)), False, True),
        ("trap_jugs", MOVES.replace("A B", "A into B").title(), False, True),
        ("trap_jugs", f"These are the moves:\n```\n{MOVES}\n```\nB now holds 5 litres.", False, True),
        ("trap_jugs", MOVES.replace("\n", " (note)\n"), False, True),
        ("trap_jugs", MOVES.rpartition("\n")[0], False, False),
        ("trap_jugs", f"fill A\n{MOVES}", False, False),
        ("trap_jugs", f"{MOVES}\nempty A", False, False),
        ("trap_jugs", MOVES.replace("empty B", "empty A"), False, False),
        ("trap_jugs", MOVES.replace("fill A", "fill C"), False, False),
        ("trap_jugs", MOVES.replace("\n", ", "), False, False),
        ("trap_jugs", "7", False, False),
        ("trap_monty_random", "1/2", True, True),
        ("trap_monty_random", "**1/2**", False, True),
        ("trap_monty_random", "0.5", False, True),
        ("trap_monty_random", "50 %", False, True),
        ("trap_monty_random", "2/4", False, True),
        ("trap_monty_random", "$\\frac{1}{2}$", False, True),
        ("trap_monty_random", "The probability is 1/2, that is 50%.", False, True),
        ("trap_monty_random", "2/3", False, False),
        ("trap_monty_random", "1/3", False, False),
        ("trap_monty_random", "1/2, since it would be 2/3 if he knew", False, False),
        ("trap_monty_random", "Not 1/2", False, False),
        ("trap_monty_random", "1/2 seems right; two thirds is right", False, False),
        ("trap_monty_random", "1/0", False, False),
        ("trap_monty_random", "1", False, False),
        ("trace_mutable_default", PRINTED, True, True),
        ("trace_mutable_default", f"{PRINTED}\n", True, True),
        ("trace_mutable_default", f"```\n{PRINTED}\n```", False, True),
        ("trace_mutable_default", f"The program prints:\n{PRINTED}", False, True),
        ("trace_mutable_default", PRINTED.replace("[1, 3]", "[1]", 1), False, False),
        ("trace_mutable_default", PRINTED.replace("[1, 3, 5]", "[1, 5]"), False, False),
        ("trace_mutable_default", PRINTED.replace("True", "False"), False, False),
        ("trace_mutable_default", PRINTED.replace("1 1 2 1", "1 1 2 3"), False, False),
        ("trace_mutable_default", PRINTED.replace("[1, 3]", "[1,3]", 1), False, False),
        ("trace_mutable_default", PRINTED.replace("True\n", ""), False, False),
        ("trace_mutable_default", f"{PRINTED}\nNone", False, False),
        ("arith_exact", PRODUCT, True, True),
        ("arith_exact", "29,868,237,184", False, True),
        ("arith_exact", "29 868 237 184.", False, True),
        ("arith_exact", "The result is **29868237184**.", False, True),
        ("arith_exact", "24619908096 + 5277319168 - 28990080 =\n29868237184", False, True),
        ("arith_exact", "29868237185", False, False),
        ("arith_exact", "2986823718", False, False),
        ("arith_exact", "29868237184 + 1", False, False),
        ("arith_exact", "about 29868237184", False, False),
        ("arith_exact", "29.868.237.184", False, False),
        ("arith_exact", "29868237184 thousand", False, False),
    ],
)
def test_answers_are_graded_to_the_letter(name: str, answer: str, strict: bool, lenient: bool) -> None:
    check_grade(TASKS[name], answer, strict, lenient)


def test_jugs_need_seven_moves() -> None:
    sizes, seen, moves = (4, 7), {(4, 0)}, 0
    while not any(b == 5 for _, b in seen):
        for a, b in list(seen):
            to_b, to_a = min(a, sizes[1] - b), min(b, sizes[0] - a)
            seen |= {(4, b), (a, 7), (0, b), (a, 0), (a - to_b, b + to_b), (a + to_a, b - to_a)}
        moves += 1
    assert moves == len(MOVES.split("\n")) == 7


def test_monty_by_enumeration() -> None:
    shown = [(car, host) for car, host in itertools.product(range(3), (1, 2)) if car != host]  # you chose 0
    won = [car for car, host in shown if car == 3 - host]
    assert Fraction(len(won), len(shown)) == Fraction(1, 2)


def test_the_program_prints_it() -> None:
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(matrix.TRACED, {})
    assert printed.getvalue().splitlines() == list(matrix.PRINTED)
    assert matrix.TRACED in TASKS["trace_mutable_default"].prompt


def test_numbers_are_exact() -> None:
    asked = re.search(r"Compute exactly: (.*)", TASKS["arith_exact"].prompt)
    assert asked
    assert eval(asked[1]) == int(PRODUCT)
    together, more = map(Fraction, re.findall(r"\d\.\d\d", TASKS["trap_batball"].prompt))
    assert (together - more) / 2 * 100 == 42
    assert matrix.DOCUMENT["letters"] == len("parallel")


def test_tasks() -> None:
    names = "bugfix_merge bugfix_bsearch regex_ipv4 sql_null_trap json_strict trap_batball trap_jugs"
    assert list(TASKS) == f"{names} trap_monty_random trace_mutable_default arith_exact".split()
    assert all(task.thinking and task.settings == {"max_new_tokens": 4096} for task in TASKS.values())
    assert [task.name for task in TASKS.values() if task.executes] == names.split()[:4]
    assert len(matrix.MERGES) >= 12
    assert len(matrix.SEARCHES) >= 12
