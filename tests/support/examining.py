"""Runs `mlx_dg doctor` and reads its report."""

from __future__ import annotations

import re

import pytest
from click.testing import CliRunner, Result

from mlx_diffusiongemma.cli import main
from mlx_diffusiongemma.doctor import examination


def doctor(monkeypatch: pytest.MonkeyPatch, *titles: str) -> Result:
    """Run `mlx_dg doctor` with the checks that have these titles, or with all if none is given."""
    if titles:
        chosen = {title: examination.CHECKS[title] for title in titles}
        monkeypatch.setattr(examination, "CHECKS", chosen)
    result = CliRunner().invoke(main, ["doctor"])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def findings(result: Result, kind: str) -> list[str]:
    return [line for line in result.stdout.splitlines() if line.startswith(f"- {kind}: ")]


def facts(result: Result) -> dict[str, str]:
    """Return names and values of the indented lines, in which two or more blanks separate name and value."""
    lines = [line.strip() for line in result.stdout.splitlines() if line.startswith("    ")]
    return {parts[0]: parts[1] for line in lines if len(parts := re.split(r" {2,}", line, maxsplit=1)) == 2}
