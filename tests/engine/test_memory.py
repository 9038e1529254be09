"""The memory of a generation: the estimate against MLX's own count, long prompts, what is refused."""

from __future__ import annotations

import gc
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten
from oracle import tiny

from mlx_diffusiongemma.checkpoint.loading import load_model
from mlx_diffusiongemma.config.model import ModelConfig
from mlx_diffusiongemma.config.released import real_config
from mlx_diffusiongemma.engine import memory
from mlx_diffusiongemma.engine.denoise import denoise
from mlx_diffusiongemma.engine.memory import check_fits, memory_needed
from mlx_diffusiongemma.engine.noise import NoiseKey, SeededDraws
from mlx_diffusiongemma.engine.settings import Settings
from mlx_diffusiongemma.errors import InputError
from mlx_diffusiongemma.model import DiffusionGemma

pytestmark = pytest.mark.slow

ON_CPU = mx.default_device() == mx.Device(mx.cpu)


def taken(model: DiffusionGemma, prompt: int, chunk: int, batch: int = 1) -> int:
    """Bytes beside the weights at the peak of encoding a prompt and denoising a canvas."""
    config = model.config
    mx.eval(model.parameters())
    gc.collect()  # what earlier tests left must not be freed meanwhile
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    cache = model.make_cache()
    ids = mx.broadcast_to(mx.arange(prompt)[None] % 90, (batch, prompt))
    model.encode(ids, cache, chunk_size=chunk)
    draws = SeededDraws(
        [NoiseKey(0, row, 0, 0) for row in range(batch)], config.canvas_length, config.text.vocab_size
    )
    settings = Settings.of(model.generation_config, max_denoising_steps=2)
    denoise(model, cache, settings, draws)
    if batch > 1:  # all but one are denoised again
        fewer = SeededDraws(draws.keys[1:], config.canvas_length, config.text.vocab_size)
        denoise(model, cache.take(list(range(1, batch))), settings, fewer)
    return mx.get_peak_memory() - before


# --- the estimate -------------------------------------------------------------------------------------------

SCORES = {"heads": 16}
LOGITS = {"vocab": 16384, "canvas": 128}
EXPERTS = {"expert": 256, "top_k": 8}
CACHE = {"full_kv_heads": 4, "full_head_dim": 64, "layer_types": ("full_attention",) * 4}


@pytest.mark.parametrize(("prompt", "chunk", "batch", "changes"), [
    (900, 2048, 1, SCORES),
    (900, 128, 1, SCORES),
    (400, 2048, 3, SCORES),
    (100, 2048, 1, LOGITS),
    (700, 2048, 1, EXPERTS),
    (1000, 64, 1, CACHE),
])  # fmt: skip
@pytest.mark.parametrize("quantized", [False, True], ids=["float32", "bfloat16"])
def test_the_estimate_is_what_generating_takes(
    tmp_path: Path, prompt: int, chunk: int, batch: int, changes: dict[str, Any], quantized: bool
) -> None:
    # Encode ends with a layer that only makes keys and values, so the full one comes first.
    whole = {"layer_types": ("full_attention", "sliding_attention")} | changes
    model = load_model(tiny.build(tiny.ROUGH, tmp_path / "model", **whole))
    if quantized:  # MLX's CPU backend routes experts in bfloat16 only if they are quantized
        model.set_dtype(mx.bfloat16)
        nn.quantize(model, group_size=32, bits=8)
    config, canvas = model.config, model.config.canvas_length
    needed = memory_needed(config, 0, prompt, canvas, chunk, model.dtype.size, batch)
    measured = taken(model, prompt, chunk, batch)
    # MLX's CPU backend allocates ahead of what it frees, most of all between 16-bit logits and their softmax.
    ahead = 2.3 if quantized and changes is LOGITS else 1.15
    # A GPU needs fewer copies.
    assert measured / ahead <= needed <= (1.9 if ON_CPU else 4) * measured


@pytest.mark.parametrize("prompt", [5, 40, 700])
def test_the_cache_is_what_the_estimate_counts(tmp_path: Path, prompt: int) -> None:
    model = load_model(tiny.build(tiny.ROUGH, tmp_path / "model"))
    cache, new = model.make_cache(), 5 * model.config.canvas_length
    cache.reserved = prompt + new
    model.encode(mx.arange(prompt)[None] % 90, cache)
    held = sum(keys.nbytes + values.nbytes for keys, values in cache.buffers)
    assert held == memory._needed(model.config, 0, prompt, new - 3, 2048, 4, 1).cache


