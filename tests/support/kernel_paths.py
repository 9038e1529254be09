"""Runs the package's Metal kernels in tests: on Metal where there is one, otherwise on the emulator."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import mlx.core as mx
import pytest
from emulator import Emulation, emulate

from mlx_diffusiongemma.engine.state import Step
from mlx_diffusiongemma.generation import generate
from mlx_diffusiongemma.ops import metal, self_check

ON_METAL = mx.metal.is_available()
ON_EMULATOR = [
    pytest.mark.slow,
    pytest.mark.skipif(ON_METAL, reason="for the emulator; runs on machines without Metal"),
]


def watched(demo: Any, prompt: str, **settings: Any) -> tuple[str, list[Step]]:
    """Generate with seed 1. Return thought and answer as one text, and the steps."""
    steps: list[Step] = []
    generation = generate(*demo, prompt, seed=1, on_step=steps.append, **settings)
    return f"{generation.thought} / {generation.answer}", steps


def plug_in_emulator(
    monkeypatch: pytest.MonkeyPatch,
    schedule_seed: int = 0,
    edits: Mapping[str, Callable[[str], str]] | None = None,
) -> list[Emulation]:
    """Run every kernel launch on the emulator from now on. Return a list to which launches will be added.

    Results of earlier self-checks are forgotten, as on a new machine. edits: by kernel name, a function that
    changes the generated source, to plant a defect.
    """
    monkeypatch.setattr(metal, "failures", {})
    monkeypatch.setattr(self_check, "_passed", set())
    launches: list[Emulation] = []
    launch_on_metal = metal.Kernel.__call__

    def launch(kernel: metal.Kernel, inputs: Sequence[mx.array], **how: Any) -> list[mx.array]:
        def real_call(*arrays: mx.array) -> list[mx.array]:
            return launch_on_metal(kernel, arrays, **how)

        # MLX copies strided inputs before a launch. Here the copy must happen before the tracing.
        contiguous = [mx.contiguous(array) for array in inputs]
        edit = (edits or {}).get(kernel.name)
        try:
            launches.append(emulate(real_call, *contiguous, schedule_seed=schedule_seed, edit=edit))
        except AssertionError as error:  # from the emulator, so not a failure of the test itself
            raise RuntimeError(str(error)) from error
        return launches[-1].outputs

    monkeypatch.setattr(metal.Kernel, "__call__", launch)
    monkeypatch.setattr(metal, "available", lambda: (True, ""))
    return launches
