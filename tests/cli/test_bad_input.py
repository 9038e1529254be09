"""Bad input ends in one clear line on stderr and exit status 2; nothing is printed or written elsewhere."""

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

import mlx_dg
from mlx_diffusiongemma.cli import main

DEMO = Path(mlx_dg.__file__).parent / "mlx_diffusiongemma" / "demo" / "checkpoint"


def complaint(*arguments: str, stdin: bytes | None = None) -> str:
    """The one line that `mlx_dg` complains with."""
    result = CliRunner().invoke(main, arguments, input=stdin)
    assert isinstance(result.exception, SystemExit), result.exception
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    (line,) = [line for line in result.stderr.splitlines() if "bundled demo" not in line]
    assert line.startswith("mlx_dg: error: ")
    assert line == line.strip()
    return line.removeprefix("mlx_dg: error: ")


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A copy of the demo checkpoint to be damaged."""
    copy = tmp_path / "checkpoint"
    copy.mkdir()
    for file in DEMO.iterdir():
        shutil.copy(file, copy)
    return copy


def edit_json(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


def edit_weights(checkpoint: Path, change: Callable[[dict[str, mx.array]], Any]) -> None:
    (file,) = checkpoint.glob("*.safetensors")
    loaded = mx.load(str(file))
    assert isinstance(loaded, dict)
    weights = {name: mx.array(tensor) for name, tensor in loaded.items()}
    change(weights)
    mx.eval(weights)
    mx.save_safetensors(str(file), weights)


# --- checkpoints --------------------------------------------------------------------------------------------


def test_missing_directory(tmp_path: Path) -> None:
    missing = tmp_path / "nowhere"
    assert str(missing) in complaint("generate", "--model", str(missing), "hi")
    assert str(missing) in complaint("convert", str(missing), "--mlx-path", str(tmp_path / "out"))
    assert not list(tmp_path.iterdir())


def test_directory_without_a_model(tmp_path: Path) -> None:
    assert "config.json" in complaint("generate", "--model", str(tmp_path), "hi")


@pytest.mark.parametrize("kept", [0, 5, 1000, -1])
def test_truncated_weights(checkpoint: Path, kept: int) -> None:
    (file,) = checkpoint.glob("*.safetensors")
    file.write_bytes(file.read_bytes()[:kept])
    assert file.name in complaint("generate", "--model", str(checkpoint), "hi")


def test_weights_that_are_something_else(checkpoint: Path) -> None:
    (file,) = checkpoint.glob("*.safetensors")
    file.write_text("version https://git-lfs.github.com/spec/v1\n" * 4)
    assert file.name in complaint("generate", "--model", str(checkpoint), "hi")


def test_unreadable_weights(checkpoint: Path) -> None:
    (file,) = checkpoint.glob("*.safetensors")
    file.unlink()
    file.mkdir()  # unreadable for root too
    assert file.name in complaint("generate", "--model", str(checkpoint), "hi")


def test_no_weights(checkpoint: Path) -> None:
    (file,) = checkpoint.glob("*.safetensors")
    file.unlink()
    assert "safetensors" in complaint("generate", "--model", str(checkpoint), "hi")


def test_missing_tensors_are_named_ten_at_most(checkpoint: Path) -> None:
    def drop_experts(weights: dict[str, mx.array]) -> None:
        for name in [name for name in weights if "norm" in name]:
            del weights[name]

    edit_weights(checkpoint, drop_experts)
    line = complaint("generate", "--model", str(checkpoint), "hi")
    assert "missing" in line
    assert line.count("norm.weight") <= 10
    assert " more" in line


def test_extra_tensors_are_named(checkpoint: Path) -> None:
    edit_weights(checkpoint, lambda weights: weights.update(surprise=mx.zeros((2,))))
    assert "surprise" in complaint("generate", "--model", str(checkpoint), "hi")


def test_wrong_shape(checkpoint: Path) -> None:
    name = "model.decoder.norm.weight"
    edit_weights(checkpoint, lambda weights: weights.update({name: mx.zeros((3,))}))
    line = complaint("generate", "--model", str(checkpoint), "hi")
    assert name in line
    assert "[3]" in line


def test_unknown_model_type(checkpoint: Path) -> None:
    edit_json(checkpoint / "config.json", lambda config: config.update(model_type="llama"))
    line = complaint("generate", "--model", str(checkpoint), "hi")
    assert "'llama'" in line
    assert "diffusion_gemma" in line


@pytest.mark.parametrize(
    "size", ["hidden_size", "num_experts", "layer_types", "vocab_size", "sliding_window"]
)
def test_config_without_a_needed_size(checkpoint: Path, size: str) -> None:
    edit_json(checkpoint / "config.json", lambda config: config["text_config"].pop(size))
    assert f"text_config.{size} is missing" in complaint("generate", "--model", str(checkpoint), "hi")


def test_config_that_is_no_json(checkpoint: Path) -> None:
    (checkpoint / "config.json").write_text('{"model_type": ')
    assert "config.json" in complaint("generate", "--model", str(checkpoint), "hi")


def test_tokenizer_missing(checkpoint: Path) -> None:
    (checkpoint / "tokenizer.json").unlink()
    assert "tokenizer.json" in complaint("generate", "--model", str(checkpoint), "hi")


def test_convert_writes_nothing_of_a_bad_checkpoint(checkpoint: Path, tmp_path: Path) -> None:
    edit_weights(checkpoint, lambda weights: weights.pop("model.decoder.norm.weight"))
    before = sorted(tmp_path.iterdir())
    line = complaint("convert", str(checkpoint), "--mlx-path", str(tmp_path / "out"))
    assert "model.decoder.norm.weight" in line
    assert sorted(tmp_path.iterdir()) == before


def test_convert_overwrites_nothing(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("precious")
    assert str(tmp_path) in complaint("convert", "demo", "--mlx-path", str(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


# --- prompts and settings -----------------------------------------------------------------------------------


@pytest.mark.parametrize("prompt", ["", "  \n "])
def test_empty_prompt(prompt: str) -> None:
    assert "empty" in complaint("generate", prompt)


def test_empty_standard_input() -> None:
    assert "empty" in complaint("generate", "-", stdin=b"\n")


def test_standard_input_that_is_not_utf8() -> None:
    line = complaint("generate", "-", stdin=b"caf\xe9 au lait")
    assert "UTF-8" in line
    assert "0xe9 at offset 3" in line


def test_argument_that_is_not_utf8() -> None:
    """Through a real process: only there the operating system's bytes become an argument."""
    command = [sys.executable.encode(), b"-m", b"mlx_diffusiongemma", b"generate"]
    for arguments in ([b"caf\xe9"], [b"hi", b"--system", b"caf\xe9"]):
        done = subprocess.run(command + arguments, capture_output=True, check=False)
        (line,) = done.stderr.decode().splitlines()
        assert "is not UTF-8" in line
        assert (done.returncode, done.stdout) == (2, b"")


