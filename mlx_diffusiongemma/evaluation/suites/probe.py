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
_SIGNED = re.compile(r"(?<!\w)[-−][0-9]")  # -3 is not 3
_COUNT = re.compile(r"(?<!\w)" + r"\W+".join(_NUMBERS) + r"(?!\w)")
_RUN = re.compile(r"\d+")


def counts(reply: Reply) -> Grade:
    """The numbers from 1 to LAST with single spaces. Lenient: once, without letters between, and with words
    around that have no numbers but 1 and LAST. details: counted, how far the longest count from 1 came."""
    answer = reply.answer.strip()
    if answer == " ".join(_NUMBERS):
        return Grade(True, True, details={"counted": LAST})
    counted, then = _longest(_RUN.findall(answer))
    details = {"counted": counted}
    count = _COUNT.search(answer)
    if count and not _SIGNED.search(answer):
        around = [*answer[: count.start()].split("\n"), *answer[count.end() :].split("\n")]
        if all(map(_in_words, around)):
            return Grade(False, True, "more than the numbers and single spaces", details)
    if counted == LAST:
        return Grade(False, False, "other than the numbers", details)
    stop = f", then {shortened(then)}" if then else ""
    return Grade(False, False, f"counted to {counted}{stop}", details)


def _longest(found: list[str]) -> tuple[int, str]:
    """How far the longest count from 1 came, LAST at most, and the number behind it."""
    best, then, at = 0, found[0] if found else "", 0
    for index, number in enumerate(found):
        at = at + 1 if at < LAST and number == _NUMBERS[at] else int(number == "1")
        if at > best:
            best, then = at, found[index + 1] if index + 1 < len(found) else ""
    return best, then


def _in_words(line: str) -> bool:
    """Whether a line has no number, or only 1 and LAST among words."""
    found = set(_RUN.findall(line))
    return not found or (found <= {"1", str(LAST)} and any(character.isalpha() for character in line))


def tasks() -> list[Task]:
    return [Task("probe", PROMPT, counts, thinking=False, settings={"max_new_tokens": 1024})]
