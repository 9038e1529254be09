"""What macOS offers in place of Landlock, seccomp and a limit on memory; nothing here runs on Linux."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import cache

SANDBOX_EXEC = "/usr/bin/sandbox-exec"
# People's files, and other programs' temporary ones. The rest of the disk is the system.
PRIVATE = ("/Users", "/Volumes", "/private/etc", "/private/tmp", "/private/var/folders", "/private/var/root")


def profile(folder: str) -> str:
    """The Seatbelt profile: all but network, processes, signals, and files outside `folder`.

    Exceptions among files are part of the rules (require-not), so that no order among rules matters.
    """
    prefixes = {
        sys.prefix,
        sys.base_prefix,
        os.path.dirname(__file__),
        os.path.dirname(sys.executable),
        folder,
    }
    prefixes |= {os.path.realpath(path) for path in (*prefixes, sys.executable)}

    def paths(of: set[str] | tuple[str, ...]) -> str:
        return " ".join(f"(subpath {json.dumps(path)})" for path in sorted(of))

    home = os.path.realpath(os.path.expanduser("~"))
    write = (
        f'(require-not (require-any (subpath {json.dumps(os.path.realpath(folder))}) (literal "/dev/null")))'
    )
    read = (
        f"(require-all (require-any {paths((home, *PRIVATE))}) (require-not (require-any {paths(prefixes)})))"
    )
    return "\n".join(
        [
            "(version 1)",
            "(allow default)",
            "(deny network*)",
            "(deny process-fork)",
            "(deny signal)",
            "(allow signal (target self))",
            f"(deny file-write* {write})",
            f"(deny file-read-data {read})",
        ]
    )


@cache
def works() -> bool:
    """Whether sandbox-exec starts this Python. If not, the canaries find what nothing else holds."""
    if not os.path.exists(SANDBOX_EXEC):
        return False
    command = [
        SANDBOX_EXEC,
        "-p",
        profile("/private/var/empty"),
        sys.executable,
        "-I",
        "-S",
        "-B",
        "-c",
        "pass",
    ]
    return subprocess.run(command, env={}, capture_output=True, cwd="/").returncode == 0


def prefix(folder: str) -> list[str]:
    """What to put before the command that runs in `folder`."""
    return [SANDBOX_EXEC, "-p", profile(folder)] if works() else []


def resident_mb(pid: int) -> float:
    """The memory a process holds, in MB, 0 when it is gone: macOS ignores RLIMIT_AS, so one must look."""
    ps = subprocess.run(["/bin/ps", "-o", "rss=", "-p", str(pid)], capture_output=True, text=True)
    return int(ps.stdout.strip() or 0) / 1024
