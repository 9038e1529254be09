"""Runs the scripts of `benchmarks/` in tests."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

DIRECTORY = Path(__file__).parents[2] / "benchmarks"
SOURCES = {path.stem: path.read_text() for path in sorted(DIRECTORY.glob("*.py")) if path.stem != "common"}
NEED_MLX_VLM = [name for name, source in SOURCES.items() if "needs_mlx_vlm=True" in source]


def check_smoke(name: str, tmp_path: Path) -> None:
    """Run a script with `--smoke`: it must succeed, print a figure, and leave no file where it ran."""
    assert "from common import parse" in SOURCES[name], f"{name}.py must take --smoke; see common.parse"
    command = [sys.executable, str(DIRECTORY / f"{name}.py"), "--smoke"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"\d\.\d", done.stdout), done.stdout
    assert not list(tmp_path.iterdir())
