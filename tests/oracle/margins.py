"""Margins of a trace: its distances from decisions that rounding could change.

This package's logits differ from the reference's by rounding (about 1e-5), but ids, masks and stop steps of a
trace are compared exactly. So the exporter accepts only traces with these margins, and tests assert that the
committed traces have them.
"""

from __future__ import annotations

from typing import Any

import numpy as np

# Limits of the "shake": the largest difference between logits of the model and of a copy whose weights are
# off by one rounding. The first limit is for logits of forward cases, the second for processed logits of all
# steps of a generation. Random models are sometimes chaotic, and their traces would compare noise.
LARGEST_SHAKE = 6e-5
LARGEST_GENERATION_SHAKE = 3e-4

# Least margins. argmax: gap between the two largest processed logits. bound: |cumulative entropy -
# entropy_bound|, and the gap between the last accepted and the first rejected entropy. stop: |mean entropy -
# threshold| at steps that repeat the argmax. uniform: distance of a uniform number to the edges of its CDF.
# router: gap between the log-probabilities of the last chosen expert and the next expert.
REQUIRED = {"argmax": 1e-3, "bound": 2e-4, "stop": 2e-4, "uniform": 1e-5, "router": 5e-5}


def _bound_margin(entropies: np.ndarray, entropy_bound: float) -> float:
    ordered = np.sort(entropies.astype(np.float64), axis=-1)
    before = np.cumsum(ordered, axis=-1) - ordered
    distances = [np.abs(before - entropy_bound).min()]
    for row, sums in zip(
        ordered.reshape(-1, ordered.shape[-1]), before.reshape(-1, ordered.shape[-1]), strict=True
    ):
        accepted = int((sums <= entropy_bound).sum())
        if accepted < len(row):
            distances.append(row[accepted] - row[accepted - 1])
    return float(min(distances))


def _stop_margin(arrays: dict[str, np.ndarray], settings: dict[str, Any]) -> float:
    """Return the margin `stop`. If stability is required, only steps that repeat the last argmax count."""
    distance = np.abs(arrays["entropies"].mean(axis=-1) - settings["confidence_threshold"])  # [S, B]
    if settings["stability_threshold"] > 0:
        repeated = (arrays["argmax"][1:] == arrays["argmax"][:-1]).all(axis=-1)
        distance = distance[1:][repeated]
    return float(distance.min(initial=1.0))


def shake(arrays: dict[str, np.ndarray], others: dict[str, np.ndarray]) -> float:
    """Return the largest difference of processed logits of two runs. Infinite if their decisions differ."""
    for key in ("canvas", "draft", "accepted", "done"):
        if not np.array_equal(arrays[key], others[key]):
            return float("inf")
    return float(np.abs(arrays["processed"] - others["processed"]).max())


def measure(
    arrays: dict[str, np.ndarray], settings: dict[str, Any], uniform: float, router: float
) -> dict[str, float]:
    """Return the margins of a trace by name (see REQUIRED)."""
    top = np.sort(arrays["processed"], axis=-1)
    return {
        "argmax": float((top[..., -1] - top[..., -2]).min()),
        "bound": _bound_margin(arrays["entropies"], settings["entropy_bound"]),
        "stop": _stop_margin(arrays, settings),
        "uniform": uniform,
        "router": router,
    }


def complaints(margins: dict[str, float]) -> list[str]:
    """Return a message for each margin that is too small, and one if the shake is too large."""
    found = [
        f"{key} {margins[key]:.1e} < {least:.0e}" for key, least in REQUIRED.items() if margins[key] < least
    ]
    return found + ([f"shake {margins['shake']:.1e}"] if margins["shake"] > LARGEST_GENERATION_SHAKE else [])
