"""callback: the fact at both ends, the length, and drift in between."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from itertools import pairwise

import pytest

from mlx_diffusiongemma.evaluation.suites.callback import FACT, first_sentence, returns, tasks
from mlx_diffusiongemma.evaluation.task import Reply

SMALL = "the of and to a in is that it for as with by from or but which they one its were if when"
LARGE = """water moon tide coast gravity bulge sailor harbour basin rhythm motion orbit current depth slope
bay river storm season level angle friction energy ocean planet channel island wave shelf funnel delay"""
OPENING = f"{FACT[0].upper()}{FACT[1:]}, and the tide hid them all twice a day."
CLOSING = (
    "So when Ottoline Varga bent over her post and counted 4,817 mussels, she was reading a gauge of the "
    "sea, and every shell of it had been set by the moon."
)


def paragraph(words: int, seed: int) -> str:
    """Words in the proportions of English prose, which never say the same thing for long."""
    draw = random.Random(seed)
    kinds = SMALL.split(), LARGE.split()
    return " ".join(draw.choice(kinds[at % 2]) for at in range(words)) + "."


def essay(words: int = 1500, opening: str = OPENING, closing: str = CLOSING, middle: str = "") -> str:
    parts = [f"{opening} {paragraph(120, 0)}", middle, f"{paragraph(40, 1)} {closing}"]
    missing = words - len(" ".join(parts).split())
    sizes = [*[110] * (missing // 110), missing % 110]
    filling = [paragraph(size, seed) for seed, size in enumerate(sizes, 2) if size]
    return "\n\n".join(part for part in (parts[0], *filling[:5], middle, *filling[5:], parts[2]) if part)


OTHER = "Das Wasser steigt zweimal am Tag, und die Ursache ist der Mond, der nicht nur das Meer anzieht."


@pytest.mark.parametrize(
    ("answer", "strict", "lenient", "reason"),
    [
        (essay(), True, True, ""),
        (f"\n\n {essay()} \n", True, True, ""),
        (essay(1400), True, True, ""),
        (essay(1700), True, True, ""),
        (essay(opening=f"It is odd but true: {FACT}!"), True, True, ""),
        (essay(opening=OPENING.replace("4,817", "4817")), True, True, ""),
        (essay(opening=OPENING.replace("post", "post of Dr. T. St. Claire")), True, True, ""),
        (essay(closing=CLOSING.replace("4,817", "**4,817**")), True, True, ""),
        (essay(1399), False, True, "1399 words"),
        (essay(1701), False, True, "1701 words"),
        (essay(1050), False, True, "1050 words"),
        (essay(2125), False, True, "2125 words"),
        (essay(1049), False, False, "1049 words"),
        (essay(2126), False, False, "2126 words"),
        (f"# How tides work\n\n{essay()}", False, True, "first sentence lacks the fact"),
        (f"{essay()}\n\n(1,500 words)", False, True, "last paragraph lacks the fact"),
        (essay(opening=f"Tides are strange. {OPENING}"), False, False, "first sentence lacks the fact"),
        (essay(opening=OPENING.replace("4,817", "4,871")), False, False, "first sentence lacks the fact"),
        (essay(opening=OPENING.replace("4,817", "14,817")), False, False, "first sentence lacks the fact"),
        (essay(opening=OPENING.replace("4,817", "4,817.5")), False, False, "first sentence lacks the fact"),
        (essay(opening=OPENING.replace("4,817", "4.817")), False, False, "first sentence lacks the fact"),
        (essay(opening=OPENING.replace("1893", "1983")), False, False, "first sentence lacks the fact"),
        (essay(opening=OPENING.replace("mussels", "limpets")), False, False, "first sentence lacks the fact"),
        (
            essay(closing=CLOSING.replace("4,817", "thousands of")),
            False,
            False,
            "last paragraph lacks the fact",
        ),
        (
            essay(closing=CLOSING.replace("Ottoline Varga", "she")),
            False,
            False,
            "last paragraph lacks the fact",
        ),
        (essay(closing=CLOSING.replace("Varga", "Vargas")), False, False, "last paragraph lacks the fact"),
        (essay(closing=f"{CLOSING}\n\n{paragraph(30, 99)}"), False, False, "last paragraph lacks the fact"),
        (essay().replace("\n\n", " "), False, False, "last paragraph lacks the fact"),
        (essay(middle=f"{OTHER} {OTHER.lower()}"), False, False, "leaves English"),
        (essay(middle=f"{paragraph(12, 7)[:-1]} " * 6), False, False, "repeats itself"),
        (essay(middle=f"{paragraph(12, 7)}\n\n{paragraph(12, 7)}"), False, False, "1 paragraphs said again"),
        (OPENING, False, False, "last paragraph lacks the fact"),
        ("", False, False, "0 words"),
        ("\x00\ud800\n\n\n\n.", False, False, "first sentence lacks the fact"),
        (f"{OPENING}\n\n" * 2_000, False, False, "repeats itself"),
        ("A. " * 30_000, False, False, "30000 words"),
    ],
)
def test_returning(answer: str, strict: bool, lenient: bool, reason: str) -> None:
    grade = returns(Reply(answer))
    assert (grade.strict, grade.lenient) == (strict, lenient), grade.reason
    assert reason in grade.reason
    assert bool(grade.reason) is not strict


def test_details() -> None:
    text = essay(middle=" ".join([OTHER] * 3))
    german = text.index(OTHER)
    cuts = [0, german - 1400, german, german + 1400, len(text)]
    canvases = tuple(text[start:end] for start, end in pairwise(cuts))
    block = 2
    grade = returns(Reply(text, blocks=canvases))
    assert grade.details["blocks"][block - 1]["foreign"] > 0  # its last word, so the worst has to be named
    assert grade.reason.startswith(f"block {block + 1} ")
    assert grade.details["fact_at_start"] is True
    assert grade.details["fact_at_end"] is True
    assert grade.details["words"] == 1500
    assert grade.details["repeated_paragraphs"] == 0
    assert len(grade.details["blocks"]) == len(canvases)
    assert grade.details["blocks"][block]["foreign"] > 0.1
    assert {name for one in grade.details["blocks"] for name in one} == {"words", "repeated", "foreign"}


def test_the_demanded_repetition_is_no_drift() -> None:
    """Also where the last canvas says little else."""
    text = essay(closing=CLOSING.replace("her post", f"her post, {FACT}, {FACT}, {FACT}, {FACT},"))
    cut = text.rindex("So when") - 400
    canvases = (*(text[at : min(at + 1200, cut)] for at in range(0, cut, 1200)), text[cut:])
    assert "".join(canvases) == text
    assert returns(Reply(text, blocks=canvases)).strict


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("One two. Three.", "One two."),
        ("One (two). Three.", "One (two)."),
        ("“One two!” Three.", "“One two!”"),
        (
            "Mr. B. Two of St. Ives, e.g. here, has 3.5 of it. Three.",
            "Mr. B. Two of St. Ives, e.g. here, has 3.5 of it.",
        ),
        ("Of 1893. Three.", "Of 1893."),
        ("no end", "no end"),
        ("", ""),
    ],
)
def test_first_sentence(text: str, sentence: str) -> None:
    assert first_sentence(text) == sentence


@pytest.mark.parametrize(
    "change", [str.upper, lambda text: re.sub("[aeiou]", "", text), lambda text: text[:9]]
)
def test_a_garbled_essay_is_wrong(change: Callable[[str], str]) -> None:
    assert not returns(Reply(change(essay()))).lenient


def test_the_task() -> None:
    [task] = tasks()
    assert task.grade(Reply(essay())).strict
    assert FACT in task.prompt
    assert "1,400 to 1,700 words" in task.prompt
    assert task.thinking
    assert task.settings == {"max_new_tokens": 6144}
