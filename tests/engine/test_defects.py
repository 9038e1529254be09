"""Defects that other ports shipped and that no trace can show: precision, quantization, threads and memory.

The others (what the router sees, windows, chunks, stability, self-conditioning, stop ids) make the traces of
test_traces.py differ.
"""

from __future__ import annotations

import gc
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten
from oracle import demo, replay, tiny, traces
from safetensors.numpy import save_file
from support.spies import spied

import mlx_dg
from mlx_diffusiongemma.checkpoint.loading import load_model
from mlx_diffusiongemma.engine.denoise import denoise
from mlx_diffusiongemma.engine.state import Step
from mlx_diffusiongemma.model import DiffusionGemma


def softcap(raw: np.ndarray, cap: float = 30.0) -> np.ndarray:
    return cap * np.tanh(raw.astype(np.float64) / cap)


def prefix(model: DiffusionGemma, length: int = 20) -> Any:
    cache = model.make_cache()
    model.encode(mx.arange(3, 3 + length)[None], cache)
    return cache


CANVAS = mx.array([[(7 * i + 11) % 96 for i in range(16)]])


@pytest.fixture(scope="module")
def sharp(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.build(tiny.SHARP, tmp_path_factory.mktemp("sharp"))


@pytest.mark.usefixtures("bf16_experts")
def test_softcap_is_fp32_in_a_bf16_model(sharp: Path) -> None:
    model = load_model(sharp, dtype=mx.bfloat16)
    cache = prefix(model)
    with cache.canvas(*CANVAS.shape) as view:
        hidden = model.decode_hidden(CANVAS, view, model.zero_self_conditioning(CANVAS.shape))
    assert hidden.dtype == mx.bfloat16
    raw = np.array(model.logits(hidden).astype(mx.float32))
    logits = model.decode(CANVAS, cache)
    assert logits.dtype == mx.float32
    np.testing.assert_allclose(np.array(logits), softcap(raw), atol=1e-4)


@pytest.mark.usefixtures("bf16_experts")
def test_entropies_of_a_bf16_model_are_those_of_its_fp32_softcapped_logits(sharp: Path) -> None:
    """The sampler works on raw logits: it must not cap or exponentiate them in bf16 either."""
    model = load_model(sharp, dtype=mx.bfloat16)
    trace = traces.load("generate-sharp-stable1")
    cache = model.make_cache()
    replay.encode(model, trace["prompt"], cache)
    draws, steps = replay.RecordedDraws(trace, 0), list[Step]()
    settings = replay.settings_of(trace).override(max_denoising_steps=1)
    denoise(model, cache, settings, draws, on_step=steps.append)
    processed = np.array(model.decode(draws.initial(), cache)).astype(np.float64) / steps[0].temperature
    mass = np.exp(processed - processed.max(axis=-1, keepdims=True))
    p = mass / mass.sum(axis=-1, keepdims=True)
    np.testing.assert_allclose(steps[0].entropies, -(p * np.log(p + 1e-300)).sum(axis=-1), atol=1e-4)
    assert steps[0].entropies.dtype == np.float32


def test_sorted_rows_are_really_sorted(sharp: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`sorted_indices=True` on unsorted rows is wrong on a GPU and passes unnoticed on the CPU."""
    model, calls = load_model(sharp), spied(monkeypatch, mx, "gather_mm")
    cache = model.make_cache()
    model.encode(mx.arange(90)[None], cache)
    model.encode(mx.arange(3)[None], cache)
    assert {call.kwargs.get("sorted_indices", False) for call in calls} == {True, False}
    for call in calls:
        ids = np.array(call.kwargs["rhs_indices"]).ravel().astype(np.int64)
        assert not call.kwargs.get("sorted_indices") or (np.diff(ids) >= 0).all()


# --- quantization -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def quantized(tmp_path_factory: pytest.TempPathFactory) -> tuple[DiffusionGemma, DiffusionGemma]:
    """A quantized model, and one without quantized modules whose weights have the dequantized values."""
    folder = tmp_path_factory.mktemp("quantized")
    source = tiny.build(tiny.ROUGH, folder / "source")
    shutil.copy(demo.DIRECTORY / "tokenizer.json", source)
    packed = load_model(mlx_dg.convert(source, folder / "packed"), dtype=mx.float32)
    tensors = tiny.weights(tiny.ROUGH)
    modules = dict(packed.named_modules())
    parameters = dict(tree_flatten(packed.parameters()))
    for name in [name for name in parameters if name.endswith(".scales")]:
        path = name.removesuffix(".scales")
        module: Any = modules[path]
        whole = mx.dequantize(
            parameters[f"{path}.weight"],
            parameters[name],
            parameters.get(f"{path}.biases"),
            group_size=module.group_size,
            bits=module.bits,
            mode=module.mode,
        )
        stored = path if ".experts." in path else f"{path}.weight"
        assert not np.array_equal(np.array(whole), tensors[stored])
        tensors[stored] = np.array(whole)
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    return packed, load_model(source, dtype=mx.float32)


# 20 tokens choose fewer experts than the engine sorts by, 40 and the window's length more.
@pytest.mark.parametrize("length", [5, 20, 40, 60])
def test_a_quantized_model_computes_what_its_dequantized_weights_say(
    quantized: tuple[DiffusionGemma, DiffusionGemma], length: int
) -> None:
    """Zeros from a lazily sliced expert weight, or a packed one multiplied as it is, are far from this."""
    outputs = []
    for model in quantized:
        first = model.decode(CANVAS, cache := prefix(model, length))
        second = model.decode(CANVAS, cache, model.dense_soft_embedding(first / 0.8))
        wide = model.decode(mx.concatenate([CANVAS, CANVAS[:, ::-1], CANVAS], axis=1), cache)
        outputs.append([np.array(x) for x in (first, second, wide)])
    for ours, expected in zip(*outputs, strict=True):
        np.testing.assert_allclose(ours, expected, atol=2e-3)


def test_stored_expert_weights_are_never_sliced_on_their_way_to_gather_qmm(
    quantized: tuple[DiffusionGemma, DiffusionGemma], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some builds of MLX read zeros through a lazy slice of a packed weight, others (MLX's CPU) do not."""
    packed, calls = quantized[0], spied(monkeypatch, mx, "gather_qmm")
    mx.eval(packed.decode(CANVAS, prefix(packed)))
    stored = {id(array) for _, array in tree_flatten(packed.parameters())}
    assert calls
    assert all(id(weight) in stored for call in calls for weight in call.args[1:])


def test_soft_embedding_of_a_quantized_table(quantized: tuple[DiffusionGemma, DiffusionGemma]) -> None:
    packed, plain = quantized
    processed = mx.array(np.random.default_rng(0).normal(size=(2, 16, 96), scale=3).astype(np.float32))
    soft = packed.dense_soft_embedding(processed)
    assert soft.shape == (2, 16, 64)
    np.testing.assert_allclose(np.array(soft), np.array(plain.dense_soft_embedding(processed)), atol=1e-4)
    table = np.array(plain.decoder.embed_tokens.weight).astype(np.float64)
    mass = np.exp(np.array(processed).astype(np.float64))
    expected = mass / mass.sum(axis=-1, keepdims=True) @ table * 8.0  # sqrt(64)
    np.testing.assert_allclose(np.array(soft), expected, atol=1e-4)


# --- threads ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loaded_in_thread", [True, False])
@pytest.mark.parametrize("run_in_thread", [True, False])
def test_a_model_may_be_loaded_in_one_thread_and_run_in_another(
    sharp: Path, loaded_in_thread: bool, run_in_thread: bool
) -> None:
    """MLX's streams belong to threads: an array left unevaluated by one fails or is lost in another."""
    trace = traces.load("forward-sharp-b1-l37")

    def call(in_thread: bool, task: Callable[[], Any]) -> Any:
        with ThreadPoolExecutor(1) as pool:
            return pool.submit(task).result() if in_thread else task()

    model = call(loaded_in_thread, lambda: load_model(sharp, dtype=mx.float32))
    for _ in range(2):  # each in a thread of its own
        logits = call(run_in_thread, lambda: replay.forward_logits(model, trace))
        np.testing.assert_allclose(logits, trace["logits"], atol=1e-4)


# --- memory -------------------------------------------------------------------------------------------------


def test_a_long_prompt_is_encoded_in_chunks_and_their_buffers_given_back(
    sharp: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load_model(sharp, dtype=mx.float32)
    attended = spied(monkeypatch, mx.fast, "scaled_dot_product_attention")
    cleared = spied(monkeypatch, mx, "clear_cache")
    length = 2500
    model.encode(mx.zeros((1, length), dtype=mx.int32), cache := model.make_cache())
    assert cache.offset == length
    most = max(call.args[0].shape[2] for call in attended)
    assert most <= 2048
    assert len(cleared) >= -(-length // most)
    held = [layer.keys.shape[2] for layer in cache.layers]
    windows = [h for h, kind in zip(held, tiny.SHARP.layer_types, strict=True) if kind == "sliding_attention"]
    # What slides out of the window is not kept; behind it a canvas has room.
    assert set(windows) == {tiny.SHARP.window - 1 + tiny.SHARP.canvas}


def test_generations_leave_nothing_behind(sharp: Path) -> None:
    """No time or memory that grows with the number of generations in a process: nothing is held after one."""
    model = load_model(sharp, dtype=mx.float32)
    trace = traces.load("generate-sharp-stop-id")

    def held() -> tuple[int, int]:
        gc.collect()
        mx.synchronize()  # a GPU gives buffers back when its work is done
        mx.clear_cache()
        return mx.get_active_memory(), sum(type(thing) is mx.array for thing in gc.get_objects())

    replay.denoise_all(model, trace)
    after_one = held()
    for _ in range(3):
        replay.denoise_all(model, trace)
    assert held() == after_one
