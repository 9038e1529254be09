"""Tables of planned and finished conversions, and their record conversion.json. Reads no weights."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from mlx_diffusiongemma.checkpoint.loading import checked_model
from mlx_diffusiongemma.checkpoint.quantization import module_quantization
from mlx_diffusiongemma.checkpoint.tied_weights import model_tensors
from mlx_diffusiongemma.checkpoint.weights import TensorInfo
from mlx_diffusiongemma.config.json_file import read_json
from mlx_diffusiongemma.config.model import ModelConfig
from mlx_diffusiongemma.console.tables import aligned, size
from mlx_diffusiongemma.errors import ConfigError

from .memory import mac_table
from .planning import Plan
from .recipes import CLASSES, Quantization, tensor_class
from .source import Source

RECORD = "conversion.json"
_FORMAT = 1
_NOT_LOADED = "vision"  # class of tensors that the text path does not load


@dataclass(frozen=True)
class _Row:
    """One class of tensors. bytes_in: None if unknown. rms_error: relative, None if not quantized."""

    kind: str
    stored_as: str
    tensors: int
    parameters: int
    bytes_in: int | None
    bytes_out: int
    rms_error: float | None = None


# --- tables -----------------------------------------------------------------------------------


def of_plan(source: Source, planned: Plan) -> str:
    """Return tables of what a conversion would write, and of the Macs that hold it."""
    loaded = sum(tensor.bytes_out for tensor in planned.tensors if tensor.kind != _NOT_LOADED)
    return f"{plan_table(planned)}\n\n{mac_table(ModelConfig.from_dict(source.config()), loaded)}"


def of_conversion(directory: Path) -> str | None:
    """Return tables of a conversion's tensors and of the Macs that hold it, or None for a source.

    They come from its conversion.json. Conversions by other tools have none: then from its weights' headers.
    Raises `ConfigError` or `CheckpointError` for files that are damaged or contradict each other.
    """
    recorded = (directory / RECORD).exists()
    config = ModelConfig.load(directory)
    if not recorded and config.quantization is None:
        return None
    checked_model(directory, config)
    infos = model_tensors(directory)
    loaded = sum(info.nbytes for name, info in infos.items() if tensor_class(name) != _NOT_LOADED)
    if recorded:
        table = record_table(read_json(directory / RECORD))
    else:
        table = "converted by another tool\n" + _table(_stored_rows(infos, config.quantization or {}))
    return f"{table}\n\n{mac_table(config, loaded)}"


def plan_table(planned: Plan) -> str:
    """Return per class: storage, tensors, parameters, bits per weight, bytes read and written."""
    rows = [
        _Row(kind, _stored_as(s.quantization), s.tensors, s.parameters, s.bytes_in, s.bytes_out)
        for kind, s in planned.summary().items()
    ]
    return f"recipe {planned.recipe}\n{_table(rows)}"


def record_table(record: Any) -> str:
    """Return the same table from a conversion.json, with its measurements. `ConfigError` if it is damaged."""
    try:
        if record["format"] != _FORMAT:
            raise ConfigError(
                f"{RECORD}: format {record['format']!r} is unknown, only {_FORMAT}; update mlx-diffusiongemma"
            )
        head = f"recipe {_word(record['recipe'])}, from {_word(record['source'])}"
        if record["revision"] is not None:
            head += f" at {_word(record['revision'])}"
        head += f", by mlx_dg {_word(record['version'])}"
        rows = [_recorded_row(kind, values) for kind, values in record["classes"].items()]
        note = "\nRMS error: of large tensors, measured on every 16th row"
        measured = record["verification"]
        verified = "" if measured is None else f"\nagainst its source, {verification_text(measured)}"
        return f"{head}\n{_table(rows)}{note}{verified}"
    except ConfigError:
        raise
    except (KeyError, TypeError, ValueError, OverflowError, AttributeError) as error:
        raise ConfigError(
            f"{RECORD}: not the record of a conversion ({type(error).__name__}: {str(error)[:80]!r}); "
            "remove it or convert again"
        ) from None


def record(
    planned: Plan,
    errors: Mapping[str, float | None],
    source: str,
    revision: str | None,
    verification: Mapping[str, float] | None,
) -> dict[str, Any]:
    """Return the content of conversion.json.

    Numbers that are not finite become null, because JSON has none. errors: relative RMS, by quantized class.
    """
    classes = {
        kind: {
            "quantization": s.quantization.to_dict() if s.quantization else None,
            "tensors": s.tensors,
            "parameters": s.parameters,
            "bytes_in": s.bytes_in,
            "bytes_out": s.bytes_out,
            "rms_error": _finite(errors.get(kind)),
        }
        for kind, s in planned.summary().items()
    }
    return {
        "format": _FORMAT,
        "version": metadata.version("mlx-diffusiongemma"),
        "source": source,
        "revision": revision,
        "recipe": planned.recipe,
        "dtype": planned.dtype,
        "classes": classes,
        "verification": verification and {name: _finite(value) for name, value in verification.items()},
    }


# --- rows and cells -----------------------------------------------------------------------------------------


def _recorded_row(kind: str, values: Mapping[str, Any]) -> _Row:
    tensors, parameters, bytes_in, bytes_out = (
        int(values[key]) for key in ("tensors", "parameters", "bytes_in", "bytes_out")
    )
    chosen, error = values["quantization"], values["rms_error"]
    stored_as = _stored_as(Quantization(**chosen) if chosen else None)
    rms_error = None if error is None else float(error)
    return _Row(_word(kind), _word(stored_as), tensors, parameters, bytes_in, bytes_out, rms_error)


def _word(text: Any) -> str:
    """Return text of an untrusted file. `ValueError` if a terminal could take it for commands."""
    if not isinstance(text, str) or not text.isprintable():
        raise ValueError(f"{text!r} is not printable text")
    return text


def _stored_rows(infos: Mapping[str, TensorInfo], block: Mapping[str, Any]) -> list[_Row]:
    """Return rows from the stored tensors and config.json's quantization block."""
    members: dict[str, list[tuple[str, int, int]]] = {kind: [] for kind in CLASSES}
    for name, info in infos.items():
        path, _, part = name.rpartition(".")
        scales = infos.get(f"{path}.scales")
        if scales is None:
            members[tensor_class(name)].append((_stored_as(None), info.size, info.nbytes))
        elif part == "weight":
            chosen = Quantization(*module_quantization(path, scales, block))
            stored = sum(infos[i].nbytes for i in (f"{path}.{p}" for p in _PARTS) if i in infos)
            parameters = math.prod(scales.shape) * chosen.group_size
            members[tensor_class(name)].append((_stored_as(chosen), parameters, stored))
    return [
        _Row(
            kind,
            stored_as=" / ".join(sorted({how for how, _, _ in tensors})),
            tensors=len(tensors),
            parameters=sum(parameters for _, parameters, _ in tensors),
            bytes_in=None,
            bytes_out=sum(nbytes for _, _, nbytes in tensors),
        )
        for kind, tensors in members.items()
        if tensors
    ]


