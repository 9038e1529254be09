"""callback: a long explanation that has to return, at its end, to a fact from its first sentence.

The grader looks whether the fact survives eight to ten canvases, whether the length is as asked, and in which
canvas the text drifts.
"""

from __future__ import annotations

import re

from mlx_diffusiongemma.evaluation.graders.drift import (
    LOOP_WORDS,
    PARAGRAPHS,
    repeated_paragraphs,
    stretches,
    words,
)
from mlx_diffusiongemma.evaluation.task import Grade, Reply, Task

FACT = "in 1893 the harbour master Ottoline Varga counted 4,817 mussels on a single mooring post"
FEWEST, MOST = 1400, 1700  # words
LENIENCE = 0.25  # of the length
PROMPT = f"""Explain to a curious adult without training in physics how ocean tides arise and why they \
differ so much from coast to coast.

- Write in English, {FEWEST:,} to {MOST:,} words, in paragraphs separated by empty lines. No title, no \
headings, no lists, no tables.
- The first sentence has to state this fact, with the full name and both numbers in figures: {FACT}.
- The last paragraph has to return to this fact, again with the full name and the number of mussels in \
figures.

Reply with only the explanation."""

_NUMBER = re.compile(r"(?<![\w.,])4[, \u00a0\u2009\u202f]?817(?!\w|[.,][0-9])")
_NAME = re.compile(r"\bOttoline\s+Varga(?![^\W\d_])")
_END = re.compile(r"[.!?…][\"'”’»)*_]*(?=\s|\Z)")
_ABBREVIATED = re.compile(r"(?:\b(?:Mrs?|Ms|Dr|St|Mt|No|Capt|ca|cf|e\.g|i\.e|approx)|\b[A-Z])\Z")


def first_sentence(paragraph: str) -> str:
    """Up to the first mark that ends a sentence, other than behind an initial or a common abbreviation."""
    for end in _END.finditer(paragraph):
        if end[0][0] != "." or not _ABBREVIATED.search(paragraph, max(0, end.start() - 8), end.start()):
            return paragraph[: end.end()]
    return paragraph


def recalls(text: str) -> bool:
    """Whether a text names who counted what, and how many."""
    return bool(_NAME.search(text) and _NUMBER.search(text) and "mussel" in text.casefold())


def begins(paragraph: str) -> bool:
    sentence = first_sentence(paragraph)
    return recalls(sentence) and "1893" in sentence


def returns(reply: Reply) -> Grade:
    """The fact is in the first sentence and in the last of several paragraphs, the length is right, and no
    canvas drifts. Lenient: also between a title and a closing remark, and up to a quarter too short or long.

    details: fact_at_start, fact_at_end, words, repeated_paragraphs, and of each block its words and drift.
    """
    text = reply.answer.strip()
    paragraphs = [part.strip() for part in PARAGRAPHS.split(text)]
    long = [part for part in paragraphs if len(words(part)) >= LOOP_WORDS]
    at_start, at_end = begins(paragraphs[0]), len(paragraphs) > 1 and recalls(paragraphs[-1])
    wrapped = len(long) > 1 and begins(long[0]) and recalls(long[-1])
    count = len(text.split())
    blocks = stretches(reply, granted=FACT)
    loops = repeated_paragraphs(text)
    drifting = [(one.repeated + one.foreign, at, one.fault) for at, one in enumerate(blocks, 1) if one.fault]
    drift = "block {1} {2}".format(*max(drifting)) if drifting else ""
    if loops:
        drift = drift or f"{loops} paragraphs said again"

    reasons = [
        "" if at_start else "first sentence lacks the fact",
        "" if at_end else "last paragraph lacks the fact",
        "" if FEWEST <= count <= MOST else f"{count} words",
        drift,
    ]
    roughly = FEWEST * (1 - LENIENCE) <= count <= MOST * (1 + LENIENCE)
    details = {
        "fact_at_start": at_start,
        "fact_at_end": at_end,
        "words": count,
        "repeated_paragraphs": loops,
        "blocks": [block.shown() for block in blocks],
    }
    strict = not any(reasons)
    lenient = ((at_start and at_end) or wrapped) and roughly and not drift
    return Grade(strict, lenient, "; ".join(filter(None, reasons)), details)


def tasks() -> list[Task]:
    return [Task("callback", PROMPT, returns, settings={"max_new_tokens": 6144})]
