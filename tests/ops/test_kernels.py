"""The Metal kernels as such: that they are taken, what they move, what tests of them would catch, and a whole
block on them. What they compute is tested beside the references, operation by operation."""

from __future__ import annotations

import importlib
import pkgutil
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from emulator import KernelFault
from ops import test_accept_and_renoise as acceptance_tests
from ops import test_row_statistics as row_tests
from ops import test_soft_embedding as soft_tests
from support.kernel_defects import PLANTED, planted
from support.kernel_paths import ON_METAL, plug_in_emulator, watched
from support.spies import spied

import mlx_dg
from mlx_diffusiongemma import ops
from mlx_diffusiongemma.errors import InputError
from mlx_diffusiongemma.ops import metal, row_statistics

pytestmark = pytest.mark.slow


def takes_a_kernel(tmp_path: Path) -> bool:
    """True if `row_statistics`, as it would run now, launches a kernel."""
    call = lambda x, u: list(row_statistics(x, u, 0.5, 30.0))  # noqa: E731
    mx.export_function(str(tmp_path / "graph"), call, mx.zeros((8, 64)), mx.zeros((8,)))
    return b"CustomKernel" in (tmp_path / "graph").read_bytes()


def test_every_source_belongs_to_an_operation() -> None:
    modules = [
        importlib.import_module(f"mlx_diffusiongemma.ops.{m.name}")
        for m in pkgutil.iter_modules(ops.__path__)
    ]
    kernels = [module._KERNEL for module in modules if hasattr(module, "_KERNEL")]
    used = {f"{kernel.name}.metal" for kernel in kernels} | {h for kernel in kernels for h in kernel.headers}
    assert used == {file.name for file in metal.SOURCES.iterdir()} - {"README.md"}


# --- which path is taken -----------------------------------------------------------------------------------


