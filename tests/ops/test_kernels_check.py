"""Kernels that a machine's Metal compiler rejects or gets wrong: found at their first use, and replaced."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from emulator import Emulation
from support import exact
from support.kernel_defects import PLANTED, planted
from support.kernel_paths import ON_EMULATOR, plug_in_emulator, watched
from support.spies import spied

import mlx_dg
from mlx_diffusiongemma.engine import denoise
from mlx_diffusiongemma.engine.state import Step
from mlx_diffusiongemma.errors import GenerationError, InputError
from mlx_diffusiongemma.ops import FREE, TOLERANCE, checked_kernels, metal, self_check, trials

pytestmark = ON_EMULATOR

KERNELS = ("row_statistics", "accept_and_renoise", "soft_embedding")
PROMPT = "What is 345 + 78?"
Edit = Callable[[str], str]
Run = tuple[str, list[Step]]


def does_not_compile(source: str) -> str:
    """The generated source with a name that does not exist where the kernel's body begins."""
    body = source.index("[[kernel]] void")
    opening = source.index("{", body)
    return f"{source[: opening + 1]}\nundeclared_name = 1;{source[opening + 1 :]}"


WRONG = {
    **planted("row_statistics", "temperature forgotten"),
    **planted("accept_and_renoise", "bound not reached"),
    **planted("soft_embedding", "rows not covered are summed"),
}


