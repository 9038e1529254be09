"""The suite callback: a long explanation that must return, at its end, to a fact from its first sentence.

The grader checks that the fact is still right after eight to ten canvases, that the length is as asked, and
that no canvas repeats earlier text.
"""

from __future__ import annotations

import re
from functools import partial
from typing import Any

from ..graders.text import graded
from ..task import Grade, Reply, Task
from . import texts

FACT = "in 1893 the harbour master Ottoline Varga counted 4,817 mussels on a single mooring post"
FEWEST, MOST = 1400, 1700  # words of an answer
WORDS_PER_BLOCK = 190  # English words in a canvas of 256 tokens, for runners without canvases
FEWEST_WORDS = 100  # in a shorter block one repeated phrase weighs too much, so it joins its neighbour
MOST_REPEATED = 0.15  # share of a block's 4-grams; in an English book the median is 0.01, the maximum 0.12

_STATED = [
    re.compile(rf"\b{part}\b")
    for part in ("1893", "harbou?r master", "Ottoline Varga", "(?<![\\d,.])4,?817 mussels", "mooring post")
]
_SENTENCE_END = re.compile(r"(?<!\b(?:Dr|Mr|Ms|St))(?<!\b[A-Z])[.!?][\"'”’)*_]*(?=\s|\Z)|\n")
_LAYOUT = re.compile(
    r"^[ \t]*(?:#|```|~~~|[-*+•] |\d{1,2}[.)] |\||(?:[-*_] ?){3,}$|(\*\*|__)[^\n]+\1:?[ \t]*$)|<\|\w|\w\|>",
    re.MULTILINE,
)  # headings, fences, lists, tables, rules, lines in bold, markers of the chat format
_WORD = re.compile(r"\w+(?:['’]\w+)*")


def returns(reply: Reply) -> Grade:
    """Grade an essay by the fact in first sentence and last paragraph, by length, layout and repetition."""
    return graded(partial(judge, reply))(reply)


def judge(reply: Reply, text: str) -> tuple[str, dict[str, Any]]:
    """Return the reasons why an answer fails (empty if it passes), and its details.

    The details are fact_at_start, fact_at_end, words (their number) and blocks (see `repetition`). The fact
    is searched in the text without `*` and `_`.
    """
    plain = re.sub(r"[*_]", "", text)
    first, *others = re.split(r"\n\s*\n", plain)
    sentence = first[: end.end()] if (end := _SENTENCE_END.search(first)) else first
    at_start = all(part.search(sentence) for part in _STATED)
    at_end = bool(others) and all(part.search(others[-1]) for part in _STATED[2:4])
    count, blocks = len(text.split()), repetition(reply)
    worst = max(blocks, key=lambda block: block["repeated"], default={"repeated": 0})
    reasons = [
        "" if at_start else "first sentence lacks the fact",
        "" if at_end else "last paragraph lacks the fact",
        "" if FEWEST <= count <= MOST else f"{count} words",
        "more than paragraphs" if _LAYOUT.search(text) else "",
        f"block {blocks.index(worst) + 1} repeats itself" if worst["repeated"] > MOST_REPEATED else "",
    ]
    details = {"fact_at_start": at_start, "fact_at_end": at_end, "words": count, "blocks": blocks}
    return "; ".join(filter(None, reasons)), details


def repetition(reply: Reply) -> list[dict[str, Any]]:
    """Return, for each block, its number of words and its share of repeated 4-grams, except those of FACT."""
    granted, said = set(_grams(_words(FACT))), set[tuple[str, ...]]()
    found, before = list[dict[str, Any]](), list[str]()
    for words in _blocks(reply):
        grams, repeated = [*_grams([*before, *words])], 0
        for gram in grams:
            repeated += gram in said and gram not in granted
            said.add(gram)
        found.append({"words": len(words), "repeated": round(repeated / max(1, len(grams)), 3)})
        before = words[-3:]
    return found


def _words(text: str) -> list[str]:
    return _WORD.findall(text.casefold())


def _grams(words: list[str]) -> zip[tuple[str, ...]]:
    return zip(words, words[1:], words[2:], words[3:], strict=False)


def _blocks(reply: Reply) -> list[list[str]]:
    """Return the words of each block: a canvas, joined to its neighbour if it has under FEWEST_WORDS."""
    blocks, words = [list[str]()], _words(reply.answer)
    canvases = [words[at : at + WORDS_PER_BLOCK] for at in range(0, len(words), WORDS_PER_BLOCK)]
    for canvas in map(_words, reply.blocks) if any(reply.blocks) else canvases:
        blocks[-1] += canvas
        if len(blocks[-1]) >= FEWEST_WORDS:
            blocks.append([])
    last = blocks.pop()
    if blocks:
        blocks[-1] += last
    return blocks or [last]


def tasks() -> list[Task]:
    return [
        Task("callback", texts("callback")["callback"].rstrip(), returns, settings={"max_new_tokens": 6144})
    ]
