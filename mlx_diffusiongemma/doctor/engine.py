"""Whole generations of the bundled demo model, whose answers are known, in every way they can run here."""

from __future__ import annotations

import os
import statistics
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import mlx.core as mx

from ..checkpoint.loading import load
from ..console.tables import aligned
from ..engine.state import Step
from ..errors import DiffusionGemmaError
from ..generation import Generation, generate
from ..model import DiffusionGemma
from ..ops import metal, on_gpu
from ..text.tokenizer import Tokenizer
from .sheet import Sheet, foreign

_SWITCH, _COMPILE_SWITCH = "MLX_DG_KERNELS", "MLX_DISABLE_COMPILE"

_Demo = tuple[DiffusionGemma, Tokenizer]
_Way = Callable[[], AbstractContextManager[Any]]


@dataclass(frozen=True)
class _Known:
    """A prompt and its right answer, which the model gave with each of 20 seeds, in float32 and bfloat16."""

    prompt: str
    thinking: bool
    answer: str


_KNOWN = (
    _Known("What is 345 + 78?", True, "423"),
    _Known("Count to 12.", False, "1 2 3 4 5 6 7 8 9 10 11 12"),
    _Known(
        "JSON for Paris and Rome",
        False,
        '[{"city": "Paris", "country": "France"}, {"city": "Rome", "country": "Italy"}]',
    ),
)


def check(sheet: Sheet) -> None:
    model = load("demo")
    seconds: list[float] = []  # of every step, in order
    rows, answers, peak_gb = [], [], 0.0
    for known in _KNOWN:
        generation, steps = _run(model, known)
        peak_gb = max(peak_gb, generation.stats.peak_memory_gb)
        seconds += steps
        answers.append(generation.token_ids)
        right = generation.answer == known.answer
        rows.append((known.prompt, "as expected" if right else "WRONG", str(len(steps)), f"{sum(steps):.3f}"))
        if not right:
            sheet.problems.append(
                f"the demo model answers {foreign(ascii(generation.answer))[:120]} to {known.prompt!r}, "
                f"not {known.answer!r}; please report it with this text"
            )
    sheet.problems += [
        f"generations run without Metal kernel {name}, which fails its check: {foreign(why)}; please report "
        "it with this text"
        for name, why in metal.failures.items()
    ]
    sheet.lines += aligned([("prompt", "answer", "steps", "seconds"), *rows], left=2).splitlines()
    sheet.lines.append("")
    later = 1e3 * statistics.median(seconds[1:])
    sheet.facts(
        [
            ("first step", f"{1e3 * seconds[0]:.1f} ms, which on a GPU includes compilation"),
            ("later steps", f"{later:.1f} ms (median)"),
            ("dtype", str(model[0].dtype).rpartition(".")[2]),
            ("peak memory", f"{peak_gb:.3f} GB"),
            *(
                (what, _agreement(sheet, what, answers, model, *variants))
                for what, variants in _variants().items()
            ),
        ]
    )


def _variants() -> dict[str, tuple[_Way, str]]:
    """What is compared -> how to run the other way, and why that is not done here ("" where it is)."""
    available, reason = metal.available()
    kernels, other = ("without the kernels", "off") if metal.enabled() else ("with the kernels", "on")
    compiled = "" if on_gpu() else "nothing is compiled on the CPU"
    if _COMPILE_SWITCH in os.environ:
        compiled = f"{_COMPILE_SWITCH} is set"
    return {
        kernels: (lambda: patch.dict(os.environ, {_SWITCH: other}), "" if available else reason),
        "without mx.compile": (_uncompiled, compiled),
    }


def _agreement(
    sheet: Sheet, what: str, expected: list[list[int]], model: _Demo, way: _Way, why_not: str
) -> str:
    if why_not:
        return f"not checked: {why_not}"
    try:
        with way():
            found = [_run(model, known)[0].token_ids for known in _KNOWN]
    except DiffusionGemmaError as error:  # of kernels that are to be on, and fail their check
        sheet.problems.append(foreign(str(error)))
        return "failed, see below"
    others = sum(ours != theirs for ours, theirs in zip(found, expected, strict=True))
    if not others:
        return "same tokens"
    sheet.problems.append(
        f"{what}, the demo model gives other tokens for {others} of {len(_KNOWN)} prompts; "
        "please report it with this text"
    )
    return f"other tokens for {others} of {len(_KNOWN)} prompts"


def _run(model: _Demo, known: _Known) -> tuple[Generation, list[float]]:
    """The finished generation and the seconds of its steps."""
    steps: list[Step] = []
    generation = generate(
        model[0], model[1], known.prompt, thinking=known.thinking, seed=0, on_step=steps.append
    )
    str(generation)
    ends = [0.0, *(step.seconds for step in steps)]
    # A canvas's clock starts at 0.
    return generation, [
        end - (before if step.index else 0) for before, end, step in zip(ends, ends[1:], steps, strict=False)
    ]


@contextmanager
def _uncompiled() -> Iterator[None]:
    mx.disable_compile()
    try:
        yield
    finally:
        mx.enable_compile()
