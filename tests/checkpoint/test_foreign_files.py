"""Adapters and files of other programs, given as a model: the error says what they are, and the way out."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner
from oracle import demo

import mlx_dg
from mlx_diffusiongemma.cli import main
from mlx_diffusiongemma.converter import convert
from mlx_diffusiongemma.errors import InputError

BASE = "google/diffusiongemma-26B-A4B-it"
PEFT = {"peft_type": "LORA", "base_model_name_or_path": BASE}
MLX_LM = {"fine_tune_type": "lora", "model": BASE}
ADAPTER = "a LoRA adapter, which changes a model and holds none; merge it into its base model"
GGUF = "the format of llama.cpp; this package reads safetensors: give the original checkpoint, "


def folder(path: Path, **files: bytes) -> Path:
    path.mkdir()
    for name, data in files.items():
        (path / name.replace("__", ".")).write_bytes(data)
    return path


def complaint(model: Path) -> str:
    """The one line that `load` and `convert` have for it."""
    with pytest.raises(InputError) as loading:
        mlx_dg.load(model)
    with pytest.raises(InputError) as converting:
        convert(model, model.parent / "out")
    assert str(loading.value) == str(converting.value)
    assert str(loading.value).isprintable()
    return str(loading.value)


@pytest.mark.parametrize(("files", "expected"), [
    ({"adapter_config__json": PEFT, "adapter_model__safetensors": b"\0"}, f"{ADAPTER} {BASE} with"),
    ({"adapter_config__json": PEFT, "adapter_model__bin": b"\0"}, f"{ADAPTER} {BASE} with"),
    ({"adapter_config__json": MLX_LM, "adapters__safetensors": b"\0"}, f"{ADAPTER} {BASE} with"),
    ({"0000100_adapters__safetensors": b"\0"}, f"{ADAPTER} with"),
    ({"adapter_config__json": {"model": "a\nb"}, "adapters__npz": b"\0"}, f"{ADAPTER} with"),
    ({"adapter_config__json": b"[", "adapters__safetensors": b"\0"}, f"{ADAPTER} with"),
    ({"adapter_config__json": ["a"], "adapters__safetensors": b"\0"}, f"{ADAPTER} with"),
    ({"model-Q4_K_M__gguf": b"GGUF"}, f"weights in GGUF, {GGUF}"),
    ({"model-00001-of-00002__GGUF": b"GGUF", "README__md": b""}, f"weights in GGUF, {GGUF}"),
])  # fmt: skip
@pytest.mark.parametrize("beside_config", [False, True])
def test_directories(tmp_path: Path, files: dict[str, object], expected: str, beside_config: bool) -> None:
    contents = {k: v if isinstance(v, bytes) else json.dumps(v).encode() for k, v in files.items()}
    model = folder(tmp_path / "model", **contents)
    if beside_config:  # trainers save the tokenizer and the base model's configuration, too
        for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
            shutil.copy(demo.DIRECTORY / name, model)
    assert complaint(model).startswith(f"{model} holds {expected}")


def test_files(tmp_path: Path) -> None:
    model = folder(tmp_path / "model", adapters__safetensors=b"\0", m__gguf=b"", blob=b"GGUF\3\0", txt=b"G")
    adapters = complaint(model / "adapters.safetensors")
    assert adapters.startswith(f"{model}/adapters.safetensors holds {ADAPTER}")
    assert adapters.endswith("mlx_dg.load(base_model, adapter_path=DIRECTORY) reads it as it is")
    for name in ("m.gguf", "blob"):
        assert complaint(model / name).startswith(f"{model / name} holds weights in GGUF, {GGUF}")
    os.mkfifo(model / "pipe")
    for name in ("txt", "pipe"):
        assert complaint(model / name).startswith(f"{model / name} is a file; give the model's directory")


def test_a_model_with_an_adapter_beside_it_is_a_model(tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(demo.DIRECTORY, model)
    (model / "adapter_config.json").write_text(json.dumps(PEFT))
    mlx_dg.load(model)


@pytest.mark.parametrize(
    "command", [["generate", "hi", "--model"], ["info"], ["convert", "--dry-run"], ["chat", "--model"]]
)
def test_commands_have_one_line(tmp_path: Path, command: list[str]) -> None:
    model = folder(tmp_path / "model", adapter_model__safetensors=b"\0")
    result = CliRunner().invoke(main, [*command, str(model)])
    assert (result.exit_code, result.stdout) == (2, "")
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"mlx_dg: error: {model} holds {ADAPTER}")
