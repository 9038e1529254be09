"""probe: counting from 1 to 200, which fills canvases with predictable text; for throughput."""

from __future__ import annotations

import re

from mlx_diffusiongemma.evaluation.graders.text import shortened
from mlx_diffusiongemma.evaluation.task import Grade, Reply, Task

LAST = 200
PROMPT = (
    f"Count from 1 to {LAST}. Reply with only the numbers, in figures, on one line, with one space between."
)
_NUMBERS = [str(number) for number in range(1, LAST + 1)]
_OTHER = re.compile(r"(?<!\w)[-−][0-9]|[^\W\d_][0-9]|[0-9][^\W\d_]")  # -3, x3, 3rd: not 3
_RUN = re.compile(r"\d+")


def counts(reply: Reply) -> Grade:
    """The numbers from 1 to LAST with single spaces. Lenient: with anything but numbers between and around,
    and after words that end in a colon. details: counted, the last number that was right."""
    answer = reply.answer.strip()
    if answer == " ".join(_NUMBERS):
        return Grade(True, True, details={"counted": LAST})
    lead, _, rest = answer.partition(":")
    text = rest if rest and any(character.isalpha() for character in lead) else answer
    found = _RUN.findall(text)
    right = next(
        (at for at, pair in enumerate(zip(found, _NUMBERS, strict=False)) if pair[0] != pair[1]), None
    )
    counted = min(len(found), LAST) if right is None else right
    details = {"counted": counted}
    if found == _NUMBERS and not _OTHER.search(text):
        return Grade(False, True, "more than the numbers and single spaces", details)
    if counted < len(found):
        return Grade(False, False, f"counted to {counted}, then {shortened(found[counted])}", details)
    return Grade(
        False, False, f"counted to {counted}" if found != _NUMBERS else "other than numbers", details
    )


def tasks() -> list[Task]:
    return [Task("probe", PROMPT, counts, thinking=False, settings={"max_new_tokens": 1024})]
