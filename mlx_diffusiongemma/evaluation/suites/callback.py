"""callback: a long explanation that has to return, at its end, to a fact from its first sentence.

The grader looks whether the fact survives eight to ten canvases, whether the length is as asked, and in which
canvas the text drifts.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from mlx_diffusiongemma.evaluation.graders.drift import PARAGRAPHS, repeated_paragraphs, stretches
from mlx_diffusiongemma.evaluation.task import Grade, Reply, Task

FACT = "in 1893 the harbour master Ottoline Varga counted 4,817 mussels on a single mooring post"
FEWEST, MOST = 1400, 1700  # words
LENIENCE = 0.25  # of the length
PROMPT = f"""Explain to a curious adult without training in physics how ocean tides arise and why they \
differ so much from coast to coast.

- Write in English, {FEWEST:,} to {MOST:,} words, in paragraphs separated by empty lines. No title, no \
headings, no lists, no tables.
- The first sentence has to state this fact, with the full name and both numbers in figures: {FACT}.
- The last paragraph has to return to this fact, again with the full name and the words "4,817 mussels".

Reply with only the explanation."""

REMARK = 25  # words at most of a title or lead-in before the text, and of a remark after it

_NAME = re.compile(r"\bOttoline Varga(?![^\W\d_])")
_NUMBER = re.compile(
    r"(?<![\w.,])4[, ]?817 (?:(?!(?:and|or|not|but|other) )[\w'’-]+ ){0,2}mussels\b", re.IGNORECASE
)
_OFFICE = re.compile(r"\bharbou?r[ -]?master\b", re.IGNORECASE)
_PLACE = re.compile(r"\bmooring[ -]post\b", re.IGNORECASE)
_YEAR = re.compile(
    r"\b(?:as|in|of|during|since|early|late|year|was|spring|summer|autumn|fall|winter|January|February|March"
    r"|April|May|June|July|August|September|October|November|December|\d{1,2}),? ((?:1[5-9]|20)\d\d)\b",
    re.IGNORECASE,
)
_DENIED = re.compile(
    r"(?:\b(?:not|never|no|nor|nearly|almost|roughly|approximately|instead of)|n['’]t|(?<!\bno fewer )\bthan)"
    r"(?: (?:the|those|these|that|her|his|a|an|in|by|have|has|had|count|counted|counting|harbou?r|master))*"
    r" \(?(?:Ottoline|4[, ]?817|1893)\b",
    re.IGNORECASE,
)
_ANY_OF_IT = re.compile(r"\b(?:1893|[Hh]arbou?r|Ottoline|4[, ]?817)\b")
_LEAD = re.compile(r"[:\n]\W{0,5}[A-Z]")

_LAYOUT = re.compile(
    r"^[ \t]*(?:#|```|~~~|(?:[-*_] ?){3,}$|(\*\*|__)[^\n]+\1:?[ \t]*$).*$", re.MULTILINE
)  # headings, fences, rules, lines in bold
_FORBIDDEN = re.compile(r"^[ \t]*(?:[-*+•] |\d{1,2}[.)] |\|)|<\|\w|\w\|>", re.MULTILINE)
_END = re.compile(r"[.!?…][\"'”’»)*_]*(?=\s|\Z)")
_ABBREVIATED = re.compile(r"(?:\b(?:Mrs?|Ms|Dr|St|Mt|No|Capt|ca|cf|e\.g|i\.e|approx)|\b[A-Z])\Z")


def sentences(paragraph: str) -> Iterator[str]:
    """Each up to a mark that ends a sentence, other than behind an initial or a common abbreviation."""
    start = 0
    for end in _END.finditer(paragraph):
        if end[0][0] != "." or not _ABBREVIATED.search(paragraph, max(0, end.start() - 8), end.start()):
            yield paragraph[start : end.end()].strip()
            start = end.end()
    if rest := paragraph[start:].strip():
        yield rest


def _plain(text: str) -> str:
    """Without emphasis, and with a simple space for any."""
    return " ".join(re.sub(r"[*_]", "", text).split())


def recalls(text: str) -> bool:
    """Whether a text names who counted, and what and how many.

    Two words at most stand between the number and "mussels". No word before name, number or year denies it,
    and the sentences of name and number give no other year.
    """
    plain = _plain(text)
    if not (_NAME.search(plain) and _NUMBER.search(plain)) or _DENIED.search(plain):
        return False
    told = [one for one in sentences(plain) if _NAME.search(one) or _NUMBER.search(one)]
    return all(year == "1893" for one in told for year in _YEAR.findall(one))


def begins(paragraph: str) -> bool:
    """Whether the first sentence recalls, and also has the year, the office and the place."""
    sentence = _plain(next(sentences(paragraph), ""))
    facts = (_YEAR, _OFFICE, _PLACE)
    return recalls(sentence) and all(fact.search(sentence) for fact in facts)


def leads_in(paragraph: str) -> bool:
    """Whether a title stands before the first sentence: a colon or a line's end, then a capital."""
    fact = _ANY_OF_IT.search(paragraph)
    return bool(fact and _LEAD.search(paragraph, 0, fact.start() + 1))


def frames(paragraphs: list[str]) -> bool:
    """Whether a paragraph begins and a later one recalls, with at most REMARK words before and after."""
    first = next((at for at, part in enumerate(paragraphs) if begins(part)), len(paragraphs))
    last = max((at for at, part in enumerate(paragraphs) if recalls(part)), default=-1)
    around = (paragraphs[:first], paragraphs[last + 1 :])
    return first < last and all(sum(len(part.split()) for part in side) <= REMARK for side in around)


def returns(reply: Reply) -> Grade:
    """The fact is in the first sentence and in the last of several paragraphs (see `begins` and `recalls`),
    the length is right, no canvas drifts, and the answer is paragraphs only: no title, heading, fence, list,
    table or marker of the chat format. Lenient: with headings, in a fence, between a title and a closing
    remark, and up to a quarter too short or long. Nothing looks at what the text says otherwise.

    details: fact_at_start, fact_at_end, words, repeated_paragraphs, and of each block its words and drift.
    """
    text = reply.answer.strip()
    body = _LAYOUT.sub("", text).strip()
    paragraphs = [part.strip() for part in PARAGRAPHS.split(body)]
    at_start, at_end = begins(paragraphs[0]), len(paragraphs) > 1 and recalls(paragraphs[-1])
    count = len(text.split())
    blocks = stretches(reply, granted=FACT)
    loops = repeated_paragraphs(text)
    drifting = [
        (one.repeated + one.echoed + one.foreign, at, one.fault)
        for at, one in enumerate(blocks, 1)
        if one.fault
    ]
    drift = "block {1} {2}".format(*max(drifting)) if drifting else ""
    if loops:
        drift = drift or f"{loops} paragraphs said again"

    broken = "a list, a table or a marker" if _FORBIDDEN.search(body) else ""
    reasons = [
        "" if at_start else "first sentence lacks the fact",
        "" if at_end else "last paragraph lacks the fact",
        "" if FEWEST <= count <= MOST else f"{count} words",
        "a title, a heading or a fence" if body != text or leads_in(paragraphs[0]) else "",
        broken,
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
    lenient = frames(paragraphs) and roughly and not broken and not drift
    return Grade(strict, lenient, "; ".join(filter(None, reasons)), details)


def tasks() -> list[Task]:
    return [Task("callback", PROMPT, returns, settings={"max_new_tokens": 6144})]
