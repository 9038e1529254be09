"""Compiles translated kernels to shared libraries, and keeps them by what they were made of."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

HEADERS = Path(__file__).parent
COMPILER = "c++"
# IEEE arithmetic as written: nothing fused, nothing assumed about NaN. The sanitizer's checks of a
# thread's own arrays and of divisors end in metal_stdlib.h, not in its library, so the link does not name it.
COMPILE = (
    *("-std=c++17", "-O0", "-fPIC", "-fvisibility=hidden", "-fno-exceptions", "-fno-rtti"),
    *("-fno-strict-aliasing", "-fwrapv", "-ffp-contract=off"),
    *(
        "-fsanitize=bounds,integer-divide-by-zero",
        "-Werror=frame-larger-than=65536",
        "-Werror=float-conversion",
    ),
)


def cache_directory() -> Path:
    """A directory of this user's alone: what lies in it is executed."""
    directory = Path(tempfile.gettempdir()) / f"metal-emulator-{os.getuid()}"
    directory.mkdir(mode=0o700, exist_ok=True)
    if directory.stat().st_uid != os.getuid():
        raise PermissionError(f"{directory} belongs to another user; remove it or set TMPDIR")
    return directory


def build(source: str) -> Path:
    """The shared library of `source`. Raises RuntimeError without a compiler, or with its complaints."""
    key = hashlib.sha256("\0".join(COMPILE).encode())
    for header in sorted(HEADERS.glob("*.h")):
        key.update(header.read_bytes())
    key.update(source.encode())
    library = cache_directory() / f"{key.hexdigest()[:32]}.so"
    if library.exists():
        return library
    if shutil.which(COMPILER) is None:
        raise RuntimeError(
            f"the Metal emulator needs a C++17 compiler: no `{COMPILER}` found; install g++ or clang"
        )
    # One process makes it, under another name that it then drops: others wait, or see all of it.
    with (
        library.with_suffix(".lock").open("w") as lock,
        tempfile.TemporaryDirectory(dir=library.parent) as directory,
    ):
        fcntl.flock(lock, fcntl.LOCK_EX)
        if library.exists():
            return library
        made = Path(directory)
        (made / "kernel.cpp").write_text(source)
        _run(COMPILER, *COMPILE, f"-I{HEADERS}", "-c", "kernel.cpp", "-o", "kernel.o", directory=made)
        _run(COMPILER, "-shared", "kernel.o", "-o", "kernel.so", directory=made)
        os.replace(made / "kernel.so", library)
    return library


def _run(*command: str, directory: Path) -> None:
    result = subprocess.run(command, cwd=directory, capture_output=True, text=True, check=False)
    if result.returncode:
        raise RuntimeError(f"the kernel does not compile for the Metal emulator:\n{result.stderr[:8000]}")
