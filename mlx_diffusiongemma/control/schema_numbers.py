"""Numbers of a JSON Schema that the grammar compiler reads inexactly.

It takes them as float64 and rounds a second time where a decimal has more than 15 digits or a large exponent.
A constant would become its neighbour and a bound would move, so that answers break the schema.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from decimal import Decimal
from fractions import Fraction
from typing import Any

_EXACT = 2**53  # whole numbers up to here are float64's own
_ALL = 2**64  # whole numbers up to here are read as such
_DIGITS = 15
_SMALLEST = -22  # powers of ten from here to 22 are applied without rounding
_ONE_SIDED, _TWO_SIDED = 9 * 10**17, 92 * 10**17  # the widest bounds that the compiler takes


def is_number(value: Any) -> bool:
    """True for a number of JSON, where True and False are none."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def inexact_number(value: Any) -> int | float | None:
    """A number in `value`, plain JSON, that the compiler would change; None when there is none."""
    inner: Iterable[Any] = (
        value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    )
    for each in inner:
        number = inexact_number(each)
        if number is not None:
            return number
    return value if is_number(value) and not _is_exact(value) else None


def enforce_bounds(node: dict[str, Any]) -> None:
    """Make the bounds of a schema ones that the compiler enforces. They may become a little narrower."""
    for plain, exclusive in (("minimum", "exclusiveMinimum"), ("maximum", "exclusiveMaximum")):
        # Draft 4 and OpenAPI 3.0: true or false, beside the bound.
        if isinstance(node.get(exclusive), bool) and node.pop(exclusive) and plain in node:
            node[exclusive] = node.pop(plain)
    _open_low_end(node)
    lows, highs = node.keys() & {"minimum", "exclusiveMinimum"}, node.keys() & {"maximum", "exclusiveMaximum"}
    widest = _TWO_SIDED if lows and highs else _ONE_SIDED
    for key in lows:
        node[key] = _inward(max(node[key], -widest), up=True)
    for key in highs:
        node[key] = _inward(min(node[key], widest), up=False)


def _open_low_end(node: dict[str, Any]) -> None:
    """Take the excluded low end out of a narrow range: the compiler would allow it."""
    kinds = node.get("type", "number")
    low, high = node.get("exclusiveMinimum"), node.get("exclusiveMaximum", node.get("maximum"))
    if "number" not in kinds or low is None or high is None or not 0 < high - low <= 1:
        return
    above = low + (high - low) / 1024
    if above > low:
        del node["exclusiveMinimum"]
        node["minimum"] = max(above, node.get("minimum", above))


def _is_exact(value: int | float) -> bool:
    if isinstance(value, int):
        return abs(value) <= _EXACT or (abs(value) < _ALL and int(float(value)) == value)
    _, digits, exponent = Decimal(repr(value)).normalize().as_tuple()
    return int("".join(map(str, digits))) <= _EXACT and abs(int(exponent)) <= -_SMALLEST


def _inward(bound: int | float, up: bool) -> int | float:
    """The nearest bound within `bound` that is read exactly."""
    if _is_exact(bound) or abs(bound) > _TWO_SIDED:
        return bound
    if isinstance(bound, int):
        near = float(bound)
        beyond = near < bound if up else near > bound
        return int(math.nextafter(near, math.inf if up else -math.inf) if beyond else near)
    wanted = Decimal(repr(bound))
    unit = Fraction(10) ** max(wanted.adjusted() + 1 - _DIGITS, _SMALLEST)
    return float((math.ceil if up else math.floor)(Fraction(wanted) / unit) * unit)
