"""Facts that commands of macOS report. They are None on other systems, or if a command fails."""

from __future__ import annotations

import platform
import re
import subprocess

_SECONDS = 10


def is_mac() -> bool:
    return platform.system() == "Darwin"


def ask(*command: str) -> str | None:
    """Return the output of a macOS command, or None if it fails or this is not macOS."""
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
    """Return the GPU's memory limit in MiB that was set by hand, 0 if macOS decides, or None if unknown."""
    limit = sysctl("iogpu.wired_limit_mb")
    return int(limit) if limit is not None and limit.isdigit() else None
