"""Ranges of settings and arguments, and functions that check them."""

from __future__ import annotations

import contextlib
import math
import operator
from typing import Any

from ..console.messages import shown
from ..errors import InputError

# name of a setting or an argument -> (type, smallest, largest)
_RANGES: dict[str, tuple[type, Any, Any]] = {
    "max_new_tokens": (int, 1, 2**31 - 1),
    "max_denoising_steps": (int, 1, 10_000),
    "t_min": (float, 1e-3, 100.0),
    "t_max": (float, 1e-3, 100.0),
    "entropy_bound": (float, 0.0, 1e6),
    "stability_threshold": (int, 0, 10_000),
    "confidence_threshold": (float, 0.0, 1e6),
    "prefill_step_size": (int, 1, 10_000_000),
    "thinking_budget": (int, 0, 2**31 - 1),
    "answer_reserve": (int, 1, 2**31 - 1),
    "steps": (int, 0, 10_000),
    "mean_entropy": (float, 0.0, 1e6),
    "temperature": (float, 1e-3, 100.0),
    "probability": (float, 0.0, 1.0),
    "noise_level": (float, 1e-6, 1.0),
    "n": (int, 1, 1024),
    "batch_size": (int, 1, 1_000_000),
    "timeout": (float, 0.0, 1e9),
    "candidate": (int, 0, 2**31 - 1),
    "limit": (int, 1, 2**31 - 1),
}


def integer(value: Any, low: int, high: int) -> int | None:
    """Return `value` if it is an integer from `low` to `high`, otherwise None.

    NumPy's integers are accepted. bool is not.
    """
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        return None
    try:
        number = operator.index(value)
    except TypeError:  # an array
        return None
    return number if low <= number <= high else None


def in_range(name: str, value: Any, label: str | None = None) -> Any:
    """Return `value`, converted to the type of setting `name`. Raise `InputError` if it is out of range.

    NumPy's scalars are accepted.

    label: name in the message, if not `name`.
    """
    kind, low, high = _RANGES[name]
    number: Any = math.nan
    if not isinstance(value, (bool, str)):
        with contextlib.suppress(TypeError, ValueError, OverflowError):
            number = operator.index(value) if hasattr(value, "__index__") else float(value)
    if not low <= number <= high or kind(number) != number:
        what, spelled = ("an integer", "d") if kind is int else ("a number", "g")
        raise InputError(
            f"{label or name} must be {what} from {low:{spelled}} to {high:{spelled}}, found {shown(value)}"
        )
    return kind(number)
