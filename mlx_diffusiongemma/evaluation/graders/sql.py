"""An SQL query in a reply, run on SQLite in the sandbox. Expected rows are compared outside of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mlx_diffusiongemma.evaluation.graders.code import gave, program
from mlx_diffusiongemma.evaluation.graders.json_text import same_json
from mlx_diffusiongemma.evaluation.graders.text import shortened
from mlx_diffusiongemma.evaluation.sandbox import call
from mlx_diffusiongemma.evaluation.task import Grade, Grader, Reply

# Each fixture is a database of its own in memory; SQLite's limit of one statement holds. Values that JSON has
# not, such as blobs and infinities, come back as their repr.
_HARNESS = """
import sqlite3

def value(item):
    infinite = isinstance(item, float) and item in (float("inf"), float("-inf"))
    return repr(item) if infinite or isinstance(item, bytes) else item

def rows(fixture, query):
    connection = sqlite3.connect(":memory:")
    connection.executescript(fixture)
    return [[value(item) for item in row] for row in connection.execute(query).fetchmany(1000)]
"""


def query(fixtures: Sequence[tuple[str, list[list[Any]]]]) -> Grader:
    """The answer is one SQL query that gives the right rows, in order, on every fixture: (script, rows).

    Strict: only the query, bare or in one fence. Lenient: with words around the fence.
    """

    def grade(reply: Reply) -> Grade:
        try:
            source, alone = program(reply.answer)
        except ValueError as error:
            return Grade(False, False, str(error))
        outcome = call(_HARNESS, "rows", [(script, source) for script, _ in fixtures])
        if outcome.results is None or len(outcome.results) != len(fixtures):
            return Grade(False, False, outcome.failure or "no results")
        for at, ((_, right), rows) in enumerate(zip(fixtures, outcome.results, strict=True)):
            if not same_json(rows, right):
                return Grade(False, False, f"fixture {at + 1} {gave(rows)}, not {shortened(right)}")
        return Grade(alone, True, "" if alone else "words around the query")

    return grade
