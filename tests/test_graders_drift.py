"""What is called drift in a long text, and what is not."""

from __future__ import annotations

import random
import re
from itertools import pairwise
from pathlib import Path

import pytest

from mlx_diffusiongemma.evaluation.graders.drift import Stretch, repeated_paragraphs, stretches, words
from mlx_diffusiongemma.evaluation.task import Reply

ENGLISH = """\
Twice a day the sea climbs the harbour wall and twice a day it goes away again, and anyone who has \
left a boat on the mud knows how quickly that can happen. The cause is the moon, though not in the \
way that most people picture it. Gravity grows weaker with distance, so the moon pulls hardest on \
the water that is nearest to it, a little less on the solid earth, and least on the water at the far \
side. What matters is the difference. Seen from the middle of the earth, the near ocean is drawn \
towards the moon and the far ocean is left behind, and so there are two bulges where one might have \
expected a single one. The sun does the same, with a bit less than half the strength, because it is \
so much farther away in spite of its mass. When both stand in line, at new and at full moon, their \
effects add up to what sailors call spring tides; a week later they work at right angles and the \
range is small. None of this explains why the Bay of Fundy rises by sixteen metres while Tahiti \
hardly notices. For that we need the shape of the coast. Water that is pushed to and fro in a basin \
has a rhythm of its own, like soup in a carried plate, and where that rhythm is close to the beat of \
the moon, each push arrives at the right moment and the swing becomes enormous."""

GERMAN = """\
Das Wasser steigt zweimal am Tag, und die Ursache ist der Mond, der nicht nur das Meer, sondern auch \
die Erde anzieht. Wenn Sonne und Mond in einer Linie stehen, sind die Gezeiten besonders stark, aber \
nach einer Woche wird der Unterschied wieder kleiner, und das Meer zieht sich nicht mehr so weit \
zurück."""
FRENCH = """\
La mer monte deux fois par jour et la cause est la lune, qui attire les eaux les plus proches avec \
une force plus grande que le reste de la terre. Quand le soleil et la lune sont dans la même \
direction, les marées sont les plus fortes, mais une semaine plus tard elles ne sont pas aussi \
hautes."""
POLISH = """\
Morze podnosi się dwa razy na dobę, a przyczyną jest Księżyc, który przyciąga wodę silniej tam, \
gdzie jest ona bliżej. Gdy Słońce i Księżyc stoją w jednej linii, pływy są największe, ale po \
tygodniu nie jest już tak samo i woda nie cofa się tak daleko jak przedtem."""
FINNISH = """\
Meri nousee kahdesti vuorokaudessa, koska Kuu vetää lähintä vettä voimakkaammin kuin muuta \
maapalloa. Kun Aurinko ja Kuu ovat samassa linjassa, vuorovesi kasvaa suurimmilleen, mutta viikkoa \
myöhemmin ero pienenee jälleen eikä ranta paljastu yhtä kauas kuin aikaisemmin."""
RUSSIAN = "Море поднимается дважды в сутки, потому что Луна притягивает воду сильнее."
CHINESE = "海水每天涨落两次,原因是月球的引力。"
GREEK = "Η θάλασσα ανεβαίνει δύο φορές την ημέρα."
GIBBERISH = """\
Mardel ontivo sarecu plint groveda menchora stulp variksen topulo dremit candora felish prusk ontera \
glimbo sardine whelk torvu maskedo plimt granti soldevo kurp tanzilo breft omnidra calspeth vorin"""

OPENING, REST = ENGLISH[:520], ENGLISH[520:]


def fault(text: str) -> str:
    return next((one.fault for one in stretches(Reply(text)) if one.fault), "")


def between(middle: str) -> str:
    return f"{OPENING} {middle} {REST}"


@pytest.mark.parametrize(
    "text",
    [
        ENGLISH,
        "",
        ENGLISH.upper(),
        between("(The Greek letters λ, μ and Δ stand for longitude, latitude and a difference.)"),
        between("Sailors of Le Havre and of Río de la Plata say la marée and el reflujo for it."),
        between("Aristotle is said to have wondered at the παλίρροια, the flowing back."),
        between("It rose and rose, day after day after day, and it is very, very, very old."),
        between("The readings were 3 3 3 3 3 3 3 3 3 3 3 3 3 that day."),
        between("That holds on the far side of the earth. On the far side of the earth it is night."),
        between("It had had its day, and that that is so is so."),
        between("The range was 3.1, 4.7, 2.8, 0.4, 5.5 and 1.9 metres, and that was in one year."),
    ],
)
def test_prose_does_not_drift(text: str) -> None:
    assert fault(text) == ""


