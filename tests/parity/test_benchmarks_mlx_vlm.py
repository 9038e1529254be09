"""The scripts of `benchmarks/` that compare with mlx-vlm run at their smallest size."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.benchmark_scripts import NEED_MLX_VLM, check_smoke


@pytest.mark.slow
@pytest.mark.parametrize("name", NEED_MLX_VLM)
def test_smoke(name: str, tmp_path: Path) -> None:
    check_smoke(name, tmp_path)
