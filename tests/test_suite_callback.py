"""callback: the fact at both ends, the length, and drift in between."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from itertools import pairwise

import pytest

from mlx_diffusiongemma.evaluation.suites.callback import FACT, begins, recalls, returns, sentences, tasks
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


REMARK = "I hope this explanation helps; let me know if you have further questions."
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
        (f"How tides work\n\n{essay()}", False, True, "first sentence lacks the fact"),
        (f"# How tides work\n\n{essay()}", False, True, "a title, a heading or a fence"),
        (f"**How tides work**\n\n{essay()}", False, True, "a title, a heading or a fence"),
        (f"How tides work: {essay()}", False, True, "a title, a heading or a fence"),
        (f"How tides work\n{essay()}", False, True, "a title, a heading or a fence"),
        (f"```\n{essay()}\n```", False, True, "a title, a heading or a fence"),
        (f"Here it is:\n\n~~~text\n{essay()}\n~~~", False, True, "a title, a heading or a fence"),
        (essay(opening=f"{OPENING} Her note read: One post, one morning."), True, True, ""),
        (essay(middle="## The moon"), False, True, "a title, a heading or a fence"),
        (essay(middle="__The moon__"), False, True, "a title, a heading or a fence"),
        (essay(middle="* * *"), False, True, "a title, a heading or a fence"),
        (essay(middle="**The moon** pulls, and **the sea** follows."), True, True, ""),
        (
            essay(middle="1893 was a year of two storms, - as the log says - and of *much* ice."),
            True,
            True,
            "",
        ),
        (essay(middle="- the moon\n- the sun"), False, False, "a list, a table or a marker"),
        (essay(middle="Two bodies:\n * the moon\n * the sun"), False, False, "a list, a table or a marker"),
        (essay(middle="1. the moon\n2. the sun"), False, False, "a list, a table or a marker"),
        (essay(middle="| moon | sun |\n|---|---|"), False, False, "a list, a table or a marker"),
        (essay(middle="<|channel>thought"), False, False, "a list, a table or a marker"),
        (essay(middle="so far<channel|>"), False, False, "a list, a table or a marker"),
        (f"{essay()}\n\n{REMARK}", False, True, "last paragraph lacks the fact"),
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
        (
            essay(middle=f"{OTHER} Wenn er mit der Sonne in einer Linie steht, ist es am höchsten."),
            False,
            False,
            "leaves English",
        ),
        (essay(middle=f"{paragraph(12, 7)[:-1]} " * 6), False, False, "repeats itself"),
        (essay(middle=f"{paragraph(12, 7)} " * 2), False, False, "says the same twice in a row"),
        (
            essay(middle="\n\n".join(paragraph(12, seed) for seed in (97, 98, 97))),
            False,
            False,
            "1 paragraphs said again",
        ),
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
    assert {name for one in grade.details["blocks"] for name in one} == {
        "words",
        "repeated",
        "echoed",
        "foreign",
    }


def test_the_demanded_repetition_is_no_drift() -> None:
    """Also where the last canvas says little else."""
    text = essay(closing=CLOSING.replace("her post", f"her post, {FACT}, {FACT}, {FACT}, {FACT},"))
    cut = text.rindex("So when") - 400
    canvases = (*(text[at : min(at + 1200, cut)] for at in range(0, cut, 1200)), text[cut:])
    assert "".join(canvases) == text
    assert returns(Reply(text, blocks=canvases)).strict


@pytest.mark.parametrize(
    ("changes", "right"),
    [
        ({}, True),
        ({"harbour master": "harbor master"}, True),
        ({"harbour master": "harbourmaster"}, True),
        ({"in 1893": "on a May morning in **1893**,"}, True),
        ({"in 1893": "On 4 May 1893"}, True),
        ({"4,817": "no fewer than 4,817"}, True),
        ({"4,817": "4817 blue-black"}, True),
        ({"4,817": "4,817 small blue"}, True),
        ({"4,817": "4,817 small blue common"}, False),
        ({"4,817": "4\u202f817"}, True),
        ({"Ottoline Varga": "Ottoline Varga, who was not a patient woman,"}, True),
        ({"1893": "4,817", "4,817": "1893"}, False),
        ({"4,817": "1893", "in 1893": "at 4,817 feet"}, False),
        ({"mussels": "barnacles among the mussels"}, False),
        ({"mussels": "barnacles and mussels"}, False),
        ({"mussels": "shells, not mussels"}, False),
        ({"mussels": "musselshells"}, False),
        ({"harbour master": "baker who was not"}, False),
        ({"the harbour master ": ""}, False),
        ({" on a single mooring post": ""}, False),
        ({"mooring post": "post"}, False),
        ({"in 1893 ": ""}, False),
        ({"in 1893": "in 1983"}, False),
        ({"in 1893": "in 1893, or rather in 1894,"}, False),
        ({"in 1893": "with 1893 others"}, False),
        ({"in 1893": "not in 1893 but later"}, False),
        ({"counted": "never counted"}, False),
        ({"counted": "didn't count"}, False),
        ({"4,817": "more than 4,817"}, False),
        ({"4,817": "nearly 4,817"}, False),
        ({"4,817": "14,817"}, False),
        ({"Ottoline Varga": "Ottoline Vargas"}, False),
    ],
)
def test_the_fact_in_the_first_sentence(changes: dict[str, str], right: bool) -> None:
    assert all(old in FACT for old in changes)
    olds = "|".join(map(re.escape, changes)) or r"\Z"
    changed = re.sub(olds, lambda found: changes.get(found[0], ""), FACT)
    assert begins(f"{changed}. And so on.") is right
    assert not begins(f"So it was. {changed}.")


@pytest.mark.parametrize(
    ("paragraph", "right"),
    [
        (CLOSING, True),
        ("Ottoline Varga's 4,817 mussels knew.", True),
        ("Ottoline Varga knew no physics. Her 4,817 little mussels did, and not only in 1893.", True),
        ("When Ottoline Varga counted 4,817 mussels, she was not just counting. In 1969 men landed.", True),
        ("Ottoline Varga was not merely counting when she wrote down 4,817 mussels.", True),
        ("Ottoline Varga counted 3,200 crabs (not 4,817 mussels).", False),
        ("Ottoline Varga counted fewer than 4,817 mussels.", False),
        ("In 1983 Ottoline Varga counted 4,817 mussels.", False),
        ("Ottoline Varga was here. In 1983 she counted 4,817 mussels.", False),
        ("Ottoline Varga counted her mussels over 4,817 tides.", False),
        ("Somebody other than Ottoline Varga counted 4,817 mussels.", False),
        ("Varga counted 4,817 mussels.", False),
        ("Ottoline Varga counted mussels.", False),
    ],
)
def test_the_fact_at_the_end(paragraph: str, right: bool) -> None:
    assert recalls(paragraph) is right


@pytest.mark.parametrize(("extra", "right"), [(25, True), (26, False)])
def test_title_and_remark_are_short(extra: int, right: bool) -> None:
    around = paragraph(extra, 99)
    for text in (f"{around}\n\n{essay()}", f"{essay()}\n\n{around}"):
        grade = returns(Reply(text))
        assert grade.lenient is right
        assert not grade.strict


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("One two. Three.", ["One two.", "Three."]),
        ("One (two). Three", ["One (two).", "Three"]),
        ("“One two!” Three.", ["“One two!”", "Three."]),
        (
            "Mr. B. Two of St. Ives, e.g. here, has 3.5. Three.",
            ["Mr. B. Two of St. Ives, e.g. here, has 3.5.", "Three."],
        ),
        ("Of 1893. Three.", ["Of 1893.", "Three."]),
        ("no end", ["no end"]),
        ("", []),
    ],
)
def test_sentences(text: str, found: list[str]) -> None:
    assert list(sentences(text)) == found


@pytest.mark.parametrize(
    "unit", ["\n", ":", "*", "- ", "**a", "not the ", "4,817 ", "1.\n", " \n", "mussels ", '."']
)
def test_long_nonsense_takes_no_time(unit: str) -> None:
    """Nothing here is quadratic in its text; no clock is read, it would take minutes."""
    grade = returns(Reply(OPENING[:40] + unit * 50_000))
    assert not grade.lenient


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
