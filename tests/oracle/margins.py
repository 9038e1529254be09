"""How far a generation trace keeps from every decision that rounding could flip.

Our logits differ from the reference's by rounding (about 1e-5), and a trace is compared exactly on ids,
masks and stop steps. So the exporter only accepts draws whose trace keeps these distances, and the tests
assert that the committed traces still do.
"""

from __future__ import annotations

from typing import Any

import numpy as np

# How differently a copy of the model computes whose weights are off by one rounding, on the same draws:
# largest difference of logits (forward cases) and of processed logits through all steps of a generation.
# Random models are chaotic now and then, and such a trace would compare noise.
LARGEST_SHAKE = 6e-5
LARGEST_GENERATION_SHAKE = 3e-4

# argmax: gap of the two largest processed logits. bound: |cumulative entropy - entropy_bound|, and the gap
# between the last accepted entropy and the first rejected one. stop: |mean entropy - threshold| where the
# argmax is repeated. uniform: distance of a uniform to the edges of its CDF. router: log-probability gap
# between the last expert chosen and the next.
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
    """Only steps that repeat the last argmax can stop, unless no repetition is asked for."""
    distance = np.abs(arrays["entropies"].mean(axis=-1) - settings["confidence_threshold"])  # [S, B]
    if settings["stability_threshold"] > 0:
        repeated = (arrays["argmax"][1:] == arrays["argmax"][:-1]).all(axis=-1)
        distance = distance[1:][repeated]
    return float(distance.min(initial=1.0))


def shake(arrays: dict[str, np.ndarray], others: dict[str, np.ndarray]) -> float:
    """Largest difference of the processed logits of two runs; infinite when they took different decisions."""
    for key in ("canvas", "draft", "accepted", "done"):
        if not np.array_equal(arrays[key], others[key]):
            return float("inf")
    return float(np.abs(arrays["processed"] - others["processed"]).max())


def measure(
    arrays: dict[str, np.ndarray], settings: dict[str, Any], uniform: float, router: float
) -> dict[str, float]:
    """The distances that a trace keeps, by decision."""
    top = np.sort(arrays["processed"], axis=-1)
    return {
        "argmax": float((top[..., -1] - top[..., -2]).min()),
        "bound": _bound_margin(arrays["entropies"], settings["entropy_bound"]),
        "stop": _stop_margin(arrays, settings),
        "uniform": uniform,
        "router": router,
    }


def complaints(margins: dict[str, float]) -> list[str]:
    """The decisions whose margin is below what is required, and instability."""
    found = [
        f"{key} {margins[key]:.1e} < {least:.0e}" for key, least in REQUIRED.items() if margins[key] < least
    ]
    return found + ([f"shake {margins['shake']:.1e}"] if margins["shake"] > LARGEST_GENERATION_SHAKE else [])
