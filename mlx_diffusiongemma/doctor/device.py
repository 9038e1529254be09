"""Checks the chip, the memory that it may use, and settings that make it slow."""

from __future__ import annotations

import shutil
from importlib import metadata
from pathlib import Path

import mlx.core as mx

from ..console.tables import size
from ..engine.memory import usable_memory
from ..macs import gpu_limit
from ..ops import metal
from . import system
from .sheet import Sheet

_ABOUT_THE_DEFAULT = 0.95  # share of the estimated macOS default, because the real default differs by Mac


def check(sheet: Sheet) -> None:
    info = mx.device_info()
    ok, reason = metal.available()
    wired_mb, low_power = system.wired_limit_mb(), system.low_power_mode()
    facts = [
        ("chip", str(system.sysctl("machdep.cpu.brand_string") or info.get("device_name", "unknown"))),
        ("GPU cores", str(system.gpu_cores() or "")),
        ("architecture", str(info.get("architecture", "unknown"))),
        ("default device", mx.default_device().type.name),
        ("Metal", "available" if ok else f"no: {reason}"),
        ("memory", _size(info.get("memory_size"))),
        ("recommended working set", _size(info.get("max_recommended_working_set_size"))),
        ("largest buffer", _size(info.get("max_buffer_length"))),
        ("iogpu.wired_limit_mb", "" if wired_mb is None else str(wired_mb or "0, set by macOS")),
        ("MLX may use", _size(usable_memory()) or "unknown"),
        ("free disk at the hub cache", _size(_free_disk()) or "unknown"),
        ("low power mode", {None: "", True: "on", False: "off"}[low_power]),
    ]
    sheet.facts(facts)

    if not system.is_mac():
        sheet.notes.append("this is not a Mac and has no Metal; nothing here says how a Mac does")
    elif not ok and not system.is_translated():  # the section Versions reports Rosetta
        sheet.problems.append(
            f"Metal cannot be used: {reason}; a virtual machine may have none, and Python must be arm64"
        )
    if low_power:
        sheet.notes.append("low power mode is on, which makes the GPU slow; System Settings, Battery")
    memory = info.get("memory_size")
    if wired_mb and memory is not None:
        default = gpu_limit(round(int(memory) / 2**30))
        if wired_mb * 2**20 < _ABOUT_THE_DEFAULT * default:
            sheet.notes.append(
                f"iogpu.wired_limit_mb is {wired_mb}, less than what macOS 26 chooses by itself; "
                "sudo sysctl iogpu.wired_limit_mb=0"
            )
    imported, installed = str(vars(mx)["__version__"]), metadata.version("mlx")
    if imported.split(".")[:3] != installed.split(".")[:3]:
        sheet.problems.append(
            f"mlx {imported} is imported, but {installed} is installed; make a new environment"
        )


def _size(nbytes: int | str | None) -> str:
    return "" if nbytes is None else size(int(nbytes))


def _free_disk() -> int | None:
    """Return the free bytes on the disk of the hub cache, or None if no part of its path exists."""
    from huggingface_hub.constants import HF_HUB_CACHE

    cache = Path(HF_HUB_CACHE)
    place = next((path for path in (cache, *cache.parents) if path.exists()), None)
    return shutil.disk_usage(place).free if place else None
