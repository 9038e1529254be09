"""Runs this package's engine on the canvases, draws and settings of a committed trace."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from mlx_diffusiongemma.checkpoint.loading import load_model
from mlx_diffusiongemma.config.generation import PREFILL_STEP_SIZE
from mlx_diffusiongemma.engine.denoise import DenoisedCanvas, denoise
from mlx_diffusiongemma.engine.settings import Settings
from mlx_diffusiongemma.engine.state import Step

from . import demo, tiny
from .traces import SELF_CONDITIONING_TEMPERATURE, Trace


def load_traced(name: str, scratch: Path, dialect: str = "transformers", **changes: Any) -> Any:
    """Load the model that a trace calls `name` ("rough", "sharp" or "demo"), in fp32."""
    if name == "demo":
        return load_model(demo.DIRECTORY, dtype=mx.float32)
    directory = scratch / f"{name}-{dialect}"
    return load_model(tiny.build(tiny.SPECS[name], directory, dialect, **changes), dtype=mx.float32)


def difference(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Return the largest absolute difference. Assert equal shapes and no NaN."""
    assert ours.shape == theirs.shape
    largest = float(np.abs(ours.astype(np.float64) - theirs).max())
    assert not np.isnan(largest)
    return largest


def ids(array: np.ndarray) -> mx.array:
    return mx.array(array.astype(np.int32))


def encode(model: Any, array: np.ndarray, cache: Any, chunk_size: int = PREFILL_STEP_SIZE) -> None:
    model.encode(ids(array), cache, chunk_size)


def forward_logits(
    model: Any, trace: Trace, chunk_size: int = PREFILL_STEP_SIZE, pieces: Sequence[int] = ()
) -> np.ndarray:
    """Return this package's logits [K, 2, B, C, V] of a forward case.

    pieces: lengths of the pieces in which the prompt is encoded, without the last piece.
    """
    cache, out = model.make_cache(), []
    for piece in np.split(trace["prompt"], np.cumsum(pieces, dtype=int), axis=1):
        encode(model, piece, cache, chunk_size)
    for canvases, committed in zip(trace["canvases"], trace["committed"], strict=True):
        first = model.decode(ids(canvases[0]), cache)
        soft = model.dense_soft_embedding(first / SELF_CONDITIONING_TEMPERATURE)
        second = model.decode(ids(canvases[1]), cache, soft)
        out.append(np.stack([np.array(first), np.array(second)]))
        encode(model, committed, cache, chunk_size)
    return np.stack(out)


def settings_of(trace: Trace) -> Settings:
    return Settings().override(**overrides(trace))


def overrides(trace: Trace) -> dict[str, Any]:
    """Return the trace's settings as keywords of `generate`. Without stop ids, add one that never occurs."""
    settings = {key: value for key, value in trace.meta["settings"].items() if value is not None}
    settings.pop("pad_token_id", None)  # the reference pads after a stop, `generate` cuts there
    return {"eos_token_id": [2**31 - 1]} | settings


class RecordedDraws:
    """The draws of one block of a trace, for `denoise`. A step that the reference did not take fails."""

    def __init__(self, trace: Trace, block: int):
        steps = trace.blocks()[block]
        self._initial = trace["initial"][block]
        self.uniforms, self.noise = trace["uniforms"][steps], trace["noise"][steps]

    def initial(self) -> mx.array:
        return ids(self._initial)

    def step(self, index: int) -> tuple[mx.array, mx.array]:
        if index >= len(self.uniforms):
            raise AssertionError(
                f"step {index} was asked for, but the reference stopped after {len(self.uniforms)}"
            )
        return mx.array(self.uniforms[index]), ids(self.noise[index])


@dataclass
class ReplayedBlock:
    canvas: DenoisedCanvas
    steps: list[Step]

    def stacked(self, name: str) -> np.ndarray:
        return np.stack([getattr(step, name) for step in self.steps])


def denoise_all(model: Any, trace: Trace) -> list[ReplayedBlock]:
    """Denoise every block of a trace with its recorded draws.

    After each block, the ids that the reference appended are encoded. A finished row has padding in them.
    """
    cache, out = model.make_cache(), []
    encode(model, trace["prompt"], cache)
    for block in range(len(trace["initial"])):
        steps: list[Step] = []
        draws = RecordedDraws(trace, block)
        canvas = denoise(model, cache, settings_of(trace), draws, on_step=steps.append, keep_logits=True)
        out.append(ReplayedBlock(canvas, steps))
        encode(model, trace["appended"][block], cache)
    return out


def expected_ids(trace: Trace) -> tuple[list[int], str]:
    """Return row 0's new ids as `generate` returns them, and the finish reason.

    The reference's ids fill whole canvases, with padding after a stop id, and may exceed max_new_tokens.
    """
    settings = trace.meta["settings"]
    new = trace["sequences"][0, trace["prompt"].shape[1] :].tolist()[: settings["max_new_tokens"]]
    stops = [position for position, token in enumerate(new) if token in (settings["eos_token_id"] or ())]
    return (new[: stops[0] + 1], "stop") if stops else (new, "length")


def processed_logits(model: Any, trace: Trace) -> np.ndarray:
    """Return this package's processed logits [S, B, C, V]. Every step gets the reference's inputs.

    These are its canvas and its last logits, or this package's logits if the trace does not store whole
    logits. As in the reference, a row that is done keeps the logits that it is conditioned on.
    """
    cache, out = model.make_cache(), []
    encode(model, trace["prompt"], cache)
    for block, steps in enumerate(trace.blocks()):
        canvas, soft, kept = trace["initial"][block], None, None
        for index in range(steps.start, steps.stop):
            logits = model.decode(ids(canvas), cache, soft) / float(trace["temperature"][index])
            out.append(np.array(logits))
            if "processed" in trace.arrays:
                logits = mx.array(trace["processed"][index])
            if kept is not None:
                logits = mx.where(mx.array(trace["done"][index - 1])[:, None, None], kept, logits)
            kept, soft, canvas = logits, model.dense_soft_embedding(logits), trace["canvas"][index]
        encode(model, trace["appended"][block], cache)
    return np.stack(out)
