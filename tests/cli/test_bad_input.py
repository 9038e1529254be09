"""Bad input ends in one clear line on stderr and exit status 2; nothing is printed or written elsewhere.

tests/checkpoint and tests/config have more bad files.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from click.testing import CliRunner
from oracle import demo as bundled
from support.bad_weights import Damage, kept

import mlx_dg
from mlx_diffusiongemma.cli import main

WEIGHTS, NORM = "model.safetensors", "model.decoder.norm.weight"


def complaint(*arguments: str, stdin: bytes | None = None) -> str:
    """The one line that `mlx_dg` complains with."""
    result = CliRunner().invoke(main, arguments, input=stdin)
    assert isinstance(result.exception, SystemExit), result.exception
    assert (result.exit_code, result.stdout) == (2, "")
    (line,) = [line for line in result.stderr.splitlines() if "bundled demo" not in line]
    assert line.startswith("mlx_dg: error: ")
    assert line == line.strip()
    return line.removeprefix("mlx_dg: error: ")


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A copy of the demo checkpoint to be damaged."""
    return Path(shutil.copytree(bundled.DIRECTORY, tmp_path / "checkpoint"))


# --- checkpoints --------------------------------------------------------------------------------------------


def edited(name: str, change: Callable[[dict[str, Any]], Any]) -> Damage:
    def damage(checkpoint: Path) -> None:
        values = json.loads((checkpoint / name).read_text())
        change(values)
        (checkpoint / name).write_text(json.dumps(values))

    return damage


def config(**changes: Any) -> Damage:
    return edited("config.json", lambda values: values["text_config"].update(changes))


def generation_config(**changes: Any) -> Damage:
    return edited("generation_config.json", lambda values: values.update(changes))


def weights(change: Callable[[dict[str, mx.array]], Any]) -> Damage:
    def damage(checkpoint: Path) -> None:
        loaded: Any = mx.load(str(checkpoint / WEIGHTS))
        tensors = {name: mx.array(tensor) for name, tensor in loaded.items()}
        change(tensors)
        mx.eval(tensors)
        mx.save_safetensors(str(checkpoint / WEIGHTS), tensors)

    return damage


LFS_POINTER = "version https://git-lfs.github.com/spec/v1\n" * 4


@pytest.mark.parametrize(("damage", "found"), [
    (lambda path: (path / "config.json").unlink(), "config.json"),
    (lambda path: (path / "config.json").write_text('{"model_type": '), "config.json"),
    (lambda path: (path / "tokenizer.json").unlink(), "tokenizer.json"),
    (lambda path: (path / WEIGHTS).unlink(), "safetensors"),
    (lambda path: (path / WEIGHTS).write_text(LFS_POINTER), WEIGHTS),
    (kept(1000), WEIGHTS),
    (weights(lambda tensors: tensors.update(surprise=mx.zeros((2,)))), "surprise"),
    (weights(lambda tensors: tensors.update({NORM: mx.zeros((3,))})), f"{NORM} is [3]"),
    (
        weights(lambda tensors: tensors.update({NORM: tensors[NORM].astype(mx.int32)})),
        f"{NORM} is I32, not floating point",
    ),
    (edited("config.json", lambda values: values.update(model_type="llama")), "'diffusion_gemma'"),
    (
        edited("config.json", lambda values: values["text_config"].pop("sliding_window")),
        "text_config.sliding_window is missing",
    ),
    (config(vocab_size=600), "the tokenizer has 704 tokens, the model 600"),
    (config(per_layer_config={"3": []}), "per_layer_config.3 must be an object"),
    (config(per_layer_config={"x": {}}), "has key 'x'; layers are 0 to 3"),
    (config(hidden_size=10**12), "hidden_size must be an integer from 1 to"),
    (config(rms_norm_eps=10**400), "rms_norm_eps must be a number"),
    (config(final_logit_softcapping=0), "final_logit_softcapping must be above 0"),
    (config(use_bidirectional_attention="all"), "only a causal encoder exists"),
    (generation_config(sampler_config="eb"), "sampler_config must be an object"),
    (generation_config(sampler_config={"_cls_name": "Other"}), "sampler_config is a Other"),
    (generation_config(max_denoising_steps=10**400), "max_denoising_steps must be an integer from 1 "),
])  # fmt: skip
def test_damaged_checkpoints(checkpoint: Path, damage: Damage, found: str) -> None:
    damage(checkpoint)
    assert found in complaint("generate", "--model", str(checkpoint), "hi")


