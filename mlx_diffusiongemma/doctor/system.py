"""Facts that macOS gives about itself. They are None elsewhere and when it does not answer."""

from __future__ import annotations

import platform
import re
import subprocess

_SECONDS = 10


def is_mac() -> bool:
    return platform.system() == "Darwin"


def ask(*command: str) -> str | None:
    """Return what a command of macOS prints, or None if it fails."""
    if not is_mac():
        return None
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=_SECONDS, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def sysctl(name: str) -> str | None:
    return ask("sysctl", "-n", name) or None


def system_version() -> str:
    """Return name, version and machine, such as "macOS 15.1, arm64"."""
    if is_mac():
        name = f"macOS {ask('sw_vers', '-productVersion') or platform.mac_ver()[0]}"
    else:
        try:
            release = platform.freedesktop_os_release()
            name = f"{release['ID']} {release.get('VERSION_ID', '')}".strip()
        except OSError:
            name = platform.system()
    return f"{name}, {platform.machine()}"


def is_translated() -> bool:
    """Return True if this Python is made for Intel chips and run by Rosetta."""
    return platform.machine() == "x86_64" and sysctl("sysctl.proc_translated") == "1"


def gpu_cores() -> int | None:
    cores = re.search(r"Total Number of Cores: (\d+)", ask("system_profiler", "SPDisplaysDataType") or "")
    return int(cores[1]) if cores else None


def low_power_mode() -> bool | None:
    mode = re.search(r"^\s*(?:lowpowermode|powermode)\s+(\d)", ask("pmset", "-g") or "", re.MULTILINE)
    return mode[1] == "1" if mode else None


def wired_limit_mb() -> int | None:
    """Return the MiB that the GPU may wire, as set by hand. 0: macOS decides."""
    limit = sysctl("iogpu.wired_limit_mb")
    return int(limit) if limit is not None and limit.isdigit() else None
