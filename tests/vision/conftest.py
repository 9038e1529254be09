"""A tiny checkpoint with a vision tower, the demo's vocabulary and the released chat template."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from oracle import tiny
from safetensors.numpy import load_file, save_file
from support.fixtures_templates import DEMO, released_template

from mlx_diffusiongemma import load

__all__ = ["released_template"]
_TABLE = "model.encoder.vision_tower.patch_embedder.position_embedding_table"


@pytest.fixture(scope="session")
def seeing_directory(released_template: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tiny.build(tiny.ROUGH, tmp_path_factory.mktemp("seeing"), vocab=704, canvas=32)
    weights = load_file(directory / "model.safetensors")
    weights[_TABLE] = np.random.default_rng(0).normal(0, 0.5, (2, 256, 16)).astype(np.float32)
    save_file(weights, directory / "model.safetensors")
    config = json.loads((directory / "config.json").read_text())
    config["vision_config"]["position_embedding_size"] = 256
    config["image_token_id"] = 702  # as in the demo's tokenizer
    (directory / "config.json").write_text(json.dumps(config))
    shutil.copy(DEMO / "tokenizer.json", directory)
    (directory / "chat_template.jinja").write_text(released_template)
    processor = {"image_processor": {"max_soft_tokens": 70, "patch_size": 16, "pooling_kernel_size": 3}}
    (directory / "processor_config.json").write_text(json.dumps(processor))
    return directory


@pytest.fixture(scope="session")
def seeing(seeing_directory: Path) -> tuple[Any, Any]:
    """The model and its tokenizer."""
    return load(seeing_directory)
