"""`mlx_dg doctor` on Macs of several kinds, and the recipes that it says to fit."""

from __future__ import annotations

import platform
import shutil
import sys
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlx.core as mx
import mlx_lm.models.switch_layers  # noqa: F401 (imported before the platform is another)
import pytest
from mlx.utils import tree_flatten
from support.examining import doctor, facts, findings

from mlx_diffusiongemma.bench.synthetic import quantized_skeleton
from mlx_diffusiongemma.config.released import real_config
from mlx_diffusiongemma.console.tables import size
from mlx_diffusiongemma.converter.memory import longest_prompt, recipe_weight_bytes
from mlx_diffusiongemma.converter.recipes import RECIPES
from mlx_diffusiongemma.doctor import memory, system
from mlx_diffusiongemma.engine.memory import memory_needed
from mlx_diffusiongemma.macs import gpu_limit

# --- the answers of a Mac -----------------------------------------------------------------------------------

ANSWERS = {
    "sw_vers -productVersion": "15.6.1",
    "sysctl -n machdep.cpu.brand_string": "Apple M4 Pro",
    "sysctl -n sysctl.proc_translated": "0",
    "sysctl -n iogpu.wired_limit_mb": "0",
    "system_profiler SPDisplaysDataType": "  Chipset Model: Apple M4 Pro\n  Total Number of Cores: 20\n",
    "pmset -g": "System-wide power settings:\nCurrently in use:\n sleep  1\n lowpowermode         0\n",
}


def wired(share: float, gigabytes: int = 24) -> str:
    """Return a share of what macOS lets a GPU have by default, in MiB."""
    return str(round(share * gpu_limit(gigabytes) / 2**20))


def mac(
    monkeypatch: pytest.MonkeyPatch, values: dict[str, str], gigabytes: int = 24, machine: str = "arm64"
) -> None:
    device_info = {
        "resource_limit": 499000,
        "max_buffer_length": gigabytes * 2**30 // 16 * 9,
        "architecture": "applegpu_g16s",
        "memory_size": gigabytes * 2**30,
        "max_recommended_working_set_size": gpu_limit(gigabytes),
        "device_name": "Apple M4 Pro",
    }
    monkeypatch.setattr(platform, "system", lambda: "Darwin")
    monkeypatch.setattr(platform, "machine", lambda: machine)
    monkeypatch.setattr(system, "ask", lambda *command: (ANSWERS | values).get(" ".join(command)))
    monkeypatch.setattr(mx, "device_info", lambda *_: device_info)
    monkeypatch.setattr(mx, "default_device", lambda: mx.Device(mx.gpu))
    monkeypatch.setattr(mx.metal, "is_available", lambda: True)


def test_a_mac_that_is_well(monkeypatch: pytest.MonkeyPatch) -> None:
    mac(monkeypatch, {})
    result = doctor(monkeypatch, "Versions", "Device", "Memory")
    assert result.exit_code == 0
    assert result.stdout.endswith("### Verdict\n\nno problem found\n")
    weights = recipe_weight_bytes(real_config())["mixed-4bit"]
    expected = {
        "system": "macOS 15.6.1, arm64",
        "chip": "Apple M4 Pro",
        "GPU cores": "20",
        "architecture": "applegpu_g16s",
        "default device": "gpu",
        "Metal": "available",
        "memory": "25.77 GB",
        "recommended working set": size(gpu_limit(24)),
        "MLX may use": size(gpu_limit(24)),
        "largest buffer": "14.50 GB",
        "iogpu.wired_limit_mb": "0, set by macOS",
        "low power mode": "off",
    }
    values = facts(result)
    assert {name: values[name] for name in expected} == expected
    assert values["bf16"].split("  ")[-1] == "does not fit"
    longest = longest_prompt(real_config(), weights, gpu_limit(24), 1024)
    assert values["mixed-4bit"].split() == ["15.42", "GB", f"{longest:,}"]


LIMIT = "sysctl -n iogpu.wired_limit_mb"


