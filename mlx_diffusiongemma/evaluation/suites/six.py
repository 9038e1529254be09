"""The suite six: six tasks of six kinds.

They are code from a specification, strict JSON, Polish, recall from a long text, rules that conflict, and
sums.
"""

from __future__ import annotations

import random

from ..graders.code import executed
from ..graders.json_text import document
from ..graders.text import lines
from ..task import Task
from . import texts

PAGE_RANGES: tuple[tuple[list[int], str], ...] = (
    ([], ""), ([0], ""), ([-3, -2, -1, 0], ""), ([1], "1"), ([7, 7, 7], "7"), ([1, 2], "1, 2"),
    ([1, 2, 3], "1-3"), ([3, 1, 2], "1-3"), ([0, 1, 2], "1, 2"), ([5, 4, 9, 6, 7, 12], "4-7, 9, 12"),
    ([1, 3, 5], "1, 3, 5"), ([10, 9, 8, 2, 1], "1, 2, 8-10"), ([1, 2, 2, 3, 3, 5, 6], "1-3, 5, 6"),
    ([99, 100, 101, 9, 10, 11], "9-11, 99-101"), (list(range(200, 0, -1)), "1-200"),
)  # fmt: skip
ORDER = {
    "customer": "Marta Lindqvist", "article": "00417", "quantity": 3, "unit_price": 89.5,
    "ordered_on": "2026-03-03", "gift": False, "street": "Quay Lane 12", "voucher": None,
    "delivery": ["morning", "evening"],
}  # fmt: skip
_KEEPERS = (
    "Abara", "Bergman", "Castillo", "Dubois", "Eriksen", "Fontana", "Grady", "Hoshino", "Ivanov", "Jansen",
)  # fmt: skip
_NOISE = (
    "the lamp over gate {} was replaced", "scale {} was checked and was accurate",
    "forklift {} was charged", "the floor of aisle {} was swept", "a driver waited at ramp {}",
)  # fmt: skip


def log_book() -> list[str]:
    """Return 240 entries: crate K-417 changes its pallet, this pallet its hall, and this hall its keeper."""
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
    # Entries about K-417, far from those that they replace. Two keepers get more halls than Hoshino.
    for line in texts("six")["chain"].replace("MINE", mine).replace("OTHER", other).splitlines():
        place, _, entry = line.partition(" ")
        entries[int(place)] = entry
    minutes = 6 * 60
    log = []
    for at, entry in enumerate(entries, 1):
        minutes += source.randint(1, 4)
        log.append(f"Entry {at:03}, {minutes // 60:02}:{minutes % 60:02}: {entry}.")
    return log


RULES = "apricot, QUINCE, WALNUT, olive, PLUM, FIG, CHERRY"


def tasks() -> list[Task]:
    prompts = texts("six", log="\n".join(log_book()) + "\n")
    graders = {
        "code_from_spec": executed("page_ranges", [([pages], right) for pages, right in PAGE_RANGES]),
        "strict_json": document(ORDER),
        "multilingual_pl": lines(*prompts["polish"].splitlines()),
        "long_context_recall": lines("Hoshino"),
        "constraint_conflict": lines(RULES),
        "exact_arithmetic": lines(*prompts["sums"].splitlines()),
    }
    return [
        Task(name, prompts[name], grade, settings={"max_new_tokens": 4096}, executes=name == "code_from_spec")
        for name, grade in graders.items()
    ]