@pytest.mark.parametrize(
    "text",
    [
        between(" ".join(["the moon pulls hardest on the water that is near"] * 5)),
        between(" ".join(["tide"] * 60)),
        between("and so on " * 25),
        f"{ENGLISH} {ENGLISH}",
        f"{ENGLISH} {ENGLISH.upper()}",
        between(OPENING),
    ],
)
def test_loops_are_seen(text: str) -> None:
    assert fault(text).startswith("repeats itself")


LINE = [f"w{at}" for at in range(15)]
SENTENCE = "The water on the far side is left behind, and so it stands higher there."  # 15 words


@pytest.mark.parametrize(
    ("text", "share"),
    [
        (" ".join([SENTENCE] * 2), 15),
        (" ".join([SENTENCE] * 3), 30),
        ("The sea rises twice daily. " * 4, 15),
        ("the sea always rises " * 3, 8),
        ("and so on " * 6, 15),
        ("The sun joins joins joins in in too too.", 1),
        ("The sun joins in too too too too.", 2),
        ("One two, three four, five six, seven eight, nine ten. " * 2, 10),
        ("one two three four five six seven eight nine " * 2, 0),
        ("one two three " * 5, 0),
        ("the sea always rises " * 2, 0),
        ("the tide the tide the tide the tide the tide", 0),
        ("the tide " * 6, 10),
        ("1 2 3 4 " * 6, 0),
        (" ".join([*LINE[:12], "between", *LINE[3:], *LINE]), 0),  # said before, but in two pieces
    ],
)
def test_what_is_said_twice_in_a_row(text: str, share: int) -> None:
    """Once more in words than it takes, and once less."""
    [one] = stretches(Reply(text))
    assert one.echoed * one.words == pytest.approx(share)
    [among_others] = stretches(Reply(f"{text} so much for that. {OPENING}"))
    assert bool(among_others.echoed) is bool(share)
    if 0 < share <= 10:
        assert among_others.fault.startswith("says the same twice in a row")


def test_a_loop_across_canvases_is_seen() -> None:
    canvases = (f"{OPENING} {SENTENCE} ", f"{SENTENCE} {REST}")
    first, second = stretches(Reply("".join(canvases), blocks=canvases))
    assert first.echoed == 0
    assert second.echoed * second.words == pytest.approx(15)


def test_english_documents_do_not_stutter() -> None:
    """The licence and this project's pages, without code, tables and addresses."""
    root = Path(__file__).parent.parent
    count = 0
    for path in (root / "LICENSE", root / "README.md", *sorted((root / "docs").glob("*.md"))):
        text = re.sub(
            r"```.*?```|`[^`]*`|^\|.*?$|\(http.*?\)", " - ", path.read_text("utf-8"), flags=re.S | re.M
        )
        found = stretches(Reply(text))
        count += sum(one.words for one in found)
        assert not any(one.echoed for one in found), path.name
    assert count > 4_000


@pytest.mark.parametrize(
    ("every", "foreign", "drifts"),
    [(15, 0, True), (10, 0, False), (2, 4, True), (2, 3, False)],
)
def test_the_limits_of_english(every: int, foreign: int, drifts: bool) -> None:
    """Two function words in a window are too few, three are not; four common foreign words are too many."""
    text = ["the" if at % every == 0 else f"w{at}" for at in range(150)]
    for at in range(foreign):
        text[61 + 6 * at] = "nicht"
    assert fault(" ".join(text)).startswith("leaves English") is drifts


@pytest.mark.parametrize(
    "text", [GERMAN, FRENCH, POLISH, FINNISH, RUSSIAN, CHINESE, GREEK, GIBBERISH, "ทะเลขึ้นวันละสองครั้ง"]
)
def test_other_languages_are_seen(text: str) -> None:
    assert fault(between(text)).startswith("leaves English")


