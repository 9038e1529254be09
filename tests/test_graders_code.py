"""Programs, queries and patterns in a reply: run in the sandbox, compared outside, and never an accident."""

from __future__ import annotations

from functools import partial

import pytest

from mlx_diffusiongemma.evaluation.graders import code, pattern, sql
from mlx_diffusiongemma.evaluation.graders.text import LENIENT_LIMIT
from mlx_diffusiongemma.evaluation.sandbox import Limits, Outcome, call
from mlx_diffusiongemma.evaluation.task import Reply

DOUBLE = "def double(x):\n    return 2 * x"
CASES = (([1], 2), ([0.5], 1.0), (["ab"], "abab"), ([[1, None]], [1, None, 1, None]))
FIXTURES = [
    ("CREATE TABLE t (n); INSERT INTO t VALUES (2), (1), (NULL);", [[1], [2]]),
    ("CREATE TABLE t (n);", []),
]


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (code, pattern, sql):
        monkeypatch.setattr(module, "call", partial(call, limits=Limits(cpu_seconds=1, wall_seconds=2)))


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("a", ("a", True)),
        ("\n a\nb \n", ("a\nb", True)),
        ("```python\na\n```", ("a", True)),
        ("Words\n```\na\n```", ("a", False)),
        ("```\na\n```\nwords", ("a", False)),
        ("```\na", ("```\na", True)),
    ],
)
def test_the_program_in_a_reply(text: str, found: tuple[str, bool]) -> None:
    assert code.program(text) == found


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (" ", "empty"),
        ("```\na\n```\n```\nb\n```", "2 code fences"),
        ("a\udc00", "half a surrogate pair"),
        ("a" * (LENIENT_LIMIT + 1), "100001 characters"),
    ],
)
def test_no_program(text: str, reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (code, pattern, sql):
        monkeypatch.delattr(module, "call")  # nothing is run
    for grader in (code.executed("double", CASES), sql.query(FIXTURES), pattern.fullmatch({"a": True})):
        grade = grader(Reply(text))
        assert (grade.strict, grade.lenient, grade.reason) == (False, False, reason)


@pytest.mark.parametrize(
    ("answer", "strict", "lenient", "reason"),
    [
        (DOUBLE, True, True, ""),
        (f"```python\n{DOUBLE}\n```", True, True, ""),
        (f"import math\nTWO = 2\n\n# doubles\n{DOUBLE}", True, True, ""),
        (f"{DOUBLE}\nprint(double(1))", False, True, "more than the code that was asked for"),
        (f"```\n{DOUBLE}\n\nif __name__ == '__main__':\n    double(1)\n```", False, True, None),
        (f'"""It doubles."""\n{DOUBLE}', False, True, None),
        ("double = lambda x: x + x", True, True, ""),
        (f"It doubles:\n```python\n{DOUBLE}\n```", False, True, "more than the code that was asked for"),
        ("def double(x):\n    return x + 1", False, False, "double(0.5) gave 1.5, not 1.0"),
        ("def double(x):\n    return str(2 * x)", False, False, "double(1) gave '2', not 2"),
        ("def double(x):\n    return 2.0 * x", False, False, "double(1) gave 2.0, not 2"),
        ("def double(x):\n    print(2 * x)", False, False, "double(1) gave None, not 2"),
        (
            "def double(x):\n    raise ValueError('no')",
            False,
            False,
            "double(1) raised ValueError: no, not 2",
        ),
        ("import os\ndef double(x):\n    os._exit(0)", False, False, None),
        ("def double(x) return 2 * x", False, False, None),
        ("def twice(x):\n    return 2 * x", False, False, None),
        ("def double(x):\n    return {1}", False, False, None),
        ("double = 2", False, False, None),
        ("x = 1 / 0", False, False, None),
        (f"It doubles:\n{DOUBLE}", False, False, None),
    ],
)
def test_executed(answer: str, strict: bool, lenient: bool, reason: str | None) -> None:
    grade = code.executed("double", CASES)(Reply(answer))
    assert (grade.strict, grade.lenient) == (strict, lenient), grade.reason
    assert grade.reason == reason if reason is not None else grade.reason
    if strict:
        assert grade.details == {"cases": 4, "passed": 4}


def test_every_case_counts() -> None:
    grade = code.executed("double", CASES)(Reply("def double(x):\n    return 2 * x if x == 1 else [x]"))
    assert grade.details == {"cases": 4, "passed": 1}
    assert grade.reason == "double(0.5) gave [0.5], not 1.0"
    grade = pattern.fullmatch({"a": True, "b": True, "c": False})(Reply("a"))
    assert grade.details == {"cases": 3, "passed": 2}
    assert grade.reason == "does not match 'b'"


@pytest.mark.usefixtures("impatient")
def test_what_runs_without_end_is_wrong() -> None:
    forever = [
        code.executed("double", CASES)(Reply("def double(x):\n    while True: pass")),
        pattern.fullmatch({"a" * 40 + "b": False})(Reply("(a|aa)+")),
        sql.query(FIXTURES)(
            Reply("WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT max(i) FROM n")
        ),
    ]
    for grade in forever:
        assert not grade.strict
        assert not grade.lenient
        assert "time limit of" in grade.reason


@pytest.mark.parametrize(
    ("outcome", "reason"),
    [
        (Outcome(None, "memory limit of 512 MB"), "memory limit of 512 MB"),
        (Outcome(None), "no results"),
        (Outcome([]), "no results"),
        (Outcome([True] * 9), "no results"),
    ],
)
def test_a_sandbox_without_results_is_a_wrong_answer(
    outcome: Outcome, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (code, pattern, sql):
        monkeypatch.setattr(module, "call", lambda *_: outcome)
    for grader in (code.executed("double", CASES), sql.query(FIXTURES), pattern.fullmatch({"a": True})):
        grade = grader(Reply("a"))
        assert (grade.strict, grade.lenient, grade.reason) == (False, False, reason)


def test_a_harness_is_run_behind_the_answer() -> None:
    harness = "\ndef twice(x):\n    return double(double(x))\n"
    grader = code.executed("twice", [([3], 12)], harness)
    assert grader(Reply(DOUBLE)).strict
    assert grader(Reply("def double(x):\n    return x + 2")).reason == "twice(3) gave 7, not 12"
    assert not grader(Reply("def twice(x):\n    return 12")).lenient


@pytest.mark.parametrize("source", ["(" * 10_000, "-" * 100_000 + "1", "x\0", "1 +", '"\\d"; f()', "a\nb"])
def test_what_does_more_than_define(source: str) -> None:
    assert not code.only_defines(source)
    assert code.only_defines("import re\nfrom re import *\nX: int = 1\nclass A: pass\nY = '\\d'")


def test_all_rows_count() -> None:
    rows = [[n] for n in range(1, 8)]
    grader = sql.query([("CREATE TABLE t (n); INSERT INTO t VALUES (1),(2),(3),(4),(5),(6),(7);", rows)])
    assert grader(Reply("SELECT n FROM t ORDER BY n")).strict
    assert not grader(Reply("SELECT n FROM t ORDER BY n LIMIT 6")).lenient


def test_what_is_right_stays_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []

    def watched(*arguments: object) -> Outcome:
        seen.append(repr(arguments))
        return Outcome(None)

    for module in (code, pattern, sql):
        monkeypatch.setattr(module, "call", watched)
    code.executed("double", [([1], "secret")])(Reply(DOUBLE))
    sql.query([("CREATE TABLE t (n)", [["secret"]])])(Reply("SELECT n FROM t"))
    pattern.fullmatch({"a": True, "b": False})(Reply("a"))
    assert len(seen) == 3
    assert not any("secret" in what or "False" in what for what in seen)


@pytest.mark.parametrize(
    ("answer", "strict", "lenient", "reason"),
    [
        ("SELECT n FROM t WHERE n IS NOT NULL ORDER BY n", True, True, ""),
        ("```sql\nSELECT n FROM t WHERE n > 0 ORDER BY 1;\n```", True, True, ""),
        ("Thus:\n```\nSELECT n FROM t WHERE n > 0 ORDER BY 1\n```", False, True, "words around the query"),
        ("SELECT n FROM t ORDER BY n", False, False, "fixture 1 gave [[None], [1], [2]], not [[1], [2]]"),
        ("SELECT n FROM t WHERE n > 0", False, False, "fixture 1 gave [[2], [1]], not [[1], [2]]"),
        ("SELECT n * 1.0 FROM t WHERE n > 0 ORDER BY n", False, False, None),
        ("SELECT 1 UNION SELECT 2", False, False, "fixture 2 gave [[1], [2]], not []"),
        (
            "SELECT m FROM t",
            False,
            False,
            "fixture 1 raised OperationalError: no such column: m, not [[1], [2]]",
        ),
        (
            "SELECT x'00', 9e999, -9e999",
            False,
            False,
            "fixture 1 gave [[\"b'\\\\x00'\", 'inf', '-inf']], not [[1], [2]]",
        ),
        ("SELECT 1; DROP TABLE t", False, False, None),
        ("DELETE FROM t", False, False, "fixture 1 gave [], not [[1], [2]]"),
        ("ATTACH 'x' AS x", False, False, None),
        ("nonsense", False, False, None),
    ],
)
def test_query(answer: str, strict: bool, lenient: bool, reason: str | None) -> None:
    grade = sql.query(FIXTURES)(Reply(answer))
    assert (grade.strict, grade.lenient) == (strict, lenient), grade.reason
    assert grade.reason == reason if reason is not None else grade.reason


@pytest.mark.parametrize(
    ("answer", "strict", "lenient", "reason"),
    [
        ("a+", True, True, ""),
        (" ^a{1,}$\n", True, True, ""),
        ("`a+`", False, True, "more than the pattern"),
        ('r"a+"', False, True, "more than the pattern"),
        ("```\na+\n```", False, True, "more than the pattern"),
        ("**`a+`**", False, True, "more than the pattern"),
        ("The pattern is `a+`.", False, True, "more than the pattern"),
        ("The pattern is not `a+`.", False, False, None),
        ("`a+` or `b+`", False, False, None),
        ("The pattern is a+.", False, False, None),
        ("Try\n```\n'a+'\n```", False, True, "more than the pattern"),
        ("a*", False, False, "matches ''"),
        ("a", False, False, "does not match 'aa'"),
        (r"a+\s?", False, False, r"matches 'a\n'"),
        ("/a+/", False, False, "does not match 'a'"),
        ("(a", False, False, None),
        ("a+ works", False, False, "does not match 'a'"),
    ],
)
def test_fullmatch(answer: str, strict: bool, lenient: bool, reason: str | None) -> None:
    grade = pattern.fullmatch({"a": True, "aa": True, "": False, "a\n": False})(Reply(answer))
    assert (grade.strict, grade.lenient) == (strict, lenient), grade.reason
    assert grade.reason == reason if reason is not None else grade.reason
    if strict:
        assert grade.details == {"cases": 4, "passed": 4}


def test_a_cut_reason_prints() -> None:
    assert code.gave({"raised": "ValueError: \ud800\n"}) == r"raised ValueError: \ud800\n"
    assert code.gave({"raised": "x" * 1000}).startswith("raised xxx")
    assert len(code.gave({"raised": "x" * 1000})) < 110
    assert code.gave({"raised": "a", "b": 1}) == "gave {'raised': 'a', 'b': 1}"
