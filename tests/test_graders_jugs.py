"""Moves between jugs: simulated, in the written form or a wordy one."""

from __future__ import annotations

import pytest

from mlx_diffusiongemma.evaluation.graders.jugs import moves
from mlx_diffusiongemma.evaluation.graders.text import LENIENT_LIMIT
from mlx_diffusiongemma.evaluation.task import Reply

# 3 and 5 litres, both empty: 2 litres in A, at best with fill B, pour B A, empty A, pour B A
GRADE = moves({"A": 3, "B": 5}, {"A": 0, "B": 0}, {"A": 2}, most=4)
BEST = "fill B\npour B A\nempty A\npour B A"


@pytest.mark.parametrize(
    ("answer", "strict", "lenient", "reason"),
    [
        (BEST, True, True, ""),
        (f"\n{BEST}\n", True, True, ""),
        (BEST.replace("\n", "\r\n"), True, True, ""),
        (BEST.replace("\n", "\n\n"), False, True, "more than the moves"),
        (BEST.upper(), False, True, "more than the moves"),
        (BEST.replace("\n", ".\n"), False, True, "more than the moves"),
        (f"Moves:\n{BEST}", False, True, "more than the moves"),
        (f"Like this\n```\n{BEST}\n```", False, True, "more than the moves"),
        (
            "1. Fill jug B (A=0, B=5)\n2. Pour from jug B into jug A: A=3\n3. Empty A = 0\n4. Pour B -> A",
            False,
            True,
            "more than the moves",
        ),
        (
            "Step 1: fill B - A: 0, B: 5\n2. **pour B A**  (full)\n**3.** **empty A** → 0\npour B A – done",
            False,
            True,
            "more than the moves",
        ),
        (BEST.replace("\nempty", " - empty"), False, False, "'pour B A - empty A' is no move"),
        ("fill B\npour B→A\nempty A\npour B to A", False, True, "more than the moves"),
        ("fill B\npour B,A [full]\nempty A (now empty)\npour B A = 2", False, True, "more than the moves"),
        (BEST.replace("\nempty", ", empty"), False, False, "'pour B A, empty A' is no move"),
        (BEST.replace("\nempty", ": empty"), False, False, "'pour B A: empty A' is no move"),
        (BEST.replace("\nempty", " (note), empty"), False, False, "'pour B A (note), empty A' is no move"),
        ("fill B\npour B A\nempty A", False, False, "ends with {'A': 0, 'B': 2}"),
        (f"fill A\nempty A\n{BEST}", False, False, "6 moves, not 4"),
        (f"{BEST}\nfill B", False, False, "5 moves, not 4"),
        (f"{BEST}\nempty A", False, False, "ends with {'A': 0, 'B': 0}"),
        (BEST.replace("fill B", "fill A"), False, False, "ends with {'A': 0, 'B': 0}"),
        (BEST.replace("fill B", "fill C"), False, False, "'fill C': no such jugs"),
        (BEST.replace("pour B A", "pour B C", 1), False, False, "'pour B C': no such jugs"),
        (BEST.replace("pour B A", "pour C A", 1), False, False, "'pour C A': no such jugs"),
        (BEST.replace("pour B A", "pour B B", 1), False, False, "'pour B B': no such jugs"),
        (f"I {BEST}", False, False, "'I fill B' is no move"),
        (f"{BEST}\nDone", False, False, "'Done' is no move"),
        (BEST.replace("\n", "; "), False, False, None),
        ("fill 2 litres into A", False, False, None),
        ("4", False, False, "'4' is no move"),
        ("fill A\nfill A\nfill A", False, False, "ends with {'A': 3, 'B': 0}"),
        ("pour A B\npour A B", False, False, "ends with {'A': 0, 'B': 0}"),
        ("Moves:", False, False, "ends with {'A': 0, 'B': 0}"),
        ("", False, False, "empty"),
        ("fill A\n" * 1000, False, False, "ends with {'A': 3, 'B': 0}"),
        (BEST + " " * LENIENT_LIMIT + "x", False, False, f"{len(BEST) + LENIENT_LIMIT + 1} characters"),
    ],
)
def test_moves(answer: str, strict: bool, lenient: bool, reason: str | None) -> None:
    grade = GRADE(Reply(answer))
    assert (grade.strict, grade.lenient) == (strict, lenient), grade.reason
    assert grade.reason == reason if reason is not None else grade.reason
