"""Programs, patterns and queries in a reply, run in the sandbox. Results are compared outside of it."""

from __future__ import annotations

import ast
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from .. import sandbox
from ..task import Grader
from .json_text import same_json
from .text import graded, shortened, unfenced

_DEFINITIONS = (
    ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef,
    ast.Import, ast.ImportFrom, ast.Assign, ast.AnnAssign,
)  # fmt: skip
_PATTERN = """
import re

def matches(pattern, text):
    return re.fullmatch(pattern, text) is not None
"""
# Each fixture is a database of its own in memory. SQLite runs one statement only.
_QUERY = """
import sqlite3

def rows(fixture, query):
    connection = sqlite3.connect(":memory:")
    connection.executescript(fixture)
    return [list(row) for row in connection.execute(query).fetchmany(1000)]
"""


def executed(function: str, cases: Sequence[tuple[Sequence[Any], Any]], harness: str = "") -> Grader:
    """Grade an answer that has to be Python code whose `function` gives the result of every case.

    cases: (arguments, result); results are compared in value and type, tuples count as lists. harness: code
    that is appended to the answer's. The answer may be in a code fence, and must hold definitions only.
    """

    def judge(text: str) -> tuple[str, dict[str, Any]]:
        reason, details = _run(text + harness, function, cases)
        more = not reason and not _only_defines(text)
        return "more than the code that was asked for" if more else reason, details

    return graded(judge, fence_allowed=True)


def fullmatch(verdicts: Mapping[str, bool]) -> Grader:
    """Grade an answer that has to be a pattern. verdicts: texts, and whether `re.fullmatch` matches them."""
    return graded(
        lambda text: _run(_PATTERN, "matches", [((text, each), right) for each, right in verdicts.items()])
    )


def query(fixtures: Sequence[tuple[str, list[list[Any]]]]) -> Grader:
    """Grade an answer that has to be one SQL query, bare or in a code fence.

    fixtures: SQLite scripts, and the rows that it gives on each, in order.
    """

    return graded(
        lambda text: _run(_QUERY, "rows", [((script, text), rows) for script, rows in fixtures]),
        fence_allowed=True,
    )


def _run(
    source: str, function: str, cases: Sequence[tuple[Sequence[Any], Any]]
) -> tuple[str, dict[str, Any]]:
    outcome = sandbox.call(source, function, [arguments for arguments, _ in cases])
    if outcome.results is None:
        return outcome.failure, {}
    wrong = [
        f"{function}({', '.join(map(shortened, arguments))}) gave {shortened(result)}, not {shortened(right)}"
        for (arguments, right), result in zip(cases, outcome.results, strict=True)
        if not same_json(result, right)
    ]
    return wrong[0] if wrong else "", {"cases": len(cases), "passed": len(cases) - len(wrong)}


def _only_defines(source: str) -> bool:
    """True if Python code does nothing but import, define and assign: no examples of use."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes, which a later Python refuses
            body = ast.parse(unfenced(source)).body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return all(isinstance(statement, _DEFINITIONS) for statement in body)
