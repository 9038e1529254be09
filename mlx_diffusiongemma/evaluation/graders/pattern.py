"""A regular expression in a reply, matched in the sandbox."""

from __future__ import annotations

import re
from collections.abc import Mapping

from mlx_diffusiongemma.evaluation.graders.code import gave, program
from mlx_diffusiongemma.evaluation.graders.text import doubtful, shortened
from mlx_diffusiongemma.evaluation.sandbox import call
from mlx_diffusiongemma.evaluation.task import Grade, Grader, Reply

_HARNESS = """
import re

def matches(pattern, text):
    return re.fullmatch(pattern, text) is not None
"""
_LITERAL = re.compile(r"""r?(["'])(.*)\1""", re.DOTALL)


def fullmatch(verdicts: Mapping[str, bool]) -> Grader:
    """The answer is a pattern that matches (re.fullmatch, no flags) the texts that it should and no other.

    Strict: only the pattern. Lenient: in the only fence; in the only backticks, also between words that deny
    nothing; or quoted as a Python literal.
    """

    def grade(reply: Reply) -> Grade:
        try:
            source, _ = program(reply.answer)
        except ValueError as error:
            return Grade(False, False, str(error))
        before, *inside = source.split("`")
        if len(inside) == 2 and not doubtful(before + inside[1]):
            source = inside[0]
        quoted = _LITERAL.fullmatch(source)
        source = quoted[2] if quoted else source
        outcome = call(_HARNESS, "matches", [(source, text) for text in verdicts])
        if outcome.results is None or len(outcome.results) != len(verdicts):
            return Grade(False, False, outcome.failure or "no results")
        wrong = [
            _wrong(text, result)
            for (text, right), result in zip(verdicts.items(), outcome.results, strict=True)
            if result is not right
        ]
        details = {"cases": len(verdicts), "passed": len(verdicts) - len(wrong)}
        if wrong:
            return Grade(False, False, wrong[0], details)
        alone = source == reply.answer.strip()
        return Grade(alone, True, "" if alone else "more than the pattern", details)

    return grade


def _wrong(text: str, result: object) -> str:
    if isinstance(result, bool):
        return f"{'matches' if result else 'does not match'} {shortened(text)}"
    return gave(result)
