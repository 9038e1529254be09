"""Loading a directory: what it says, and what it takes from files that may be missing."""

from __future__ import annotations

import json
import logging
import shutil
import subprocess
import sys
from pathlib import Path

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten
from oracle import demo

import mlx_dg

LOAD = "import mlx_dg; mlx_dg.load('demo')"


@pytest.mark.slow
def test_loading_says_nothing_where_warnings_are_errors() -> None:
    done = subprocess.run([sys.executable, "-W", "error", "-c", LOAD], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_unknown_keys_are_named_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    directory = tmp_path / "model"
    shutil.copytree(demo.DIRECTORY, directory)
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config | {"colour": "blue", "generation_config": {}}))
    with caplog.at_level(logging.WARNING):
        mlx_dg.load(directory)
    assert caplog.messages == ["config.json: top level: unknown keys ignored: colour"]


@pytest.mark.parametrize(("where", "ids"), [("top", [1, 106]), ("text", 1), ("nowhere", None)])
def test_a_checkpoint_without_generation_config_loads(tmp_path: Path, where: str, ids: object) -> None:
    """As programs other than Transformers save it. Its stop ids are those of config.json."""
    directory = tmp_path / "model"
    shutil.copytree(demo.DIRECTORY, directory)
    (directory / "generation_config.json").unlink()
    config = json.loads((directory / "config.json").read_text())
    for name, part in (("top", config), ("text", config["text_config"])):
        part.pop("eos_token_id")
        if name == where:
            part["eos_token_id"] = ids
    (directory / "config.json").write_text(json.dumps(config))
    model, tokenizer = mlx_dg.load(directory)
    assert set(model.generation_config.eos_token_id) >= ({1, 106} if where == "top" else {1})
    answer = mlx_dg.generate(model, tokenizer, "What is the capital of Norway?", seed=0, max_new_tokens=128)
    assert str(answer) == "The capital of Norway is Oslo."


def test_dtypes_by_name(tmp_path: Path) -> None:
    model, _ = mlx_dg.load("demo", dtype="float32")
    parameters = tree_flatten(model.parameters())
    assert {array.dtype for _, array in parameters} == {mx.float32}
    for wrong in ("foo", "auto", 32, mx.int32):
        with pytest.raises(mlx_dg.InputError, match=r"dtype: found .*; give one of float32, float16, bf"):
            mlx_dg.load("demo", dtype=wrong)  # type: ignore[arg-type]


def test_an_unknown_rule_for_images_is_refused() -> None:
    with pytest.raises(
        mlx_dg.InputError, match="image_attention: found 'full'; give one of sliding, everywhere, causal"
    ):
        mlx_dg.load("demo", image_attention="full")  # type: ignore[arg-type]
    assert mlx_dg.load("demo", image_attention="causal")[0].image_attention == "causal"
