"""Graders that run a reply's code, pattern or SQL in the sandbox and compare results outside of it."""

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
# Each call fills a new database in memory. SQLite's `execute` refuses more than one statement.
_QUERY = """
import sqlite3

def rows(fixture, query):
    connection = sqlite3.connect(":memory:")
    connection.executescript(fixture)
    return [list(row) for row in connection.execute(query).fetchmany(1000)]
"""


def executed(function: str, cases: Sequence[tuple[Sequence[Any], Any]], harness: str = "") -> Grader:
    """Return a grader of Python code whose `function` must return the right result in every case.

    cases: arguments and right result of each call. Types must match, too, but a tuple counts as a list.
    harness: code that is appended to the answer. An answer, or its code fence, must hold definitions only.
    """

    def judge(text: str) -> tuple[str, dict[str, Any]]:
        reason, details = _run(text + harness, function, cases)
        more = not reason and not _only_defines(text)
        return "more than the code that was asked for" if more else reason, details

    return graded(judge, fence_allowed=True)


def fullmatch(verdicts: Mapping[str, bool]) -> Grader:
    """Return a grader of a regular expression. verdicts: texts and whether `re.fullmatch` must match them."""
    return graded(
        lambda text: _run(_PATTERN, "matches", [((text, each), right) for each, right in verdicts.items()])
    )


def query(fixtures: Sequence[tuple[str, list[list[Any]]]]) -> Grader:
    """Return a grader of one SQL query, bare or in a code fence.

    fixtures: SQLite scripts that fill a database, and the rows that the query must then return, in order.
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
    """True if Python code only imports, defines and assigns, so that it holds no examples of use."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes, which a later Python refuses
            body = ast.parse(unfenced(source)).body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return all(isinstance(statement, _DEFINITIONS) for statement in body)