@pytest.mark.parametrize(("values", "gigabytes", "note"), [
    ({"pmset -g": " lowpowermode 1\n"}, 24, "low power mode is on"),
    ({"pmset -g": " powermode            1"}, 24, "low power mode is on"),
    ({"pmset -g": " powermode            2"}, 24, None),  # high power
    ({LIMIT: wired(0.94)}, 24, f"iogpu.wired_limit_mb is {wired(0.94)}"),
    ({LIMIT: wired(0.97)}, 24, None),  # in MB of 10**6 bytes it would be less than 0.95
    ({LIMIT: wired(1.2)}, 24, None),
    ({}, 16, "no recipe of the 26B model fits"),
])  # fmt: skip
def test_a_mac_with_and_without_a_note(
    values: dict[str, str], gigabytes: int, note: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    mac(monkeypatch, values, gigabytes)
    result = doctor(monkeypatch, "Device", "Memory")
    notes = findings(result, "note")
    assert len(notes) == (note is not None)
    assert all(line.startswith(f"- note: {note}") for line in notes)
    assert result.stdout.endswith("\nno problem found\n")
    assert facts(result)["low power mode"] == ("on" if note == "low power mode is on" else "off")


def without_mlx(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mlx.core", None)


@pytest.mark.parametrize("break_", [lambda patch: patch.setattr(mx.metal, "is_available", bool), without_mlx])
def test_python_under_rosetta_is_one_problem(break_: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    mac(monkeypatch, {"sysctl -n sysctl.proc_translated": "1"}, machine="x86_64")
    break_(monkeypatch)
    result = doctor(monkeypatch, "Versions", "Device")
    assert result.exit_code == 1
    (line,) = findings(result, "problem")
    assert "Rosetta" in line


def test_another_mlx_than_the_installed_one_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    mac(monkeypatch, {})
    installed = metadata.version("mlx")
    for imported, problems in [("0.1.2", 1), (f"{installed}.dev1", 0)]:
        monkeypatch.setattr(mx, "__version__", imported)
        values = findings(doctor(monkeypatch, "Device"), "problem")
        assert len(values) == problems
        assert all(f"mlx 0.1.2 is imported, but {installed} is installed" in line for line in values)


def test_the_disk_is_that_of_the_hub_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    mac(monkeypatch, {})
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "not" / "made"))
    usage = {tmp_path: SimpleNamespace(total=7e9, used=5e9, free=2e9)}
    monkeypatch.setattr(shutil, "disk_usage", usage.__getitem__)
    assert facts(doctor(monkeypatch, "Device"))["free disk at the hub cache"] == "2.00 GB"


def test_no_metal_is_a_problem_and_no_answers_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    mac(monkeypatch, dict.fromkeys(ANSWERS, ""))
    assert doctor(monkeypatch, "Versions", "Device").exit_code == 0
    monkeypatch.setattr(mx.metal, "is_available", lambda: False)
    first, *_ = findings(doctor(monkeypatch), "problem")
    assert first.startswith("- problem: Metal cannot be used: this build of MLX has no")


def test_commands_that_are_missing_or_fail_or_hang_give_none(monkeypatch: pytest.MonkeyPatch) -> None:
    assert system.is_mac() or system.ask("echo", "yes") is None
    monkeypatch.setattr(platform, "system", lambda: "Darwin")
    monkeypatch.setattr(system, "_SECONDS", 0.2)
    assert system.ask("echo", " yes") == "yes"
    assert [system.ask(*c) for c in (("no-such-command",), ("false",), ("sleep", "30"))] == [None] * 3


# --- memory -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [mx.bfloat16, mx.float32])
def test_recipes_are_shown_for_the_dtype_in_use(dtype: mx.Dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    usable = 40 * 10**9
    monkeypatch.setattr(memory, "default_dtype", lambda: dtype)
    monkeypatch.setattr(memory, "usable_memory", lambda: usable)
    result = doctor(monkeypatch, "Memory")
    nbytes = recipe_weight_bytes(real_config(), str(dtype).rpartition(".")[2])["mixed-4bit"]
    longest = longest_prompt(real_config(), nbytes, usable, 1024, dtype.size)
    assert facts(result)["mixed-4bit"].split() == [*size(nbytes).split(), f"{longest:,}"]
    assert "encoded 2048 tokens at a time: a smaller prefill_step_size gives room" in result.stdout


def test_unknown_memory_is_not_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "usable_memory", lambda: None)
    result = doctor(monkeypatch, "Memory")
    assert "    unknown: MLX does not say how much memory this GPU has\n" in result.stdout
    assert result.stdout.endswith("\nno problem found\n")


@pytest.mark.parametrize("itemsize", [2, 4])
@pytest.mark.parametrize("new", [1, 256, 1000])
def test_the_longest_prompt_fits_and_no_longer_one(new: int, itemsize: int) -> None:
    config = real_config()
    for usable in (4 * 10**9, 6 * 10**9, 10**10):
        found = longest_prompt(config, 10**9, usable, new, itemsize)
        assert found > 0
        assert memory_needed(config, 10**9, found, new, 2048, itemsize) <= usable
        assert memory_needed(config, 10**9, found + 1, new, 2048, itemsize) > usable
    assert longest_prompt(config, 10**9, 10**9, new, itemsize) == 0
    canvases = -(-new // 256)
    assert longest_prompt(config, 10**9, 10**12, new, itemsize) == 262144 - 256 * canvases


@pytest.mark.parametrize("dtype", [mx.bfloat16, mx.float32])
def test_weights_by_recipe_are_what_mlx_would_hold(dtype: mx.Dtype) -> None:
    parameters: Any = tree_flatten(quantized_skeleton(real_config(), dtype).parameters())
    found = recipe_weight_bytes(real_config(), str(dtype).rpartition(".")[2])
    assert list(found) == list(RECIPES)
    assert found["mixed-4bit"] == sum(array.nbytes for _, array in parameters)