def test_the_prefix_cache_grows_with_full_layers_only() -> None:
    config = real_config()
    full = 5 * 2 * 2 * 512 * 2  # layers, K and V, heads, width, bytes
    for chunk in (2048, 4096):
        scores = chunk * (2 * 16 + 1)  # a chunk of prefill, per key
        grown = memory_needed(config, 0, 32768, 256, chunk) - memory_needed(config, 0, 16384, 256, chunk)
        assert grown == 16384 * (full + scores)


def test_every_part_counts() -> None:
    config = real_config()
    needed = memory_needed(config, 0, 8192, 256, 2048)
    assert memory_needed(config, 10**9, 8192, 256, 2048) == 10**9 + needed
    cache = memory._needed(config, 0, 8192, 256, 2048, 2, 1).cache
    assert memory_needed(config, 0, 8192, 256, 2048, batch=3) == 3 * needed + 2 * cache
    # A mask stays one byte.
    assert 1.8 * needed < memory_needed(config, 0, 8192, 256, 2048, itemsize=4) < 2 * needed
    canvases = {new: memory_needed(config, 0, 8192, new, 2048) for new in (1, 256, 8 * 256, 9 * 256 + 1)}
    assert canvases[1] == canvases[256] < canvases[8 * 256] < canvases[9 * 256 + 1]
    # A sliding layer's buffers are whole from the start; a chunk has no more rows than the prompt.
    one, two = (memory_needed(config, 0, 1, 256, chunk) for chunk in (256, 2048))
    assert one == two > 25 * 2 * 8 * 256 * 2 * (1023 + 256)


# --- long prompts -------------------------------------------------------------------------------------------


def test_32k_tokens_within_a_bounded_peak(tmp_path: Path) -> None:
    """One head of four features: a slow core takes long enough for 32k * 32k scores."""
    layers = ("full_attention", "sliding_attention")
    narrow = {"heads": 1, "kv_heads": 1, "head_dim": 4, "full_head_dim": 4}
    model = load_model(tiny.build(tiny.ROUGH, tmp_path / "narrow", layer_types=layers, **narrow))
    prompt, chunk = 32768, 512
    needed = memory_needed(model.config, 0, prompt, model.config.canvas_length, chunk, itemsize=4)
    assert taken(model, prompt, chunk) <= needed
    assert needed < prompt**2 * 4 / 40  # of one pass the scores alone


@pytest.mark.parametrize("chunk", [7, 64, 300])
def test_chunked_equals_whole(tmp_path: Path, chunk: int) -> None:
    model = load_model(tiny.build(tiny.ROUGH, tmp_path / "model"))
    ids = mx.array(np.random.default_rng(0).integers(0, 90, (2, 700)))
    canvas = mx.array(np.random.default_rng(1).integers(0, 90, (2, model.config.canvas_length)))
    logits = []
    for size in (chunk, 2048):
        model.encode(ids, cache := model.make_cache(), chunk_size=size)
        logits.append(np.array(model.decode(canvas, cache)))
    np.testing.assert_allclose(*logits, atol=1e-4)


# --- what is refused ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def big() -> DiffusionGemma:
    """The 26B model in 4 bits; lazy, so that no weight is ever made."""
    model = DiffusionGemma(real_config())
    model.set_dtype(mx.bfloat16)
    nn.quantize(model, class_predicate=lambda path, module: hasattr(module, "to_quantized"))
    return model


def allow(monkeypatch: pytest.MonkeyPatch, usable: float | None, **device: int) -> None:
    monkeypatch.setattr(memory, "usable_memory", lambda: usable if usable is None else int(usable))
    monkeypatch.setattr(mx, "device_info", lambda: device)
    # Other tests of the process may hold arrays.
    monkeypatch.setattr(mx, "get_active_memory", lambda: 0)


def refused(model: DiffusionGemma, prompt: int, new: int, chunk: int = 2048, batch: int = 1) -> str:
    with pytest.raises(InputError) as caught:
        check_fits(model, prompt, new, chunk, batch)
    message = str(caught.value)
    assert "\n" not in message
    return message


def needed_by(model: DiffusionGemma, prompt: int, new: int, itemsize: int = 2) -> int:
    parameters: Any = tree_flatten(model.parameters())
    weights = sum(x.nbytes for _, x in parameters)
    return memory_needed(model.config, weights, prompt, new, 2048, itemsize)


def test_what_fits_to_the_last_byte_runs(big: DiffusionGemma, monkeypatch: pytest.MonkeyPatch) -> None:
    """A float32 model takes float32 activations."""
    tiny_one = DiffusionGemma(ModelConfig.from_dict(tiny.config(tiny.ROUGH, "original")))
    for model, prompt, new, itemsize in ((big, 30000, 1024, 2), (tiny_one, 100, 64, 4)):
        needed = needed_by(model, prompt, new, itemsize)
        allow(monkeypatch, needed)
        check_fits(model, prompt, new, 2048)
        allow(monkeypatch, needed - 1)
        refused(model, prompt, new)
    allow(monkeypatch, None)
    check_fits(big, 30000, 1024, 2048)


