"""Tables, conversion.json, memory on Macs, and `mlx_dg info`, which shows them."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from mlx.utils import tree_flatten
from support.converting import quantized

import mlx_diffusiongemma
from mlx_diffusiongemma.checkpoint.weights import tensor_infos
from mlx_diffusiongemma.cli import main
from mlx_diffusiongemma.config.model import ModelConfig
from mlx_diffusiongemma.config.released import real_config
from mlx_diffusiongemma.converter import report
from mlx_diffusiongemma.converter.memory import gpu_limit, mac_table
from mlx_diffusiongemma.converter.planning import Plan, plan
from mlx_diffusiongemma.converter.recipes import choose
from mlx_diffusiongemma.converter.safetensors_source import SafetensorsSource
from mlx_diffusiongemma.converter.source import SourceTensor
from mlx_diffusiongemma.engine.memory import memory_needed
from mlx_diffusiongemma.errors import ConfigError


def real_plan(recipe: str = "mixed-4bit") -> Plan:
    """Return the plan of the 26B checkpoint's text tensors in bfloat16, from shapes alone."""
    model = mlx_diffusiongemma.DiffusionGemma(real_config())
    parameters: Any = tree_flatten(model.parameters())  # lazy: no weight is ever made
    tensors = {name: SourceTensor(name, "BF16", tuple(x.shape)) for name, x in parameters}
    return plan(tensors, recipe, choose(recipe))


def info(*arguments: str | Path) -> Result:
    result = CliRunner().invoke(main, ["info", *map(str, arguments)])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def lines(text: str) -> dict[str, str]:
    """First word of each line of a table -> the others, one space between them."""
    words = [line.split() for line in text.splitlines() if line]
    return {first: " ".join(rest) for first, *rest in words}


# --- tables -------------------------------------------------------------------------------------------------


def test_the_plan_of_the_real_checkpoint() -> None:
    planned = real_plan()
    table = lines(report.plan_table(planned))
    assert planned.bytes_in == pytest.approx(50.5e9, rel=0.01)  # 51.65 GB with the vision tower
    assert table["experts"] == "4-bit affine g64 60 22,838.0 M 4.50 45.68 GB 12.85 GB"
    assert table["embedding"] == "8-bit affine g64 1 738.2 M 8.50 1.48 GB 0.78 GB"
    assert table["router"].startswith("unquantized 30 ")
    assert table["norms"].startswith("unquantized ")
    assert table["total"].endswith(f"{planned.bytes_in / 1e9:.2f} GB {planned.bytes_out / 1e9:.2f} GB")


@pytest.mark.parametrize("recipe", ["mixed-4bit", "nvfp4", "bf16"])
def test_totals_are_what_the_files_hold(source: Path, tmp_path: Path, recipe: str) -> None:
    infos = tensor_infos(source)
    planned = plan(SafetensorsSource(source).tensors(), recipe, choose(recipe), "bfloat16")
    written = report.record(planned, {}, "demo", None, None)["classes"].values()
    assert sum(c["tensors"] for c in written) == len(infos)
    assert sum(c["bytes_in"] for c in written) == sum(i.nbytes for i in infos.values())
    target = mlx_diffusiongemma.convert(source, tmp_path / "out", recipe=recipe, dtype="bfloat16")
    assert sum(c["bytes_out"] for c in written) == sum(i.nbytes for i in tensor_infos(target).values())
    assert sum(c["parameters"] for c in written) == sum(math.prod(i.shape) for i in infos.values())


VERIFICATION: dict[str, float] = {"rms_logit_error": 0.0147, "argmax_agreement": 0.984, "positions": 512}
VERIFICATION["entropy_difference"] = 0.0021


def test_a_record_survives_json_and_shows_what_was_measured(source: Path) -> None:
    planned = plan(SafetensorsSource(source).tensors(), "mixed-4bit", choose())
    errors = {"experts": 0.0712, "attention": 0.0051}
    record = report.record(planned, errors, "google/model", "main", VERIFICATION)
    assert json.loads(json.dumps(record, allow_nan=False)) == record
    assert (record["format"], record["version"]) == (1, mlx_diffusiongemma.__version__)
    assert record["verification"] == VERIFICATION
    text = report.record_table(record)
    first, *_, last = text.splitlines()
    assert first == f"recipe mixed-4bit, from google/model at main, by mlx_dg {record['version']}"
    assert last.startswith("against its source, at 512 canvas positions: RMS logit error 0.0147, ")
    assert last.endswith("argmax agreement 98.4%, mean entropy difference 0.0021 nats")
    assert lines(text)["experts"].endswith("MB 7.12%")
    assert lines(text)["norms"].endswith("MB")


def test_nan_becomes_null(source: Path) -> None:
    """JSON has no NaN; weights may with --allow-nonfinite."""
    planned = plan(SafetensorsSource(source).tensors(), "mixed-4bit", choose())
    verification = VERIFICATION | {"rms_logit_error": math.nan, "entropy_difference": math.inf}
    record = report.record(planned, {"experts": math.nan}, "demo", None, verification)
    json.dumps(record, allow_nan=False)
    assert record["classes"]["experts"]["rms_error"] is None
    assert "RMS logit error not finite, argmax agreement 98.4%" in report.record_table(record)


# --- memory -------------------------------------------------------------------------------------------------


