"""Six tasks of six kinds: a function from its specification, strict JSON, Polish, recall from a long text,
rules that conflict, and exact arithmetic."""

from __future__ import annotations

import random

from mlx_diffusiongemma.evaluation.graders.code import executed
from mlx_diffusiongemma.evaluation.graders.json_text import document
from mlx_diffusiongemma.evaluation.graders.number import numbers
from mlx_diffusiongemma.evaluation.graders.text import choice, lines
from mlx_diffusiongemma.evaluation.task import Grader, Task

_SPECIFICATION = """\
Write a Python function `page_ranges(pages)`.

- `pages` is a list of integers in any order; a number may occur several times.
- Numbers below 1 are ignored. Every other number counts once.
- The result is a string: the page numbers in ascending order, in parts joined by a comma and one space.
- Three or more consecutive pages form one part: the first and the last of them with a hyphen between them,
  such as 4-7. The part is as long as possible.
- Any other page is a part of its own, such as 8; so two consecutive pages alone are two parts.
- When no page is left, the result is the empty string.

Reply with only the code: no explanation, no examples of use. One ``` code fence around the code is allowed.
"""
PAGE_RANGES: tuple[tuple[list[int], str], ...] = (
    ([], ""),
    ([0], ""),
    ([-3, -2, -1, 0], ""),
    ([1], "1"),
    ([7, 7, 7], "7"),
    ([1, 2], "1, 2"),
    ([1, 2, 3], "1-3"),
    ([3, 1, 2], "1-3"),
    ([0, 1, 2], "1, 2"),
    ([5, 4, 9, 6, 7, 12], "4-7, 9, 12"),
    ([1, 3, 5], "1, 3, 5"),
    ([10, 9, 8, 2, 1], "1, 2, 8-10"),
    ([1, 2, 2, 3, 3, 5, 6], "1-3, 5, 6"),
    ([99, 100, 101, 9, 10, 11], "9-11, 99-101"),
    (list(range(200, 0, -1)), "1-200"),
)

_ORDER = """\
Read this note and answer with one JSON object.

"Hello, this is Marta Lindqvist. I ordered a standing lamp, article 00417, on 3 March 2026; please send two
more of the same, so three altogether. One costs 89.50 euros. It is not a gift, so there is no need to wrap
anything. My street is now Quay Lane 12, not Mill Road 8 as in your records. I have no voucher. Last time you
could deliver in the morning or in the evening, and both suit me."

The object has exactly these keys:
- "customer": string, the customer's full name
- "article": string, the article number as it is written
- "quantity": integer, lamps altogether
- "unit_price": number, the price of one lamp in euros
- "ordered_on": string, the date of the first order as YYYY-MM-DD
- "gift": boolean
- "street": string, street and house number to deliver to
- "voucher": string, or null when there is none
- "delivery": array of strings, from "morning", "noon", "evening": those that suit, in this order

Reply with only the JSON object: no code fence, no other text.
"""
ORDER = {
    "customer": "Marta Lindqvist",
    "article": "00417",
    "quantity": 3,
    "unit_price": 89.5,
    "ordered_on": "2026-03-03",
    "gift": False,
    "street": "Quay Lane 12",
    "voucher": None,
    "delivery": ["morning", "evening"],
}

_POLISH = """\
Przepisz poniższe zdania. Wyrazy w nawiasach wstaw w poprawnej formie, bez nawiasów; pozostałych wyrazów, ich
kolejności i interpunkcji nie zmieniaj.

Nie mam dziś (wolny czas).
Przyglądam się (ten człowiek).
Idę do kina z (moja siostra).
Rozmawiamy o (wasze dzieci).
Na stole leży pięć (czerwone jabłko).
Widzę dwóch (mały chłopiec).
Wczoraj dziewczynki długo (śpiewać) w ogrodzie.
Mieszkamy w (nowy dom) nad rzeką.

Odpowiedz wyłącznie tymi ośmioma zdaniami, każde w osobnym wierszu, bez numerów i bez żadnego komentarza.
"""
POLISH = (
    "Nie mam dziś wolnego czasu.",
    "Przyglądam się temu człowiekowi.",
    "Idę do kina z moją siostrą.",
    "Rozmawiamy o waszych dzieciach.",
    "Na stole leży pięć czerwonych jabłek.",
    "Widzę dwóch małych chłopców.",
    "Wczoraj dziewczynki długo śpiewały w ogrodzie.",
    "Mieszkamy w nowym domu nad rzeką.",
)

