from __future__ import annotations

from pathlib import Path

import pytest
from support.converting import tiny_source


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A tiny checkpoint to convert."""
    return tiny_source(tmp_path / "source")