@pytest.mark.parametrize("switch", [None, "auto", "on", "off"])
def test_with_metal_the_kernel_is_taken_unless_it_is_switched_off(
    switch: str | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(metal, "available", lambda: (True, ""))
    monkeypatch.delenv("MLX_DG_KERNELS", raising=False)
    if switch is not None:
        monkeypatch.setenv("MLX_DG_KERNELS", switch)
    assert takes_a_kernel(tmp_path) == (switch != "off")


def test_without_metal_the_reference_is_taken_and_forcing_the_kernel_says_why(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(mx.metal, "is_available", lambda: False)
    monkeypatch.delenv("MLX_DG_KERNELS", raising=False)
    assert not takes_a_kernel(tmp_path)
    monkeypatch.setenv("MLX_DG_KERNELS", "on")
    with pytest.raises(
        InputError, match="MLX_DG_KERNELS=on, but Metal kernels cannot run: this build of MLX"
    ):
        row_statistics(mx.zeros((8, 64)), mx.zeros((8,)), 0.5, 30.0)


def test_metal_with_the_cpu_as_default_device_takes_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mx.metal, "is_available", lambda: True)
    monkeypatch.setattr(mx, "default_device", lambda: mx.Device(mx.cpu))
    ok, reason = metal.available()
    assert not ok
    assert "default device is the CPU" in reason


def test_an_unknown_switch_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLX_DG_KERNELS", "yes")
    with pytest.raises(InputError, match="MLX_DG_KERNELS is 'yes'; it may be auto, on or off"):
        metal.enabled()


def test_a_kernel_that_does_not_compile_is_an_error_and_no_silent_fallback(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """On Metal the compiler refuses; elsewhere the emulator's compiler takes its place."""
    (tmp_path / "broken.metal").write_text("out[0] = undeclared_name;")
    monkeypatch.setattr(metal, "SOURCES", tmp_path)
    if not ON_METAL:
        plug_in_emulator(monkeypatch)
    broken = metal.Kernel("broken", inputs=("x",), outputs=("out",))
    with pytest.raises(RuntimeError, match="undeclared_name"):
        mx.eval(
            broken([mx.zeros((8,))], template={}, threadgroups=(1, 1), threads=1, outputs=[((1,), mx.int32)])
        )


# --- what is moved ------------------------------------------------------------------------------------------


@pytest.mark.skipif(ON_METAL, reason="for the emulator; runs on machines without Metal")
@pytest.mark.parametrize("dtype", [mx.bfloat16, mx.float32])
def test_row_statistics_reads_the_logits_once(dtype: mx.Dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    launches = plug_in_emulator(monkeypatch)
    logits = mx.random.normal((2, 262144), key=mx.random.key(0)).astype(dtype)
    row_statistics(logits, mx.array([0.1, 0.9]), 0.6, 30.0)
    (launch,) = launches
    assert 1.0 <= launch.loads["logits"] / logits.nbytes <= 1.05
    assert sum(launch.loads.values()) + sum(launch.stores.values()) <= 1.05 * logits.nbytes


# --- the tests can fail -------------------------------------------------------------------------------------


def check_row_statistics() -> None:
    row_tests.test_rows_that_are_no_distribution_are_flagged_and_leave_the_others_alone(5000, 30.0)
    row_tests.test_agrees_with_float64(70000, mx.float32)
    row_tests.test_a_uniform_at_an_edge_belongs_to_the_next_token()
    row_tests.test_nothing_without_mass_is_drawn_where_rounding_ends_the_row_early()


def check_accept_and_renoise() -> None:
    acceptance_tests.test_acceptance_follows_the_definition(255)
    acceptance_tests.test_pinned_positions_hold_their_token_and_have_no_say_in_the_stop()
    acceptance_tests.test_done_rows_are_frozen()
    acceptance_tests.test_a_mean_at_the_threshold_is_not_below_it()
    acceptance_tests.test_an_invalid_position_marks_its_row(200)


def check_soft_embedding() -> None:
    soft_tests.test_agrees_with_the_dense_product_up_to_what_it_reports("kernel", "affine 4", 4097, 192)
    soft_tests.test_the_support_is_all_that_weighs_something_and_what_is_left_out_is_reported("kernel")
    soft_tests.test_a_row_of_more_tokens_than_the_limit_is_not_covered("kernel", 65)
    soft_tests.test_logits_are_rounded_to_the_models_dtype_before_the_softmax("affine 8", 1100)
    soft_tests.test_a_late_chunk_of_a_long_row_and_the_last_columns_of_a_wide_table("kernel")  # the longest


CHECKS = {
    "row_statistics": check_row_statistics,
    "accept_and_renoise": check_accept_and_renoise,
    "soft_embedding": check_soft_embedding,
}


@pytest.mark.skipif(ON_METAL, reason="for the emulator; runs on machines without Metal")
@pytest.mark.parametrize(("kernel", "defect"), PLANTED)
def test_a_planted_defect_is_caught(kernel: str, defect: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plug_in_emulator(monkeypatch, edits=planted(kernel, defect))
    with pytest.raises((KernelFault, AssertionError)):
        CHECKS[kernel]()


# --- a whole block ------------------------------------------------------------------------------------------


# The demo is sure of itself from the first step on; hot, its first steps are beyond the support limit.
HOT = {"t_max": 2.0, "t_min": 0.1, "max_denoising_steps": 12}
HOT |= {"confidence_threshold": 1e-4, "stability_threshold": 3}


@pytest.mark.parametrize("prompt", ["What is 345 + 78?", "JSON for Paris and Rome", "Count to 37."])
@pytest.mark.parametrize("settings", [{"thinking": True}, HOT])
def test_a_block_on_the_kernels_is_the_block_on_the_references(
    prompt: str, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Same text, drafts, masks and step counts, whether self-conditioning was sparse or dense."""
    model, tokenizer = mlx_dg.load("demo")
    monkeypatch.setenv("MLX_DG_KERNELS", "off")
    text, expected = watched((model, tokenizer), prompt, **settings)

    monkeypatch.setenv("MLX_DG_KERNELS", "on")
    launches = [] if ON_METAL else plug_in_emulator(monkeypatch, schedule_seed=7)
    model.checked_kernels((1, model.config.canvas_length))
    checks = len(launches)
    dense_steps = spied(monkeypatch, type(model), "dense_soft_embedding")
    text_on_kernels, steps = watched((model, tokenizer), prompt, **settings)

    assert text_on_kernels == text
    assert len(steps) == len(expected)
    for step, other in zip(steps, expected, strict=True):
        np.testing.assert_array_equal(step.draft_ids, other.draft_ids)
        np.testing.assert_array_equal(step.accepted, other.accepted)
        np.testing.assert_array_equal(step.canvas_ids, other.canvas_ids)
        np.testing.assert_allclose(step.entropies, other.entropies, atol=5e-3)
    if not ON_METAL:
        assert len(launches) == checks + 3 * len(steps)
    assert bool(dense_steps) == (settings is HOT)
    assert len(dense_steps) < len(steps) - 1
