"""Tables of planned and finished conversions, and their record conversion.json. Reads no weights."""

from __future__ import annotations

import math
from collections.abc import Mapping
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
from .planning import ClassSummary, Plan
from .recipes import CLASSES, Quantization, stored_as, tensor_class
from .source import Source

RECORD = "conversion.json"
_FORMAT = 1
_NOT_LOADED = "vision"  # class of tensors that the text path does not load


def of_plan(source: Source, planned: Plan) -> str:
    """Return tables of the tensors that a conversion would write, and of the Macs that they fit on."""
    loaded = sum(tensor.bytes_out for tensor in planned.tensors if tensor.kind != _NOT_LOADED)
    return f"{plan_table(planned)}\n\n{mac_table(ModelConfig.from_dict(source.config()), loaded)}"


def of_conversion(directory: Path) -> str | None:
    """Return tables of a conversion's tensors and of the Macs that they fit on, or None for a source.

    The data comes from conversion.json. Conversions by other tools lack this file. Their data comes from the
    headers of their weights. Raises `ConfigError` or `CheckpointError` for files that are damaged
    or contradict each other.
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
        table = "converted by another tool\n" + _table(_stored(infos, config.quantization or {}))
    return f"{table}\n\n{mac_table(config, loaded)}"


def plan_table(planned: Plan) -> str:
    """Return a table with storage, tensors, parameters, bits per weight and bytes of each class."""
    return f"recipe {planned.recipe}\n{_table(planned.summary())}"


def record_table(record: Any) -> str:
    """Return the table of a conversion.json, with its measurements. Raise `ConfigError` if it is damaged."""
    try:
        if record["format"] != _FORMAT:
            raise ConfigError(
                f"{RECORD}: format {record['format']!r} is unknown, only {_FORMAT}; update mlx-diffusiongemma"
            )
        head = f"recipe {_word(record['recipe'])}, from {_word(record['source'])}"
        if record["revision"] is not None:
            head += f" at {_word(record['revision'])}"
        head += f", by mlx_dg {_word(record['version'])}"
        note = "\nRMS error: of large tensors, measured on every 16th row"
        measured = record["verification"]
        verified = "" if measured is None else f"\nagainst its source, {verification_text(measured)}"
        return f"{head}\n{aligned(record_cells(record), left=2)}{note}{verified}"
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

    Numbers that are not finite become null, because JSON lacks them.

    errors: relative RMS error of each quantized class.
    """
    classes = {
        kind: {
            "quantization": planned.choices[kind].to_dict() if kind in planned.choices else None,
            "tensors": summary.tensors,
            "parameters": summary.parameters,
            "bytes_in": summary.bytes_in,
            "bytes_out": summary.bytes_out,
            "rms_error": _finite(errors.get(kind)),
        }
        for kind, summary in planned.summary().items()
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


def record_cells(record: Any) -> list[tuple[str, ...]]:
    """Return the cells of a conversion.json's table, line by line."""
    return _cells({_word(kind): _recorded(values) for kind, values in record["classes"].items()})


def _recorded(values: Mapping[str, Any]) -> ClassSummary:
    how, error = values["quantization"], values["rms_error"]
    return ClassSummary(
        _word(stored_as(Quantization(**how) if how else None)),
        tensors=int(values["tensors"]),
        parameters=int(values["parameters"]),
        bytes_in=int(values["bytes_in"]),
        bytes_out=int(values["bytes_out"]),
        rms_error=None if error is None else float(error),
    )


def _word(text: Any) -> str:
    """Return `text`, which an untrusted file contains. Raise `ValueError` if it is not printable text."""
    if not isinstance(text, str) or not text.isprintable():
        raise ValueError(f"{text!r} is not printable text")
    return text


def _stored(infos: Mapping[str, TensorInfo], block: Mapping[str, Any]) -> dict[str, ClassSummary]:
    """Return totals of each class of stored tensors. block: config.json's quantization."""
    members: dict[str, list[ClassSummary]] = {kind: [] for kind in CLASSES}
    for name, info in infos.items():
        path, _, part = name.rpartition(".")
        scales = infos.get(f"{path}.scales")
        if scales is None:
            members[tensor_class(name)].append(ClassSummary(stored_as(None), 1, info.size, None, info.nbytes))
        elif part == "weight":
            chosen = Quantization(*module_quantization(path, scales, block))
            stored = sum(infos[i].nbytes for i in (f"{path}.{p}" for p in _PARTS) if i in infos)
            parameters = math.prod(scales.shape) * chosen.group_size
            members[tensor_class(name)].append(ClassSummary(stored_as(chosen), 1, parameters, None, stored))
    return {
        kind: ClassSummary.total(" / ".join(sorted({part.stored_as for part in parts})), parts)
        for kind, parts in members.items()
        if parts
    }


_PARTS = ("weight", "scales", "biases")


def verification_text(measured: Mapping[str, Any]) -> str:
    """Return the result of `verify` as text. None in it stands for a number that is not finite."""

    def shown(key: str, spec: str) -> str:
        return "not finite" if measured[key] is None else format(float(measured[key]), spec)

    return (
        f"at {int(measured['positions'])} canvas positions: "
        f"RMS logit error {shown('rms_logit_error', '.4f')}, "
        f"argmax agreement {shown('argmax_agreement', '.1%')}, "
        f"mean entropy difference {shown('entropy_difference', '.4f')} nats"
    )


def _table(classes: Mapping[str, ClassSummary]) -> str:
    return aligned(_cells(classes), left=2)


_COLUMNS = ("class", "stored as", "tensors", "parameters", "bits/weight", "in", "out", "RMS error")


def _cells(classes: Mapping[str, ClassSummary]) -> list[tuple[str, ...]]:
    """Return lines of cells: header, classes and total. Omit columns that are empty in every class."""
    lines = [
        (
            kind,
            summary.stored_as,
            str(summary.tensors),
            f"{summary.parameters / 1e6:,.1f} M",
            f"{8 * summary.bytes_out / max(summary.parameters, 1):.2f}",
            "" if summary.bytes_in is None else size(summary.bytes_in),
            size(summary.bytes_out),
            "" if summary.rms_error is None else f"{summary.rms_error:.2%}",
        )
        for kind, summary in (*classes.items(), ("total", ClassSummary.total("", [*classes.values()])))
    ]
    columns = zip(_COLUMNS, *lines, strict=True)
    return list(zip(*(column for column in columns if any(column[1:])), strict=True))


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