_PARTS = ("weight", "scales", "biases")


def _stored_as(quantization: Quantization | None) -> str:
    return "unquantized" if quantization is None else str(quantization)


def verification_text(measured: Mapping[str, Any]) -> str:
    """Format the result of `verify`. None stands for a number that is not finite."""

    def shown(key: str, spec: str) -> str:
        return "not finite" if measured[key] is None else format(float(measured[key]), spec)

    return (
        f"at {int(measured['positions'])} canvas positions: "
        f"RMS logit error {shown('rms_logit_error', '.4f')}, "
        f"argmax agreement {shown('argmax_agreement', '.1%')}, "
        f"mean entropy difference {shown('entropy_difference', '.4f')} nats"
    )


def _table(rows: Sequence[_Row]) -> str:
    """Format rows and their total. Omits columns that are empty in every row."""
    total = _Row(
        "total",
        "",
        sum(row.tensors for row in rows),
        sum(row.parameters for row in rows),
        None if any(row.bytes_in is None for row in rows) else sum(row.bytes_in or 0 for row in rows),
        sum(row.bytes_out for row in rows),
    )
    lines = [
        (
            row.kind,
            row.stored_as,
            str(row.tensors),
            f"{row.parameters / 1e6:,.1f} M",
            f"{8 * row.bytes_out / max(row.parameters, 1):.2f}",
            "" if row.bytes_in is None else size(row.bytes_in),
            size(row.bytes_out),
            "" if row.rms_error is None else f"{row.rms_error:.2%}",
        )
        for row in (*rows, total)
    ]
    columns = zip(_COLUMNS, *lines, strict=True)
    return aligned(zip(*(column for column in columns if any(column[1:])), strict=True), left=2)


_COLUMNS = ("class", "stored as", "tensors", "parameters", "bits/weight", "in", "out", "RMS error")


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
