"""What macOS tells of itself. Elsewhere, or when it does not answer, the answer is None."""

from __future__ import annotations

import platform
import re
import subprocess

_SECONDS = 10


def is_mac() -> bool:
    return platform.system() == "Darwin"


def ask(*command: str) -> str | None:
    """What a command of macOS prints; None where there is no such command or it fails."""
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
    """Such as "macOS 15.1, arm64"."""
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
    """Whether this Python is one for Intel chips, run by Rosetta."""
    return platform.machine() == "x86_64" and sysctl("sysctl.proc_translated") == "1"


def gpu_cores() -> int | None:
    found = re.search(r"Total Number of Cores: (\d+)", ask("system_profiler", "SPDisplaysDataType") or "")
    return int(found[1]) if found else None


def low_power_mode() -> bool | None:
    found = re.search(r"^\s*(?:lowpowermode|powermode)\s+(\d)", ask("pmset", "-g") or "", re.MULTILINE)
    return found[1] == "1" if found else None


def wired_limit_mb() -> int | None:
    """MiB that the GPU may wire, when set by hand; 0 where macOS decides."""
    found = sysctl("iogpu.wired_limit_mb")
    return int(found) if found is not None and found.isdigit() else None
