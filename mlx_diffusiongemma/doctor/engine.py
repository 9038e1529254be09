"""Checks the demo model's generations against known answers, with and without kernels and mx.compile."""

from __future__ import annotations

import os
import statistics
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, NamedTuple
from unittest.mock import patch

import mlx.core as mx

from ..checkpoint.loading import load
from ..console.tables import aligned
from ..engine.state import Step
from ..generation import Generation, generate
from ..model import DiffusionGemma
from ..ops import metal, on_gpu
from ..text.tokenizer import Tokenizer
from .sheet import Sheet

_Demo = tuple[DiffusionGemma, Tokenizer]
_Way = Callable[[], AbstractContextManager[Any]]


class Known(NamedTuple):
    """A prompt and its right answer, which the model gives with each of 20 seeds in float32 and bfloat16."""

    prompt: str
    thinking: bool
    answer: str


KNOWN = (
    Known("What is 345 + 78?", True, "423"),
    Known("Count to 12.", False, "1 2 3 4 5 6 7 8 9 10 11 12"),
    Known(
        "JSON for Paris and Rome",
        False,
        '[{"city": "Paris", "country": "France"}, {"city": "Rome", "country": "Italy"}]',
    ),
)


def check(sheet: Sheet) -> None:
    model = load("demo")
    seconds: list[float] = []  # of every step, in order
    rows, answers, peak_gb = [], [], 0.0
    for known in KNOWN:
        generation, steps = _run(model, known)
        peak_gb = max(peak_gb, generation.stats.peak_memory_gb)
        seconds += steps
        answers.append(generation.token_ids)
        right = generation.answer == known.answer
        rows.append((known.prompt, "as expected" if right else "WRONG", str(len(steps)), f"{sum(steps):.3f}"))
        if not right:
            sheet.problems.append(
                f"the demo model answers {ascii(generation.answer)[:120]} to {known.prompt!r}, "
                f"not {known.answer!r}; please report it with this text"
            )
    sheet.problems += [
        f"generations run without Metal kernel {name}, which fails its check; please report it with this text"
        for name in metal.failures
    ]
    sheet.lines += [*aligned([("prompt", "answer", "steps", "seconds"), *rows], left=2).splitlines(), ""]
    sheet.facts(
        [
            ("first step", f"{1e3 * seconds[0]:.1f} ms, which on a GPU includes compilation"),
            ("later steps", f"{1e3 * statistics.median(seconds[1:]):.1f} ms (median)"),
            ("dtype", str(model[0].dtype).rpartition(".")[2]),
            ("peak memory", f"{peak_gb:.3f} GB"),
            *((name, _agreement(sheet, name, answers, model, *way)) for name, way in _ways().items()),
        ]
    )


def _ways() -> dict[str, tuple[_Way, str]]:
    """Return other ways to run, by name: a context for it, and the reason why it cannot be checked or ""."""
    available, reason = metal.available()
    kernels, other = ("without the kernels", "off") if metal.enabled() else ("with the kernels", "on")
    compiled = "" if on_gpu() else "nothing is compiled on the CPU"
    if "MLX_DISABLE_COMPILE" in os.environ:
        compiled = "MLX_DISABLE_COMPILE is set"
    return {
        kernels: (lambda: patch.dict(os.environ, {"MLX_DG_KERNELS": other}), "" if available else reason),
        "without mx.compile": (_uncompiled, compiled),
    }


def _agreement(
    sheet: Sheet, name: str, expected: list[list[int]], model: _Demo, way: _Way, why_not: str
) -> str:
    if why_not:
        return f"not checked: {why_not}"
    try:
        with way():
            ids = [_run(model, known)[0].token_ids for known in KNOWN]
    except Exception as error:  # a kernel that is switched on and fails its check
        sheet.failed(f"the demo model {name}", error)
        return "failed, see below"
    others = sum(ours != theirs for ours, theirs in zip(ids, expected, strict=True))
    if not others:
        return "same tokens"
    sheet.problems.append(
        f"{name}, the demo model gives other tokens for {others} of {len(KNOWN)} prompts; "
        "please report it with this text"
    )
    return f"other tokens for {others} of {len(KNOWN)} prompts"


def _run(model: _Demo, known: Known) -> tuple[Generation, list[float]]:
    """Run a known prompt. Return the finished generation and the seconds of each of its steps."""
    steps: list[Step] = []
    generation = generate(*model, known.prompt, thinking=known.thinking, seed=0, on_step=steps.append)
    str(generation)
    ends = [0.0, *(step.seconds for step in steps)]
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
