"""Moves between water jugs, simulated."""

from __future__ import annotations

import re
from collections.abc import Mapping

from mlx_diffusiongemma.evaluation.graders.text import shortened, unfenced, unmarked, unusable
from mlx_diffusiongemma.evaluation.task import Grade, Grader, Reply

_MOVE = re.compile(r"(fill|empty) ([A-Z])|pour ([A-Z]) ([A-Z])")
_NOTE = r"(?:\s*(?:\([^()]*\)|\[[^\[\]]*\]|(?:[:=→]|[-–—=]>? )(?!.*\b(?:fill|empty|pour)).*))?"
_WORDY = re.compile(
    r"(?:(fill|empty)(?: jug)? ([A-Z])"
    rf"|pour(?: from)?(?: jug)? ([A-Z])(?:(?: into| to| in)?(?: jug)? | ?(?:,|->|→) ?)([A-Z])){_NOTE}",
    re.IGNORECASE,
)


def moves(
    capacities: Mapping[str, int], start: Mapping[str, int], goal: Mapping[str, int], most: int
) -> Grader:
    """The answer is moves, one a line: fill A, empty A, pour A B. At most so many, from start to goal.

    Lenient: with list markers, "pour A into B", any case, bold, notes after a move; in the only fence; after
    a line that ends in a colon.
    """

    def grade(reply: Reply) -> Grade:
        text = reply.answer.strip()
        if reason := unusable(text):
            return Grade(False, False, reason)
        written = text.replace("\r\n", "\n").split("\n")
        found = [_MOVE.fullmatch(line) for line in written]
        strict = None not in found
        if not strict:
            written = [line for line in map(unmarked, unfenced(text).split("\n")) if line]
            if written and written[0].endswith(":"):
                written = written[1:]
            found = [_WORDY.fullmatch(line) for line in written]
        held = dict(start)
        for line, move in zip(written, found, strict=True):
            if move is None:
                return Grade(False, False, f"{shortened(line)} is no move")
            verb, jug, source, target = ((part or "").upper() for part in move.groups())
            if not {jug or source, target or jug} <= capacities.keys() or source == target != "":
                return Grade(False, False, f"{shortened(line)}: no such jugs")
            if verb:
                held[jug] = capacities[jug] if verb == "FILL" else 0
            else:
                amount = min(held[source], capacities[target] - held[target])
                held[source], held[target] = held[source] - amount, held[target] + amount
        if any(held[jug] != amount for jug, amount in goal.items()):
            return Grade(False, False, f"ends with {shortened(held)}")
        if len(found) > most:
            return Grade(False, False, f"{len(found)} moves, not {most}")
        return Grade(strict, True, "" if strict else "more than the moves")

    return grade
