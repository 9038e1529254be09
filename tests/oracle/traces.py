"""Cases of the committed traces, and the format of their arrays in `data/NAME.npz`.

A forward case has three blocks after a prompt. For each block it decodes two canvases: the first without
self-conditioning, the second self-conditioned on the processed logits of the first. After each block the ids
`committed` are encoded. A generation case records all draws and decisions of the reference's own `generate`.

Shapes: B batch, L prompt length, C canvas length, V vocabulary, K blocks, S steps of all blocks in order.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

DATA = Path(__file__).parent / "data"
SELF_CONDITIONING_TEMPERATURE = 0.8  # forward cases: processed logits = logits / 0.8, as on the first step


@dataclass(frozen=True)
class ForwardCase:
    model: str
    length: int
    batch: int = 1

    @property
    def name(self) -> str:
        return f"forward-{self.model}-b{self.batch}-l{self.length}"


@dataclass(frozen=True)
class GenerationCase:
    """A generation to trace. stop_in_block: block in which row 0 has the stop id, chosen by the exporter."""

    model: str
    label: str
    length: int
    batch: int = 1
    stop_in_block: int | None = None
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return f"generate-{self.model}-{self.label}"


FORWARD_CASES = tuple(
    [ForwardCase("rough", length) for length in (1, 5, 15, 16, 17, 24, 33, 50, 300)]
    + [ForwardCase("rough", length, batch=3) for length in (12, 40)]
    + [ForwardCase("sharp", 37)]
)


def _settings(**changes: Any) -> dict[str, Any]:
    base = {"max_denoising_steps": 24, "t_min": 0.4, "t_max": 0.8, "entropy_bound": 0.1}
    return base | {"stability_threshold": 1, "confidence_threshold": 0.05, "max_new_tokens": 16} | changes


TINY_GENERATION_CASES = (
    GenerationCase("rough", "cap", 21, settings=_settings(max_denoising_steps=6, max_new_tokens=32)),
    GenerationCase("rough", "loose-bound", 7, settings=_settings(max_denoising_steps=5, entropy_bound=4.0)),
    GenerationCase("rough", "one-step", 40, settings=_settings(max_denoising_steps=1, max_new_tokens=32)),
    GenerationCase("sharp", "stable1", 20, settings=_settings(confidence_threshold=0.02, max_new_tokens=40)),
    GenerationCase(
        "sharp", "stable0", 5, settings=_settings(stability_threshold=0, confidence_threshold=0.008)
    ),
    GenerationCase("sharp", "stable3", 41, settings=_settings(stability_threshold=3, max_new_tokens=32)),
    GenerationCase("sharp", "stop-id", 30, stop_in_block=1, settings=_settings(max_new_tokens=64)),
    GenerationCase("sharp", "batch", 18, batch=3, stop_in_block=0, settings=_settings(max_new_tokens=32)),
)


@dataclass
class Trace:
    """One stored case. `meta` has the case, its settings, its margins and the fingerprint of its weights."""

    name: str
    meta: dict[str, Any]
    arrays: dict[str, np.ndarray]

    def __getitem__(self, key: str) -> np.ndarray:
        return self.arrays[key]

    def blocks(self) -> list[slice]:
        """Return the steps of each block, as slices of the axis S."""
        ends = np.cumsum(self.arrays["steps_per_block"]).tolist()
        return [slice(start, end) for start, end in zip([0, *ends[:-1]], ends, strict=True)]

    def save(self, directory: Path = DATA) -> Path:
        directory.mkdir(parents=True, exist_ok=True)
        path = directory / f"{self.name}.npz"
        meta = np.frombuffer(json.dumps(self.meta, sort_keys=True).encode(), dtype=np.uint8)
        np.savez_compressed(path, meta=meta, **self.arrays)
        return path


def load(name: str, directory: Path = DATA) -> Trace:
    with np.load(directory / f"{name}.npz") as stored:
        arrays = {key: stored[key] for key in stored.files}
    return Trace(name, json.loads(arrays.pop("meta").tobytes()), arrays)


def names(prefix: str = "") -> list[str]:
    """Return the sorted names of all committed traces that start with `prefix`."""
    return sorted(path.stem for path in DATA.glob(f"{prefix}*.npz"))