def test_which_macs_hold_the_real_model() -> None:
    config, weights = real_config(), real_plan().bytes_out
    table = lines(mac_table(config, weights))
    fits = {"16": "no no", "24": "yes no"} | dict.fromkeys(("32", "36", "48", "64"), "yes yes")
    assert {mac: " ".join(row.split()[-2:]) for mac, row in table.items() if mac.isdigit()} == fits
    needed = [memory_needed(config, weights, tokens, 256, 2048) / 1e9 for tokens in (8192, 32768)]
    assert table["needed"] == "{:.2f} GB {:.2f} GB".format(*needed)


def test_the_limits_of_macos() -> None:
    """As Metal recommends, by users' reports, in units of 10**6 bytes."""
    reported = {16: 12713.12, 24: 19069.67, 32: 26800.60, 36: 30150.67, 48: 40200.90, 64: 55662.79}
    reported[128] = 115448.73
    assert {mac: gpu_limit(mac) / 1e6 for mac in reported} == pytest.approx(reported, abs=0.02)


def test_a_context_beyond_the_model_is_not_promised(source: Path) -> None:
    assert "4k context" in mac_table(ModelConfig.load(source), 0)
    assert "8k" not in mac_table(ModelConfig.load(source), 0)


# --- mlx_dg info --------------------------------------------------------------------------------------------


def test_info_of_a_checkpoint_is_its_plan(source: Path) -> None:
    result = info(source, "--recipe", "4bit", "--set", "embedding=16")
    assert result.exit_code == 0
    planned = plan(SafetensorsSource(source).tensors(), "4bit", choose("4bit", overrides=["embedding=16"]))
    loaded = planned.bytes_out - planned.summary()["vision"].bytes_out
    expected = f"{report.plan_table(planned)}\n\n{mac_table(ModelConfig.load(source), loaded)}\n"
    assert result.stdout == expected


def test_info_of_a_conversion_is_its_record(source: Path, tmp_path: Path) -> None:
    target = mlx_diffusiongemma.convert(source, tmp_path / "out", verify=True)
    record = json.loads((target / "conversion.json").read_text())
    assert record["verification"]["positions"] == 32
    result = info(target)
    assert result.exit_code == 0
    assert result.stdout.startswith(report.record_table(record) + "\n\nMac ")
    errors = {kind: c["rms_error"] for kind, c in record["classes"].items() if c["quantization"]}
    assert 0.05 < errors["experts"] < 0.12
    assert 0.001 < errors["attention"] < 0.01


def test_info_of_a_conversion_by_another_tool_counts_its_headers(source: Path, tmp_path: Path) -> None:
    """Two modes, one class divided between them. An override without `mode` means affine."""
    how, override = {"group_size": 32, "bits": 4, "mode": "mxfp4"}, {"group_size": 64, "bits": 8}
    target = quantized(source, tmp_path / "other", how, override, "q_proj")
    result = info(target)
    assert result.exit_code == 0
    table = lines(result.stdout)
    assert table["class"] == "stored as tensors parameters bits/weight out"
    assert table["experts"].startswith("4-bit mxfp4 g32 12 ")
    assert table["attention"].startswith("4-bit mxfp4 g32 / 8-bit affine g64 22 ")
    before = plan(SafetensorsSource(source).tensors(), "bf16", {}).summary()
    for kind in ("experts", "attention", "embedding"):
        assert f" {before[kind].parameters / 1e6:,.1f} M " in table[kind]
    assert " M 4.25 " in table["experts"]
    total = sum(i.nbytes for i in tensor_infos(target).values())
    assert table["total"].endswith(f" {total / 1e6:.2f} MB")


STRANGE: list[tuple[dict[str, Any] | str, str]] = [
    ({"format": 2}, "format 2 is unknown, only 1; update"),
    ({"format": "\x1b[2J"}, r"format '\x1b[2J' is unknown"),
    ({"classes": None}, "not the record of a conversion"),
    ({"classes": {"experts": {}}}, "not the record of a conversion"),
    ({"recipe": "\x1b[2J"}, "not the record of a conversion"),
    ({"source": ["a"]}, "not the record of a conversion"),
    ({"verification": {"positions": math.inf}}, "not the record of a conversion"),
    ({"verification": 3}, "not the record of a conversion"),
    *((text, "conversion.json") for text in ("", "[]", "3", "null", "{", '{"format": 1}')),
]


def test_a_strange_record_is_one_line(source: Path, tmp_path: Path) -> None:
    target = mlx_diffusiongemma.convert(source, tmp_path / "out")
    record = json.loads((target / "conversion.json").read_text())
    for change, message in STRANGE:
        text = change if isinstance(change, str) else json.dumps(record | change)
        (target / "conversion.json").write_text(text)
        result = info(target)
        assert (result.exit_code, result.stdout) == (2, "")
        (line,) = result.stderr.splitlines()
        assert line.isprintable()
        assert message in line


def test_info_refuses_what_it_cannot_know(source: Path, tmp_path: Path) -> None:
    assert info(tmp_path / "nowhere").exit_code == 2
    assert info(source, "--recipe", "2bit").exit_code == 2
    (source / "config.json").unlink()
    result = info(source)
    assert result.exit_code == 2
    assert "config.json" in result.stderr
    with pytest.raises(ConfigError):
        report.of_conversion(source)