def test_prompt_beyond_the_context_limit(checkpoint: Path) -> None:
    edit_json(checkpoint / "config.json", lambda c: c["text_config"].update(max_position_embeddings=200))
    line = complaint("generate", "--model", str(checkpoint), "hello " * 300)
    assert "200" in line


@pytest.mark.parametrize(
    ("option", "value", "named"),
    [
        ("--max-new-tokens", "0", "from 1 to"),
        ("--max-new-tokens", "-3", "from 1 to"),
        ("--max-denoising-steps", "0", "from 1 to"),
        ("--entropy-bound", "-0.5", "from 0 to"),
        ("--entropy-bound", "nan", "from 0 to"),
    ],
)
def test_value_out_of_range_names_the_range(option: str, value: str, named: str) -> None:
    line = complaint("generate", option, value, "hi")
    assert option[2:].replace("-", "_") in line
    assert named in line


def test_unknown_setting() -> None:
    """On the command line this is a usage error; from Python it is a typed one (test_habits has more)."""
    with pytest.raises(mlx_dg.InputError, match="unknown setting 'entropy_bond'; did you mean entropy_bound"):
        mlx_dg.Settings().override(entropy_bond=0.1)


@pytest.mark.parametrize("seed", ["-1", str(2**80)])
def test_seed_out_of_range(seed: str) -> None:
    assert "seed" in complaint("generate", "--seed", seed, "hi")


# --- damaged checkpoints, in more ways ----------------------------------------------------------------------


def write_safetensors(path: Path, header: bytes, data: bytes = b"") -> None:
    path.write_bytes(len(header).to_bytes(8, "little") + header + data)


@pytest.mark.parametrize(
    ("header", "data", "found"),
    [
        (b"[" * 100_000, b"", "not JSON"),
        (b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": ["0", "4"]}}', b"1234", "not understood"),
        (b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 8]}}', b"1234", "expected 4 bytes"),
        (b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}', b"12345", "cover 4 of 5 bytes"),
        (b'{"a\\nb": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}', b"1234", "unprintable"),
        (
            b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]},'
            b' "b": {"dtype": "F32", "shape": [1], "data_offsets": [2, 6]}}',
            b"12345678",
            "overlap",
        ),
        (b"{}", b"", "no tensors"),
    ],
)
def test_bad_safetensors_headers(checkpoint: Path, header: bytes, data: bytes, found: str) -> None:
    (file,) = checkpoint.glob("*.safetensors")
    write_safetensors(file, header, data)
    assert found in complaint("generate", "--model", str(checkpoint), "hi")


