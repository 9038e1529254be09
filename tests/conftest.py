"""Puts this folder on the import path, so that tests can import `oracle`, and what several of them share."""

import os
import sys
from pathlib import Path
from typing import Any

# float32 means float32 here: from M5 on, MLX multiplies in TF32 by default. It reads this
# when it is imported.
os.environ["MLX_ENABLE_TF32"] = "0"

import mlx.core as mx
import pytest

sys.path.insert(0, str(Path(__file__).parent))

from oracle import tiny
from support.fixtures_templates import chat_tokenizer, released_directory, released_template  # noqa: F401
from support.hub_calls import home, hub  # noqa: F401
from support.kernel_paths import ON_METAL, plug_in_emulator

from mlx_diffusiongemma.checkpoint.loading import load, load_model


@pytest.fixture(scope="session")
def demo() -> tuple[Any, Any]:
    """The bundled model and its tokenizer."""
    return load("demo")


@pytest.fixture(scope="session")
def tokenizer(demo: tuple[Any, Any]) -> Any:
    """The tokenizer of the bundled model."""
    return demo[1]


@pytest.fixture(params=["reference", "kernel"])
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Runs a test of device operations twice: on the plain MLX reference and on the Metal kernels."""
    if request.param == "reference":
        monkeypatch.setenv("MLX_DG_KERNELS", "off")
    else:
        monkeypatch.setenv("MLX_DG_KERNELS", "on")
        if not ON_METAL:
            plug_in_emulator(monkeypatch)
    return request.param


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A tiny random model in float32, made of `tiny.ROUGH`."""
    return load_model(tiny.build(tiny.ROUGH, tmp_path_factory.mktemp("rough")), dtype=mx.float32)


@pytest.fixture
def bf16_experts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets unquantized bf16 experts run on MLX's CPU backend, whose `gather_mm` knows float32 only.

    The products are those of bf16 numbers, summed in float32 and rounded once: what a GPU does.
    """
    gather_mm = mx.gather_mm

    def widened(a: mx.array, b: mx.array, **kwargs: Any) -> mx.array:
        return gather_mm(a.astype(mx.float32), b.astype(mx.float32), **kwargs).astype(a.dtype)

    if mx.default_device() == mx.Device(mx.cpu):
        monkeypatch.setattr(mx, "gather_mm", widened)
