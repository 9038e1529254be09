"""Each script of `benchmarks/` runs at its smallest size. `parity/` has those that need mlx-vlm."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.benchmark_scripts import NEED_MLX_VLM, SOURCES, check_smoke

pytestmark = pytest.mark.slow


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in SOURCES if name not in NEED_MLX_VLM])
def test_smoke(name: str, tmp_path: Path) -> None:
    check_smoke(name, tmp_path)