@pytest.fixture(autouse=True)
def automatic(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLX_DG_KERNELS", "auto")


def run(demo: Any, prompt: str = PROMPT, **settings: Any) -> Run:
    return watched(demo, prompt, thinking=True, **settings)


@pytest.fixture(scope="module")
def expected(demo: Any) -> Run:
    """Return the text and steps that the references give."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLX_DG_KERNELS", "off")
        return run(demo)


def kernel_of(launch: Emulation) -> str:
    """MLX's name of a launch holds the kernel's, then template values and dtypes."""
    (name,) = (kernel for kernel in KERNELS if f"_mlx_dg_{kernel}_" in launch.name)
    return name


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]


# --- what is checked ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["float32", "bfloat16", "8 bits"])
@pytest.mark.usefixtures("bf16_experts")
def test_a_generation_launches_only_what_was_checked(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole generated source decides: it holds template values and dtypes."""
    model, tokenizer = mlx_dg.load("demo")
    if kind == "bfloat16":
        model.set_dtype(mx.bfloat16)
    elif kind == "8 bits":
        nn.quantize(model, 64, 8, class_predicate=lambda path, _: path.endswith("embed_tokens"))
    launches = plug_in_emulator(monkeypatch)
    assert model.checked_kernels((1, model.config.canvas_length)) == KERNELS
    checked = {launch.source for launch in launches}
    run((model, tokenizer), max_denoising_steps=2)
    assert {kernel_of(launch) for launch in launches} == set(KERNELS)
    assert {launch.source for launch in launches} == checked


def test_each_way_to_use_a_kernel_is_checked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    launches = plug_in_emulator(monkeypatch)

    def launched(table: nn.Module, dtype: mx.Dtype, batch: int, canvas_length: int) -> list[str]:
        before = len(launches)
        checked_kernels(table, dtype, (batch, canvas_length))
        return sorted({kernel_of(launch) for launch in launches[before:]})

    table = nn.Embedding(96, 64)
    packed = nn.QuantizedEmbedding.from_embedding(table, group_size=64, bits=8)
    accept, row, soft = sorted(KERNELS)
    assert launched(table, mx.float32, 1, 12) == [accept, row, soft]
    assert launched(table, mx.float32, 1, 12) == []
    assert launched(nn.Embedding(96, 64), mx.float32, 1, 12) == []  # other weights take the same kernel
    assert launched(table, mx.float32, 7, 12) == []
    assert launched(table, mx.float32, 8, 12) == [accept]  # its arrays of a value a row are not constants
    assert launched(table, mx.float32, 1, 40) == [accept]
    assert launched(table, mx.float32, 1, 6) == [accept, row, soft]  # constants, too
    assert launched(packed, mx.float32, 1, 40) == [soft]
    assert launched(packed, mx.bfloat16, 1, 40) == [soft]  # its logits are float32, as its scales are
    packed.set_dtype(mx.bfloat16)
    assert launched(packed, mx.bfloat16, 1, 40) == [row, soft]
    assert launched(nn.Embedding(97, 64), mx.float32, 1, 40) == [row, soft]
    six_bits = nn.QuantizedEmbedding.from_embedding(table, group_size=64, bits=6)
    assert launched(six_bits, mx.float32, 1, 40) == []  # no kernel reads it
    assert launched(table, mx.float32, 1, 1025) == []  # too long for the kernel


@pytest.mark.parametrize("vocab", [16, 33, 96, 1100])
@pytest.mark.parametrize("kind", ["float16", "bfloat16", "affine 4 by 32", "affine 8"])
def test_kernels_that_are_right_pass(vocab: int, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plug_in_emulator(monkeypatch)
    table: Any = nn.Embedding(vocab, 64)
    dtype = getattr(mx, kind, mx.float16)
    table.weight = (30 * table.weight).astype(dtype)
    if kind.startswith("affine"):
        table = nn.QuantizedEmbedding.from_embedding(table, 32 if "32" in kind else 64, int(kind[7]))
    assert checked_kernels(table, dtype, (2, 12)) == KERNELS, metal.failures


# Tokens, columns and bits of tables. Some defects show only where a row has many chunks, or many packs.
TABLES = [(1100, 64, 4), (1100, 2112, 8), (70000, 64, 8)]


@pytest.mark.parametrize(("kernel", "defect"), PLANTED)
def test_every_planted_defect_is_found(kernel: str, defect: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plug_in_emulator(monkeypatch, edits=planted(kernel, defect))
    checks = (
        check
        for vocab, columns, bits in TABLES
        for check in self_check.checks_of(
            nn.QuantizedEmbedding(vocab, columns, 64, bits), mx.bfloat16, 1, 255
        )
        if check.kernel == kernel
    )
    assert any(self_check._fault(check.make()) for check in checks)


# --- the inputs ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [mx.bfloat16, mx.float32])
@pytest.mark.parametrize("vocab", [1100, 4097, 262144])
def test_tokens_are_drawn_in_their_middle(vocab: int, dtype: mx.Dtype) -> None:
    """Otherwise rounding would decide, on another device in another way."""
    trial = trials.row_statistics_trial(vocab, dtype)
    _, _, (logits, uniforms), temperature, softcap = trial.kernel.args  # type: ignore[attr-defined]
    samples, random = np.array(trial.expected.sample), [4, 5, *range(8, 12)]
    p = exact.row_statistics(np.array(logits.astype(mx.float32))[random], temperature, softcap).probabilities
    drawn = np.take_along_axis(p, samples[random, None], axis=1)[:, 0]
    below = np.array([row[:sample].sum() for row, sample in zip(p, samples[random], strict=True)])
    assert (drawn > 1e-3).all()
    np.testing.assert_allclose((np.array(uniforms)[random] - below) / drawn, 0.5, atol=1e-2)
    assert samples[6:8].tolist() == [vocab // 2 + 1, vocab - 5]  # the third of four even tokens, and the last


@pytest.mark.parametrize("length", [12, 40, 85, 256])
def test_sums_of_entropies_are_exact_and_no_mean_is_near_the_threshold_by_chance(length: int) -> None:
    trial = trials.accept_and_renoise_trial(length, 262144)
    _, _, (proposal, _, pins, _), bounds = trial.kernel.args  # type: ignore[attr-defined]
    entropies, free = np.array(proposal.entropies), np.array(pins) == FREE
    units = (entropies.astype(np.float64) * 2**18).astype(np.int64)
    assert (units == entropies.astype(np.float64) * 2**18).all()
    assert (units.sum(axis=1) / np.gcd.reduce(units, axis=1) < 2**24).all()  # float32 holds every sum
    means = np.array([row[where].mean() for row, where in zip(entropies, free, strict=True)])
    assert (free[-1].sum(), means[-1]) == (1, bounds.confidence_threshold)
    assert (np.abs(means[:-1] / bounds.confidence_threshold - 1) > 1e-3).all()


@pytest.mark.parametrize("vocab", [16, 33, 96, 1100, 16384, 32768, 65536, 262144])
def test_the_reference_can_do_what_a_trial_asks_for(vocab: int) -> None:
    """It reads few chunks: it would leave out tokens that lie in more of them."""
    trial = trials.soft_embedding_trial(nn.Embedding(vocab, 4), mx.float32, mx.float32)
    dropped_mass = np.array(trial.expected.dropped_mass)
    assert (dropped_mass[:-1] <= TOLERANCE).all()
    assert (dropped_mass[-1] > TOLERANCE) == (vocab >= 16384)  # the flat row, where it is not dense


@pytest.mark.parametrize("vocab", [1100, 4097, 262144])
@pytest.mark.parametrize("dtype", [mx.bfloat16, mx.float32])
def test_the_tail_is_above_the_threshold_and_would_be_missed(vocab: int, dtype: mx.Dtype) -> None:
    trial = trials.soft_embedding_trial(nn.Embedding(vocab, 4), dtype, dtype)
    _, _, (logits, _), temperature, softcap, *_ = trial.kernel.args  # type: ignore[attr-defined]
    row = np.array(logits[-2:-1].astype(mx.float32))
    (p,) = exact.row_statistics(row, temperature, softcap).probabilities
    nats = np.log(p * min(2048, vocab // 16) / TOLERANCE)
    tail = (nats > -1) & (p < 0.5)
    assert 0.04 < nats[tail].min() <= nats[tail].max() < 0.15
    assert TOLERANCE / 2 < p[tail].sum() < TOLERANCE  # more than twice of what is allowed


def test_nothing_is_checked_where_kernels_are_off(monkeypatch: pytest.MonkeyPatch) -> None:
    launches = plug_in_emulator(monkeypatch)
    monkeypatch.setenv("MLX_DG_KERNELS", "off")
    assert checked_kernels(nn.Embedding(96, 64), mx.float32, (1, 8)) == ()
    assert not launches


# --- what fails ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["does not compile", "is wrong"])
@pytest.mark.parametrize("kernel", KERNELS)
def test_a_kernel_that_fails_is_switched_off_with_one_warning(
    kernel: str, how: str, demo: Any, expected: Run, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    edit = does_not_compile if how == "does not compile" else WRONG[kernel]
    launches = plug_in_emulator(monkeypatch, edits={kernel: edit})
    text, steps = run(demo)
    (warning,) = warnings(caplog)
    assert warning.startswith(f"Metal kernel {kernel} fails its check on this machine: ")
    assert ("undeclared_name" if how == "does not compile" else "differs by") in warning
    assert "`mlx_dg doctor`" in warning
    assert list(metal.failures) == [kernel]

    assert text == expected[0]
    assert len(steps) == len(expected[1])
    for step, other in zip(steps, expected[1], strict=True):
        np.testing.assert_array_equal(step.draft_ids, other.draft_ids)
        np.testing.assert_array_equal(step.canvas_ids, other.canvas_ids)
    used = [kernel_of(launch) for launch in launches]
    assert (kernel in used) == (how == "is wrong")  # in its check
    run(demo, "Count to 12.")
    assert kernel not in map(kernel_of, launches[len(used) :])
    assert len(launches) > len(used)
    assert len(warnings(caplog)) == 1


def test_without_any_kernel_all_bits_are_the_references(
    demo: Any, expected: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    launches = plug_in_emulator(monkeypatch, edits=dict.fromkeys(KERNELS, does_not_compile))
    text, steps = run(demo)
    assert not launches
    assert text == expected[0]
    for step, other in zip(steps, expected[1], strict=True):
        np.testing.assert_array_equal(step.entropies, other.entropies)
        np.testing.assert_array_equal(step.mean_entropy, other.mean_entropy)


def test_switched_on_a_failure_is_an_error_each_time(demo: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    plug_in_emulator(monkeypatch, edits={"accept_and_renoise": does_not_compile})
    monkeypatch.setenv("MLX_DG_KERNELS", "on")
    for _ in range(2):
        with pytest.raises(InputError) as raised:
            run(demo)
        message = str(raised.value)
        assert message.startswith("MLX_DG_KERNELS=on, but Metal kernel accept_and_renoise fails its check ")
        assert "undeclared_name" in message
        assert "`mlx_dg doctor`" in message
        assert "\n" not in message


def test_what_only_the_gpu_finds_is_a_failure_of_the_kernel(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """MLX raises it when the stream is waited for, or at whatever uses the stream next."""
    plug_in_emulator(monkeypatch)

    def fail() -> None:
        raise RuntimeError("[METAL] Command buffer execution failed: Caused GPU Address Fault Error.")

    monkeypatch.setattr(mx, "synchronize", fail)
    assert checked_kernels(nn.Embedding(96, 64), mx.float32, (1, 8)) == ()
    assert len(warnings(caplog)) == 3
    assert all("Caused GPU Address Fault Error" in text for text in warnings(caplog))


def test_ids_that_do_not_exist_are_a_difference_and_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    edit: Edit = lambda source: source.replace("int(best);", "int(best) + (1 << 30);")  # noqa: E731
    plug_in_emulator(monkeypatch, edits={"row_statistics": edit})
    assert "row_statistics" not in checked_kernels(nn.Embedding(96, 64), mx.float32, (1, 8))
    assert metal.failures["row_statistics"].startswith("argmax (count of values) differs by ")


def test_damaged_weights_are_not_the_kernels_fault(demo: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    plug_in_emulator(monkeypatch)
    model, tokenizer = mlx_dg.load("demo")
    model.decoder.embed_tokens.weight[5] = mx.nan
    with pytest.raises(GenerationError, match="NaN or infinite"):
        run((model, tokenizer))
    assert not metal.failures


# --- around a generation ------------------------------------------------------------------------------------


def test_a_compiled_step_is_traced_for_the_kernels_that_passed(
    demo: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The check comes before the step that may be traced, and its outcome is part of that trace's key."""
    plug_in_emulator(monkeypatch, edits={"soft_embedding": does_not_compile})
    calls = spied(monkeypatch, denoise.Denoiser, "step_function")
    run(demo)
    assert {call.args[2] for call in calls} == {("row_statistics", "accept_and_renoise")}


def test_two_threads_that_begin_at_once_check_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    plug_in_emulator(monkeypatch, edits={"row_statistics": does_not_compile})
    table, begin = nn.Embedding(96, 64), threading.Barrier(2)
    mx.eval(table.parameters())
    fault, checks = self_check._fault, []

    def slow(trial: Any) -> str | None:
        checks.append(threading.get_ident())
        time.sleep(0.05)  # the other thread comes as far
        return fault(trial)

    monkeypatch.setattr(self_check, "_fault", slow)

    def check(_: int) -> tuple[str, ...]:
        begin.wait()
        return checked_kernels(table, mx.float32, (1, 12))

    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(check, range(2))) == [("accept_and_renoise", "soft_embedding")] * 2
    assert len(checks) == 3
    assert len(set(checks)) == 1
    assert len(warnings(caplog)) == 1
