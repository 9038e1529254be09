"""Programs in a reply, executed in the sandbox. What is right never enters it: results are compared here."""

from __future__ import annotations

import ast
import warnings
from collections.abc import Sequence
from typing import Any

from mlx_diffusiongemma.evaluation.graders.json_text import same_json
from mlx_diffusiongemma.evaluation.graders.text import fences, is_fence, shortened, unfenced, unusable
from mlx_diffusiongemma.evaluation.sandbox import call
from mlx_diffusiongemma.evaluation.task import Grade, Grader, Reply

_DEFINES = (
    *(ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef),
    *(ast.Import, ast.ImportFrom, ast.Assign, ast.AnnAssign),
)
Case = tuple[Sequence[Any], Any]  # arguments, result


def program(text: str) -> tuple[str, bool]:
    """The program in a reply, and whether the reply is nothing else: bare, or in one code fence.

    ValueError, in a few words: there is none, or more than one.
    """
    if reason := unusable(text.strip()):
        raise ValueError(reason)
    if any("\ud800" <= mark <= "\udfff" for mark in text):
        raise ValueError("half a surrogate pair")
    found = len(fences(text))
    if found > 1:
        raise ValueError(f"{found} code fences")
    return unfenced(text), not found or is_fence(text)


def only_defines(source: str) -> bool:
    """Whether Python code does nothing but import, define and assign: no examples of use, no words."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of an escape that Python will refuse one day
            body = ast.parse(source).body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return all(isinstance(statement, _DEFINES) for statement in body)


def executed(function: str, cases: Sequence[Case], harness: str = "") -> Grader:
    """The answer is Python code, and `function`, of that or of the `harness` behind it, gives every case's
    result, in value and type.

    Tuples count as lists. Strict: only definitions, bare or in one fence. Lenient: also with examples of use,
    or with words around the fence.
    """

    def grade(reply: Reply) -> Grade:
        try:
            source, alone = program(reply.answer)
        except ValueError as error:
            return Grade(False, False, str(error))
        outcome = call(source + harness, function, [arguments for arguments, _ in cases])
        if outcome.results is None or len(outcome.results) != len(cases):
            return Grade(False, False, outcome.failure or "no results")
        wrong = [
            f"{function}({', '.join(map(shortened, arguments))}) {gave(result)}, not {shortened(right)}"
            for (arguments, right), result in zip(cases, outcome.results, strict=True)
            if not same_json(result, right)
        ]
        details = {"cases": len(cases), "passed": len(cases) - len(wrong)}
        if wrong:
            return Grade(False, False, wrong[0], details)
        strict = alone and only_defines(source)
        return Grade(strict, True, "" if strict else "more than the code that was asked for", details)

    return grade


def gave(result: Any) -> str:
    """What a call came to, for a reason."""
    if isinstance(result, dict) and list(result) == ["raised"]:
        return f"raised {shortened(str(result['raised']), 100)[1:-1]}"
    return f"gave {shortened(result)}"