def test_missing_tensors_are_named_ten_at_most(checkpoint: Path) -> None:
    weights(lambda tensors: [tensors.pop(name) for name in [*tensors] if "norm" in name])(checkpoint)
    line = complaint("generate", "--model", str(checkpoint), "hi")
    assert "missing" in line
    assert line.count("norm.weight") <= 10
    assert " more" in line


def test_missing_directory(tmp_path: Path) -> None:
    missing = tmp_path / "nowhere"
    assert str(missing) in complaint("generate", "--model", str(missing), "hi")
    assert str(missing) in complaint("convert", str(missing), "--mlx-path", str(tmp_path / "out"))
    assert not list(tmp_path.iterdir())


def test_integers_in_what_is_not_loaded_do_no_harm(checkpoint: Path) -> None:
    """Vision towers may keep index buffers."""
    weights(lambda tensors: tensors.update({"model.encoder.vision_tower.ids": mx.arange(4)}))(checkpoint)
    result = CliRunner().invoke(main, ["generate", "--model", str(checkpoint), "--seed", "1", "hi"])
    assert result.exit_code == 0, result.stderr


@pytest.mark.parametrize("changes", [{"group_size": 0}, {"bits": "4"}, {"mode": []}])
def test_impossible_quantization(tmp_path: Path, changes: dict[str, Any]) -> None:
    converted = mlx_dg.convert("demo", tmp_path / "converted")
    block = {"group_size": 64, "bits": 4} | changes
    edited("config.json", lambda values: values.update(quantization=block))(converted)
    assert "MLX has no such quantization" in complaint("generate", "--model", str(converted), "hi")


@pytest.mark.parametrize("model", ["", "a b/c", "foo--bar/x", "~nosuchuser/x", "x" * 5000])
def test_names_that_no_model_can_have(model: str) -> None:
    complaint("generate", "--model", model, "hi")


# --- prompts and settings -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("arguments", "stdin", "found"), [
    ([""], None, "empty"),
    (["  \n "], None, "empty"),
    (["-"], b"\n", "empty"),
    (["-"], b"caf\xe9 au lait", "standard input is not UTF-8 (byte 0xe9 at offset 3"),
    (["-"], b"\xef\xbb\xbfab\xff", "byte 0xff at offset 5"),
    (["--max-new-tokens", "0", "hi"], None, "max_new_tokens must be an integer from 1 to"),
    (["--max-new-tokens", "-3", "hi"], None, "max_new_tokens must be an integer from 1 to"),
    (["--max-denoising-steps", "0", "hi"], None, "max_denoising_steps must be an integer from 1 to"),
    (["--entropy-bound", "-0.5", "hi"], None, "entropy_bound must be a number from 0 to"),
    (["--entropy-bound", "nan", "hi"], None, "entropy_bound must be a number from 0 to"),
    (["--seed", "-1", "hi"], None, "seed"),
    (["--seed", str(2**80), "hi"], None, "seed"),
])  # fmt: skip
def test_bad_prompts_and_values(arguments: list[str], stdin: bytes | None, found: str) -> None:
    assert found in complaint("generate", *arguments, stdin=stdin)


def test_prompt_beyond_the_context_limit(checkpoint: Path) -> None:
    config(max_position_embeddings=200)(checkpoint)
    assert "200" in complaint("generate", "--model", str(checkpoint), "hello " * 300)


def test_argument_that_is_not_utf8() -> None:
    """Through a real process: only there the operating system's bytes become an argument."""
    command = [sys.executable.encode(), b"-m", b"mlx_diffusiongemma", b"generate"]
    for arguments in ([b"caf\xe9"], [b"hi", b"--system", b"caf\xe9"]):
        done = subprocess.run(command + arguments, capture_output=True, check=False)
        (line,) = done.stderr.decode().splitlines()
        assert "is not UTF-8" in line
        assert (done.returncode, done.stdout) == (2, b"")


@pytest.mark.slow
def test_closed_standard_input_does_no_harm() -> None:
    command = f"{sys.executable} -m mlx_diffusiongemma generate --model demo --seed 1 hi <&-"
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.strip()


@pytest.mark.parametrize(
    "call", [mlx_dg.generate, mlx_dg.fill, lambda m, t, p: mlx_dg.generate_batch(m, t, [p])]
)
def test_a_name_in_place_of_a_model_is_refused(call: Any, demo: Any) -> None:
    with pytest.raises(mlx_dg.InputError, match=r"model: found str; pass both results of mlx_dg\.load"):
        call("demo", demo[1], "Hello [[2]]")
