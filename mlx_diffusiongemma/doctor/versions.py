"""Checks installed versions, and environment variables that change results. Imports no checked package."""

from __future__ import annotations

import os
import platform
import re
from importlib import metadata

from . import system
from .sheet import Sheet

_PACKAGE = "mlx-diffusiongemma"
_SHOWN = ("mlx", "mlx-lm", "transformers", "tokenizers", "huggingface_hub", "llguidance", "numpy")
_BACKENDS = ("mlx-metal", "mlx-cpu", "mlx-cuda-12", "mlx-cuda-13")  # each made for one version of mlx
# Variables that change results or speed. Others are only counted, because names and values may be secrets.
_VARIABLES = re.compile(
    "MLX_(?:DG_KERNELS|ENABLE_TF32|DISABLE_COMPILE|BFS_MAX_WIDTH|MAX_(?:OPS|MB)_PER_BUFFER|SDPA_BLOCKS"
    "|USE_CUDA_GRAPHS|CUDA_GRAPH_CACHE_SIZE|CUDA_USE_CUDNN_SPDA|METAL_(?:FAST_SYNCH|GPU_ARCH|DEBUG|JIT))"
)
_SAFE_VALUE = re.compile(r"auto|on|off|\d{0,9}")


def check(sheet: Sheet) -> None:
    least, of_mlx = _minimums(), _installed("mlx")
    facts = [
        ("mlx_dg", metadata.version(_PACKAGE)),
        ("Python", f"{platform.python_version()} ({platform.python_implementation()})"),
        ("system", system.system_version()),
    ]
    for name in _SHOWN + _BACKENDS:
        found, needed = _installed(name), least.get(name)
        if not found:
            if needed:
                sheet.problems.append(f"{name} is not installed; {_to_install(name, needed)}")
            facts.append((name, "not installed" if name in _SHOWN else ""))
            continue
        facts.append((name, " and ".join(found) + (f" (at least {needed})" if needed else "")))
        if len(found) > 1:
            sheet.problems.append(
                f"{name} is installed more than once ({', '.join(found)}); make a new environment, "
                f"or pip uninstall {name} until none is left and install it again"
            )
        if needed and any(_release(version) < _release(needed) for version in found):
            sheet.problems.append(f"{name} {found[0]} is older than {needed}; {_to_install(name, needed)}")
        if name in _BACKENDS and of_mlx and found != of_mlx:
            sheet.problems.append(
                f"{name} {found[0]} does not belong to mlx {of_mlx[0]}; "
                f"pip install --force-reinstall --no-deps mlx=={of_mlx[0]} {name}=={of_mlx[0]}"
            )
    variables = {name: value for name, value in sorted(os.environ.items()) if name.startswith("MLX_")}
    known = {name: value for name, value in variables.items() if _VARIABLES.fullmatch(name)}
    facts += [(name, value if _SAFE_VALUE.fullmatch(value) else "(set)") for name, value in known.items()]
    facts.append(("other MLX_* variables", str(len(variables) - len(known))))
    sheet.facts(facts)

    if system.is_translated():
        sheet.problems.append(
            "this Python is made for Intel chips and runs under Rosetta, where MLX has no Metal; install one "
            "for Apple silicon (platform.machine() must be arm64) and make a new environment with it"
        )
    switch = variables.get("MLX_DG_KERNELS", "auto")
    if switch not in ("auto", "on", "off"):
        sheet.problems.append("MLX_DG_KERNELS may be auto, on or off, but is set to something else; unset it")
    if switch == "off":
        sheet.notes.append("MLX_DG_KERNELS=off: generations run without the Metal kernels; unset it")


def _to_install(name: str, least: str) -> str:
    return f"pip install --upgrade '{name}>={least}'"


def _minimums() -> dict[str, str]:
    """Return the lowest version of each required package, from this package's metadata."""
    found = {}
    for requirement in metadata.requires(_PACKAGE) or []:
        parts = re.match(r"([\w.-]+)(?:\[[^\]]*\])?\s*>=\s*([\d.]+)", requirement)
        if parts and "extra ==" not in requirement:
            found[parts[1]] = parts[2]
    return found


def _installed(name: str) -> list[str]:
    """Return the installed versions of a package. Overlapping installations give several."""
    return sorted({distribution.version for distribution in metadata.distributions(name=name)})


def _release(version: str) -> tuple[int, ...]:
    """Return the numbers of a release: (0, 32, 4) for "0.32.4.dev1"."""
    found = re.match(r"\d+(?:\.\d+)*", version)
    return tuple(int(part) for part in found[0].split(".")) if found else ()