def test_what_mlx_holds_for_others_cannot_be_used(
    big: DiffusionGemma, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = needed_by(big, 0, 0) - memory_needed(big.config, 0, 0, 0, 2048)
    allow(monkeypatch, needed_by(big, 1000, 256) + 500)
    monkeypatch.setattr(mx, "get_active_memory", lambda: weights + 500)
    check_fits(big, 1000, 256, 2048)
    monkeypatch.setattr(mx, "get_active_memory", lambda: weights + 501)
    refused(big, 1000, 256)
    check_fits(big, 1000, 256, 2048, cache_bytes=1)  # of the cache that this generation continues


def test_a_refusal_says_what_is_needed_and_what_there_is(
    big: DiffusionGemma, monkeypatch: pytest.MonkeyPatch
) -> None:
    allow(monkeypatch, 17e9)
    message = refused(big, 30000, 1024)
    pattern = r"need ([\d.]+) GB \(weights ([\d.]+), cache ([\d.]+), work ([\d.]+)\)"
    total, weights, cache, work = map(float, re.findall(pattern, message)[0])
    assert total == pytest.approx(needed_by(big, 30000, 1024) / 1e9, abs=0.005)
    assert total == pytest.approx(weights + cache + work, abs=0.02)
    assert weights == pytest.approx(14.2, abs=0.1)  # 25.2 billion parameters at 4.5 bits
    assert "30000 prompt and 1024 new tokens" in message
    assert "but 17.00 GB can be used" in message


Sizes = tuple[int, int, int, int]  # prompt, new tokens, chunk, batch


@pytest.mark.parametrize(("usable", "sizes", "remedies"), [
    (16.9e9, (32768, 256, 2048, 1), {"chunk", "prompt"}),
    (15.6e9, (32768, 256, 2048, 1), {"prompt"}),
    (17.4e9, (1000, 100000, 2048, 1), {"new"}),
    (15.85e9, (10000, 10000, 64, 1), {"prompt", "new"}),
    (17.4e9, (60000, 100000, 2048, 1), {"both"}),
    (18e9, (4000, 256, 2048, 8), {"batch"}),
    (14e9, (1000, 256, 2048, 1), {"recipe"}),
])  # fmt: skip
def test_a_remedy_that_is_followed_helps(
    big: DiffusionGemma, monkeypatch: pytest.MonkeyPatch, usable: float, sizes: Sizes, remedies: set[str]
) -> None:
    allow(monkeypatch, usable)
    message = refused(big, *sizes)
    prompt, new, chunk, batch = sizes
    ways: dict[str, tuple[str, Callable[[int], Sizes], int]] = {  # the last: a next n that is too much
        "chunk": (r"lower prefill_step_size to (\d+)", lambda n: (prompt, new, n, batch), 2),
        "prompt": (r"shorten the prompt to (\d+) tokens(?! and)", lambda n: (n, new, chunk, batch), 1),
        "new": (r"(?<!and )lower max_new_tokens to (\d+)", lambda n: (prompt, n, chunk, batch), 1),
        "both": (r"to (\d+) tokens and lower max_new_tokens to 256", lambda n: (n, 256, chunk, batch), 1),
        "batch": (r"generate (\d+) at a time", lambda n: (prompt, new, chunk, n), 1),
    }
    offered = {name for name, (pattern, _, _) in ways.items() if re.search(pattern, message)}
    offered |= {"recipe"} if "take a smaller recipe" in message else set()
    assert offered == remedies, message
    assert "sysctl" not in message
    for name in remedies - {"recipe"}:
        pattern, followed, step = ways[name]
        n = int(re.findall(pattern, message)[0])
        check_fits(big, *followed(n))
        refused(big, *followed(n * 2 if step == 2 else n + 1))


@pytest.mark.parametrize(("memory_size", "helps"), [(24 * 2**30, True), (16 * 2**30, False)])
def test_a_mac_may_let_its_gpu_have_more(
    big: DiffusionGemma, monkeypatch: pytest.MonkeyPatch, memory_size: int, helps: bool
) -> None:
    usable = memory_size * 2 // 3
    allow(monkeypatch, usable, max_recommended_working_set_size=usable, memory_size=memory_size)
    message = refused(big, 40000, 256)
    assert ("sudo sysctl iogpu.wired_limit_mb=" in message) == helps
    if helps:
        allow(monkeypatch, int(re.findall(r"iogpu.wired_limit_mb=(\d+)", message)[0]) * 2**20)
        check_fits(big, 40000, 256, 2048)
