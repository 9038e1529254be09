"""Fixtures with the chat templates that tests of prompts use: the demo's, and Google's released one."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path

import pytest

from mlx_diffusiongemma.text.tokenizer import Tokenizer

DEMO = Path(__file__).parents[2] / "mlx_diffusiongemma" / "demo" / "checkpoint"


@pytest.fixture(scope="session")
def released_template() -> str:
    """The template that Google released for the model, from the package `trl`."""
    trl = importlib.util.find_spec("trl")
    assert trl is not None, (
        "trl is missing; `make test` installs it, or run: pip install --no-deps trl==1.16.0"
    )
    assert trl.origin is not None
    return (Path(trl.origin).parent / "chat_templates" / "diffusion_gemma.jinja").read_text(encoding="utf-8")


@pytest.fixture(scope="session")
def released_directory(released_template: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the demo's checkpoint with the released template."""
    directory = tmp_path_factory.mktemp("released") / "model"
    shutil.copytree(DEMO, directory)
    (directory / "chat_template.jinja").write_text(released_template, encoding="utf-8")
    return directory


@pytest.fixture(scope="session", params=["demo", "released"])
def chat_tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    """The demo's tokenizer, once with each template. A test that uses it runs twice."""
    if request.param == "demo":
        return Tokenizer.load(DEMO)
    return Tokenizer.load(request.getfixturevalue("released_directory"))