@pytest.mark.parametrize("name", ["weights.bin", "../model.safetensors", "x" * 5000, "missing.safetensors"])
def test_an_index_that_names_what_is_no_shard(checkpoint: Path, name: str) -> None:
    (checkpoint / "weights.bin").write_bytes(b"")
    index = {"weight_map": {"model.decoder.norm.weight": name}}
    (checkpoint / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "which is not a safetensors file" in complaint("generate", "--model", str(checkpoint), "hi")


def test_integer_weights(checkpoint: Path) -> None:
    name = "model.decoder.norm.weight"
    edit_weights(checkpoint, lambda weights: weights.update({name: weights[name].astype(mx.int32)}))
    assert f"{name} is I32, not floating point" in complaint("generate", "--model", str(checkpoint), "hi")


def test_integers_in_what_is_not_loaded_do_no_harm(checkpoint: Path) -> None:
    """Vision towers may keep index buffers."""
    name = "model.encoder.vision_tower.position_ids"
    edit_weights(checkpoint, lambda weights: weights.update({name: mx.arange(4)}))
    result = CliRunner().invoke(main, ["generate", "--model", str(checkpoint), "--seed", "1", "hi"])
    assert result.exit_code == 0, result.stderr


def test_a_tokenizer_larger_than_the_model(checkpoint: Path) -> None:
    edit_json(checkpoint / "config.json", lambda values: values["text_config"].update(vocab_size=600))
    line = complaint("generate", "--model", str(checkpoint), "hi")
    assert "the tokenizer has 704 tokens, the model 600" in line


@pytest.mark.parametrize(
    "block",
    [
        {"group_size": 0, "bits": 4},
        {"group_size": 64, "bits": "4"},
        {"group_size": 64, "bits": 4, "mode": []},
    ],
)
def test_impossible_quantization(tmp_path: Path, block: dict[str, Any]) -> None:
    converted = mlx_dg.convert("demo", tmp_path / "converted")
    edit_json(converted / "config.json", lambda values: values.update(quantization=block))
    assert "MLX has no such quantization" in complaint("generate", "--model", str(converted), "hi")


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ({"per_layer_config": {"3": []}}, "per_layer_config.3 must be an object"),
        ({"per_layer_config": {"x": {}}}, "has key 'x'; layers are 0 to 3"),
        ({"hidden_size": 10**12}, "hidden_size must be a positive integer"),
        ({"rms_norm_eps": 10**400}, "rms_norm_eps must be a number"),
        ({"final_logit_softcapping": 0}, "final_logit_softcapping must be above 0"),
        ({"use_bidirectional_attention": "all"}, "only a causal encoder exists"),
    ],
)
def test_impossible_configurations(checkpoint: Path, change: dict[str, Any], found: str) -> None:
    edit_json(checkpoint / "config.json", lambda values: values["text_config"].update(change))
    assert found in complaint("generate", "--model", str(checkpoint), "hi")


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ({"sampler_config": "eb"}, "sampler_config must be an object"),
        ({"sampler_config": {"_cls_name": "Other", "entropy_bound": 0.1}}, "sampler_config is a Other"),
        ({"max_denoising_steps": 10**400}, "max_denoising_steps must be an integer from 1 to 10000"),
    ],
)
def test_impossible_generation_configurations(checkpoint: Path, change: dict[str, Any], found: str) -> None:
    edit_json(checkpoint / "generation_config.json", lambda values: values.update(change))
    assert found in complaint("generate", "--model", str(checkpoint), "hi")


@pytest.mark.parametrize("model", ["", "a b/c", "foo--bar/x", "~nosuchuser/x", "x" * 5000])
def test_names_that_no_model_can_have(model: str) -> None:
    complaint("generate", "--model", model, "hi")


def test_the_offending_byte_is_named_behind_a_byte_order_mark() -> None:
    assert "byte 0xff at offset 5" in complaint("generate", "-", stdin=b"\xef\xbb\xbfab\xff")


@pytest.mark.parametrize("target", ["{file}/out", "{folder}/" + "x" * 300])
def test_convert_where_nothing_can_be_created(tmp_path: Path, target: str) -> None:
    (tmp_path / "file").write_text("")
    path = target.format(file=tmp_path / "file", folder=tmp_path)
    assert "cannot be created" in complaint("convert", "demo", "--mlx-path", path)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_convert_needs_a_tokenizer(checkpoint: Path, tmp_path: Path) -> None:
    (checkpoint / "tokenizer.json").unlink()
    assert "tokenizer.json" in complaint("convert", str(checkpoint), "--mlx-path", str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


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
    with pytest.raises(mlx_dg.InputError, match="model: found Tokenizer; pass both"):
        call(demo[1], demo[0], "Hello [[2]]")