_KEEPERS = (
    "Abara",
    "Bergman",
    "Castillo",
    "Dubois",
    "Eriksen",
    "Fontana",
    "Grady",
    "Hoshino",
    "Ivanov",
    "Jansen",
)
_NOISE = (
    "the lamp over gate {} was replaced",
    "scale {} was checked and was accurate",
    "forklift {} was charged",
    "the floor of aisle {} was swept",
    "a driver waited at ramp {}",
)
_QUESTION = """\
This is the log book of a warehouse. Entries are in the order of time; a later entry replaces an earlier one
about the same crate, pallet or hall. A crate moves with the pallet that it stands on.

{log}

At the end of the log, who keeps the hall in which crate K-417 is? Reply with only the surname.
"""


def log_book() -> list[str]:
    """240 entries: K-417 changes its pallet, that pallet its hall, and that hall its keeper."""
    source = random.Random(8)
    crates = [f"K-{number}" for number in source.sample(range(100, 1000), 40) if number != 417]
    pallets = [f"P-{number}" for number in source.sample(range(10, 100), 12)]
    entries = [f"hall {hall} is now kept by {keeper}" for hall, keeper in enumerate(_KEEPERS, 1)]
    entries += [f"pallet {pallet} was driven to hall {source.randint(1, 10)}" for pallet in pallets]
    mine, other = pallets[5], pallets[9]
    while len(entries) < 240:
        kind = source.choice(("crate", "crate", "crate", "pallet", "keeper", "noise", "noise"))
        if kind == "crate":
            entries.append(f"crate {source.choice(crates)} was put on pallet {source.choice(pallets)}")
        elif kind == "pallet":
            pallet = source.choice([pallet for pallet in pallets if pallet != mine])
            entries.append(f"pallet {pallet} was driven to hall {source.randint(1, 10)}")
        elif kind == "keeper":
            hall = source.choice([hall for hall in range(1, 11) if hall != 6])
            entries.append(f"hall {hall} is now kept by {source.choice(_KEEPERS)}")
        else:
            entries.append(source.choice(_NOISE).format(source.randint(1, 9)))
    # the chain and what it replaces, far from each other; two others end with more halls than Hoshino
    for at, entry in (
        (30, f"crate K-417 was put on pallet {other}"),
        (52, f"crate K-417 was put on pallet {mine}"),
        (75, f"pallet {mine} was driven to hall 2"),
        (98, "hall 6 is now kept by Fontana"),
        (110, "hall 2 is now kept by Hoshino"),
        (131, f"pallet {mine} was driven to hall 6"),
        (158, f"crate K-471 was put on pallet {other}"),
        (190, "hall 5 is now kept by Hoshino"),
        (195, "hall 4 is now kept by Jansen"),
        (204, "hall 6 is now kept by Hoshino"),
        (228, f"pallet {other} was driven to hall 3"),
        (231, "hall 1 is now kept by Fontana"),
    ):
        entries[at] = entry
    minutes = 6 * 60
    log = []
    for at, entry in enumerate(entries, 1):
        minutes += source.randint(1, 4)
        log.append(f"Entry {at:03}, {minutes // 60:02}:{minutes % 60:02}: {entry}.")
    return log


_RULES = """\
Arrange these seven words: olive, cherry, quince, fig, apricot, walnut, plum.

Rules:
1. The word that begins with C comes last.
2. A word that begins with a vowel is written in small letters.
3. The words are ordered from the longest to the shortest.
4. Words of the same length are in alphabetical order.
5. Every word is written in capital letters.
6. The words are written in one line, with a comma and one space between two words.
7. Every word stands in a line of its own.

Where two rules conflict, the one with the smaller number wins; apart from the conflict, the other one still
holds.
Reply with only the words in the form that the rules give.
"""
RULES = "apricot, QUINCE, WALNUT, olive, PLUM, FIG, CHERRY"

_SUMS = """\
Compute exactly:

a) 84739 * 6257
b) 9071365482 + 887649538 + 56903377
c) 3005017 - 12938456
d) 123456 * 7008 - 99999
e) 2 ** 40 + 3 ** 20

Reply with only the five results in this order, each on its own line, as plain digits with a minus sign where
one is needed: no letters, no separators, no other text.
"""
SUMS = (530211923, 10015918397, -9933439, 865079649, 1102998412177)


def tasks() -> list[Task]:
    return [
        _task(
            "code_from_spec",
            _SPECIFICATION,
            executed("page_ranges", [([p], r) for p, r in PAGE_RANGES]),
            True,
        ),
        _task("strict_json", _ORDER, document(ORDER)),
        _task("multilingual_pl", _POLISH, lines(POLISH)),
        _task(
            "long_context_recall", _QUESTION.format(log="\n".join(log_book())), choice("Hoshino", _KEEPERS)
        ),
        _task("constraint_conflict", _RULES, lines([RULES])),
        _task("exact_arithmetic", _SUMS, numbers(SUMS)),
    ]


def _task(name: str, prompt: str, grade: Grader, executes: bool = False) -> Task:
    return Task(name, prompt, grade, settings={"max_new_tokens": 4096}, executes=executes)