def test_drift_is_found_in_its_canvas() -> None:
    canvases = (ENGLISH, GERMAN * 3, ENGLISH.swapcase())
    found = stretches(Reply("".join(canvases), blocks=canvases))
    assert [one.words for one in found] == [len(words(text)) for text in canvases]
    assert [one.fault.split(" ")[0] for one in found] == ["leaves", "repeats", "repeats"]
    assert found[0].foreign < 0.03  # the last words before the German
    assert found[1].foreign > 0.9
    assert found[2].repeated > 0.95


def test_of_equal_words_the_canvases_do_not_matter() -> None:
    """Also where they cut words."""
    text = f"{ENGLISH} {GERMAN}"
    cuts = [0, 600, 1203, len(text)]
    cut = tuple(text[start:end] for start, end in pairwise(cuts))
    assert text[cuts[1] - 1].isalpha()
    assert text[cuts[1]].isalpha()
    found = stretches(Reply(text, blocks=cut))
    assert sum(one.words for one in found) == len(words(text))
    assert all(one.repeated == 0 for one in found)
    assert found[-1].foreign > 0


def test_small_canvases_are_taken_together() -> None:
    pieces = tuple(ENGLISH[at : at + 60] for at in range(0, len(ENGLISH), 60))
    found = stretches(Reply(ENGLISH, blocks=("", *pieces, " ", "")))
    assert [one.words >= 100 for one in found] == [True, True]
    assert sum(one.words for one in found) == len(words(ENGLISH))


def test_without_canvases_there_are_pieces_of_190_words() -> None:
    one_word_each = " ".join(f"and{number}" for number in range(190 * 3 + 120))
    assert [one.words for one in stretches(Reply(one_word_each))] == [190, 190, 190, 120]
    assert [one.words for one in stretches(Reply(one_word_each, blocks=("", "")))] == [190, 190, 190, 120]


def test_shares() -> None:
    """Of 4-grams that end in it a stretch counts those said before; the first three words end none."""
    text = "a b c d e f g h " * 2
    assert stretches(Reply(text)) == [Stretch(16, 5 / 13, 0.0, 0.0)]
    assert stretches(Reply(text), granted="b c d e f") == [Stretch(16, 3 / 13, 0.0, 0.0)]
    [shown] = [one.shown() for one in stretches(Reply(text))]
    assert shown == {"words": 16, "repeated": 0.385, "echoed": 0.0, "foreign": 0.0}


def test_what_is_granted_may_be_said_again() -> None:
    fact = "in 1893 the harbour master counted 4,817 mussels on a single post of the old mooring"
    text = f"{ENGLISH[:560]} {fact}. {ENGLISH[560:1100]} {fact}, {fact}, and {fact}."
    assert fault(text)
    assert not any(one.fault for one in stretches(Reply(text), granted=fact.upper()))


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("", 0),
        ("One two three four five six seven eight.\n\nEight seven six five four three two one.", 0),
        ("One two three four five six seven eight.\n\nOne, two, three four five six seven EIGHT!", 1),
        ("One two three four five six seven eight.\n \t\nOne two three four five six seven eight.", 1),
        ("One two three four five six seven eight.\nOne two three four five six seven eight.", 0),
        ("\n\n".join(["One two three four five six seven eight."] * 7), 6),
        ("\n\n".join(["***", "One two three."] * 7), 0),
    ],
)
def test_paragraphs_said_again(text: str, count: int) -> None:
    assert repeated_paragraphs(text) == count


@pytest.mark.parametrize(
    "text",
    [
        "",
        " \n\n ",
        "\x00\x01",
        "\ud800 \udfff",
        "’'’",
        "x" * 300_000,
        "a " * 100_000,
        "海" * 50_000,
        "\n" * 100_000,
    ],
)
def test_nothing_raises(text: str) -> None:
    half = len(text) // 2
    for reply in (Reply(text), Reply(text, blocks=(text[:half], text[half:]))):
        for one in stretches(reply):
            assert 0 <= one.repeated <= 1
            assert 0 <= one.echoed <= 1
            assert 0 <= one.foreign <= 1
    assert repeated_paragraphs(text) == 0


def test_shuffled_words_stay_unseen() -> None:
    """The profile knows no grammar; this says so. Chance may put a word three times in a row: not here."""
    everything = ENGLISH.split()
    random.Random(1).shuffle(everything)
    assert fault(" ".join(everything)) == ""
