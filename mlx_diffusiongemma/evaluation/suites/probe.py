"""The suite probe: counting from 1 to 200. It fills canvases with predictable text, to measure throughput."""

from __future__ import annotations

import re
from typing import Any

from ..graders.text import graded
from ..task import Task

LAST = 200
PROMPT = (
    f"Count from 1 to {LAST}. Reply with only the numbers, in figures, on one line, with one space between."
)


def judge(text: str) -> tuple[str, dict[str, Any]]:
    """Compare `text` with the numbers from 1 to LAST, separated by single spaces.

    The detail `counted` is the length of the longest count from 1 in the text.
    """
    counted, at = 0, 0
    for number in re.findall(r"\d+", text):
        at = at + 1 if at < LAST and number == str(at + 1) else int(number == "1")
        counted = max(counted, at)
    right = text == " ".join(map(str, range(1, LAST + 1)))
    reason = f"counted to {counted}" if counted < LAST else "more than the numbers and single spaces"
    return "" if right else reason, {"counted": counted}


def tasks() -> list[Task]:
    return [Task("probe", PROMPT, graded(judge), thinking=False, settings={"max_new_tokens": 1024})]
