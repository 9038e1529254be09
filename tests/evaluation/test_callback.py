"""callback: the fact at both ends, the length, the layout, and repetition."""

from __future__ import annotations

import random

import pytest

from mlx_diffusiongemma.evaluation.suites.callback import FACT, returns
from mlx_diffusiongemma.evaluation.task import Reply

TEXT = """the of and to a in is that it for water moon tide coast gravity bulge sailor harbour basin rhythm
motion orbit current depth slope bay river storm season level angle friction energy ocean channel island"""
OPENING = f"{FACT[0].upper()}{FACT[1:]}, and the tide hid them all twice a day."
CLOSING = "So when Ottoline Varga bent over her post and counted 4,817 mussels, she was reading a gauge."


def paragraph(words: int, seed: int) -> str:
    draw = random.Random(seed)
    return " ".join(draw.choice(TEXT.split()) for _ in range(words)) + "."


def essay(words: int = 1500, opening: str = OPENING, closing: str = CLOSING, middle: str = "") -> str:
    ends = f"{opening} {paragraph(120, 0)}", f"{paragraph(40, 1)} {closing}"
    rest = words - len(" ".join([*ends, middle]).split())
    filling = [paragraph(size, seed) for seed, size in enumerate([*[110] * (rest // 110), rest % 110], 2)]
    return "\n\n".join(part for part in (ends[0], *filling[:5], middle, *filling[5:], ends[1]) if part != ".")


@pytest.mark.parametrize(("answer", "reason"), [
    (essay(), ""), (f"\n\n {essay()} \n", ""), (essay(1400), ""), (essay(1700), ""),
    (essay(opening=f"It is odd but true: {FACT}!"), ""),
    (essay(opening=OPENING.replace("4,817", "**4817**").replace("harbour", "harbor")), ""),
    (essay(opening=OPENING.replace("post,", "post of Dr. T. St. Claire,")), ""),
    (essay(1399), "1399 words"), (essay(1701), "1701 words"),
    (f"How tides work\n\n{essay()}", "first sentence lacks the fact"),
    (f"How tides work\n{essay()}", "first sentence lacks the fact"),
    (essay(opening=f"Tides are strange. {OPENING}"), "first sentence lacks the fact"),
    (essay(opening=OPENING.replace("4,817", "14,817")), "first sentence lacks the fact"),
    (essay(opening=OPENING.replace("1893", "1983")), "first sentence lacks the fact"),
    (essay(opening=OPENING.replace("Varga", "Vargas")), "first sentence lacks the fact"),
    (essay(closing=CLOSING.replace("4,817", "thousands of")), "last paragraph lacks the fact"),
    (essay(closing=CLOSING.replace("Ottoline Varga", "she")), "last paragraph lacks the fact"),
    (f"{essay()}\n\nI hope this helps.", "last paragraph lacks the fact"),
    (essay().replace("\n\n", " "), "last paragraph lacks the fact"),
    (essay(middle="## The moon"), "more than paragraphs"),
    (essay(middle="**The moon**"), "more than paragraphs"),
    (essay(middle="- the moon\n- the sun"), "more than paragraphs"),
    (essay(middle="1. the moon\n2. the sun"), "more than paragraphs"),
    (essay(middle="so far<channel|>"), "more than paragraphs"),
    (essay(middle=f"{paragraph(40, 7)} " * 8), "repeats itself"),
    (essay(middle=f"{FACT} {paragraph(9, 8)} {FACT} {paragraph(9, 9)} {FACT}"), ""), ("", "empty"),
    ("\x00\ud800\n\n\n\n.", "first sentence lacks the fact"),
])  # fmt: skip
def test_returning(answer: str, reason: str) -> None:
    grade = returns(Reply(answer))
    assert grade.strict is grade.lenient is (not reason), grade.reason
    assert reason in grade.reason


def test_a_canvas_that_repeats_is_named() -> None:
    canvases = [paragraph(150, seed) for seed in range(3)]
    canvases[2] = canvases[0]
    grade = returns(Reply("\n\n".join(canvases), blocks=tuple(canvases)))
    assert [block["words"] for block in grade.details["blocks"]] == [150] * 3
    assert grade.details["blocks"][1]["repeated"] < 0.05
    assert grade.details["blocks"][2]["repeated"] > 0.9
    assert "block 3 repeats itself" in grade.reason
    assert returns(Reply(f"```\n{essay()}\n```")).lenient


@pytest.mark.parametrize("unit", ["\n", ":", "*", "- ", "**a", "1.\n", " \n", '."', "`"])
def test_long_nonsense_takes_no_time(unit: str) -> None:
    """Nothing is quadratic in the text. No clock is read, it would take minutes."""
    assert not returns(Reply(OPENING[:40] + unit * (90_000 // len(unit)))).lenient
