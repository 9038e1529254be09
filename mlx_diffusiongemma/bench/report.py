"""The result of a benchmark as a few tables, at most 100 columns wide."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from ..console.messages import count
from ..console.tables import aligned
from .measure import PARTS

_SOURCES = {
    "table": "at most, from a table",
    "measured": "at most, measured here",
    "exceeded": "at most, steps here exceed the table",
}
_SMALL = 0.1  # steps that need less GB or TFLOP are shown in MB and GFLOP


class _Column(NamedTuple):
    """A column: the two lines of its heading, and the key, the factor and the format of its values."""

    above: str
    heading: str
    key: str
    factor: float
    spec: str


def table(result: dict[str, Any]) -> str:
    """Format the result of `sweep.run`. A dash marks values that do not apply."""
    points, limits = result["points"], result["ceilings"]
    largest = max(points, key=lambda point: point["step_tflop"])
    return "\n\n".join(
        [
            f"{result['model']}\n{count(result['layers'], 'layer')}, "
            f"{result['weights_gb']:.3g} GB of weights, {result['dtype']}, "
            f"mlx {result['versions']['mlx']} on the {result['device'].upper()}\n"
            f"{limits['chip']} ({_SOURCES[limits['source']]}): {limits['bandwidth_gb_per_second']:.3g} GB/s, "
            f"{limits['arithmetic_tflop_per_second']:.3g} TFLOP/s",
            _of_points(points, _speed(largest)),
            "Milliseconds of a step's parts, one after the other\n" + _of_points(points, _SPLIT),
            _needed(largest),
            _generation(result["generation"]),
        ]
    )


_POINT = [_Column("", "prompt", "prompt_tokens", 1, "d"), _Column("", "canvas", "canvas_length", 1, "d")]
_HEADINGS = {"soft_embedding": ("soft", "embedding")}
_SPLIT = [
    *_POINT,
    *(_Column(*_HEADINGS.get(name, ("", name)), f"{name}_seconds", 1e3, ".2f") for name in PARTS),
    _Column("", "sum", "parts_sum_seconds", 1e3, ".2f"),
    _Column("", "step", "step_seconds", 1e3, ".2f"),
    _Column("encode", "canvas", "encode_canvas_seconds", 1e3, ".2f"),
]


def _speed(largest: dict[str, Any]) -> list[_Column]:
    (gb, gb_factor), (tflop, tflop_factor) = _units(largest)
    return [
        *_POINT,
        _Column("prefill", "tokens/s", "prefill_tokens_per_second", 1, ".1f"),
        _Column("step", "ms", "step_seconds", 1e3, ".2f"),
        _Column("in-step", "tokens/s", "in_step_tokens_per_second", 1, ".1f"),
        _Column("step needs", gb, "step_gb", gb_factor, ".2f"),
        _Column("step needs", tflop, "step_tflop", tflop_factor, ".2f"),
        _Column("of most", "GB/s", "bandwidth_fraction", 1, ".1%"),
        _Column("of most", "TFLOP/s", "arithmetic_fraction", 1, ".1%"),
        _Column("peak", "GB", "peak_memory_gb", 1, ".3f"),
    ]


def _units(largest: dict[str, Any]) -> tuple[tuple[str, float], tuple[str, float]]:
    """Return the units for bytes and for operations, each with its number in a GB or a TFLOP."""
    return (
        ("GB", 1) if largest["step_gb"] >= _SMALL else ("MB", 1e3),
        ("TFLOP", 1) if largest["step_tflop"] >= _SMALL else ("GFLOP", 1e3),
    )


def _of_points(points: Sequence[dict[str, Any]], columns: Sequence[_Column]) -> str:
    headings = [[column.above for column in columns], [column.heading for column in columns]]
    rows = [[format(point[c.key] * c.factor, c.spec) for c in columns] for point in points]
    return aligned([*filter(any, headings), *rows], left=0)


def _needed(point: dict[str, Any]) -> str:
    """Format the minimum bytes and operations of each part of a step at this point."""
    (gb, gb_factor), (tflop, tflop_factor) = _units(point)
    parts = [*point["needed"].items(), ("all", {"gb": point["step_gb"], "tflop": point["step_tflop"]})]
    rows = [
        (name.replace("_", " "), f"{part['gb'] * gb_factor:.3f}", f"{part['tflop'] * tflop_factor:.3f}")
        for name, part in parts
    ]
    heading = f"A step needs (prompt {point['prompt_tokens']}, canvas {point['canvas_length']})"
    return aligned([(heading, gb, tflop), *rows], left=1)


def _generation(generation: dict[str, Any]) -> str:
    def shown(key: str) -> str:
        return "-" if generation[key] is None else f"{generation[key]:.1f}"

    return (
        f"One generation: {shown('steps_per_block')} steps per block, "
        f"{shown('tokens_per_forward')} tokens per forward\n"
        f"tokens/s: in-step {shown('in_step_tokens_per_second')}, "
        f"gross {shown('gross_tokens_per_second')}, net {shown('net_tokens_per_second')}"
    )
