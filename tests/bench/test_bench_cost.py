"""Estimated needs of a step: against the 26B's published figures, and against counting on a tiny model."""

from __future__ import annotations

import itertools
import math
import statistics
from dataclasses import replace
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import pytest
from mlx.utils import tree_flatten
from mlx_lm.models.switch_layers import SwitchLinear
from oracle import tiny

from mlx_diffusiongemma.bench import cost, hardware, synthetic
from mlx_diffusiongemma.config import released
from mlx_diffusiongemma.config.model import ModelConfig
from mlx_diffusiongemma.model import DiffusionGemma

ROUGH = ModelConfig.from_dict(tiny.config(tiny.ROUGH, "original"))


# --- the 26B ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def real() -> dict[str, cost.Cost]:
    """A step of 256 positions behind 1024, experts at 4 bits and the rest at 8, activations in bfloat16."""
    model = synthetic.quantized_skeleton(released.real_config())  # lazy: takes no memory
    stored = cost.stored_bytes(model)
    return cost.step_cost(model.config, stored, prefix=1024, canvas=256, itemsize=2, dense_rows=256)


@pytest.mark.parametrize(("parts", "tflop", "gigabytes"), [
    (("experts",), 0.73, 12.9),
    (("attention_projections",), 0.57, 1.2),
    (("dense_mlp", "self_conditioning"), 0.28, 0.6),
    (("logits",), 0.38, 0.8),
])  # fmt: skip
def test_published_figures(
    real: dict[str, cost.Cost], parts: tuple[str, ...], tflop: float, gigabytes: float
) -> None:
    """The published figures have two digits."""
    assert sum(real[part].flop for part in parts) / 1e12 == pytest.approx(tflop, rel=0.02)
    assert sum(real[part].nbytes for part in parts) / 1e9 == pytest.approx(gigabytes, rel=0.03)


def test_published_figures_that_count_otherwise(real: dict[str, cost.Cost]) -> None:
    logits = 256 * 262144 * 2 / 1e9
    # 0.29 GB: 0.2 are those of the prefix; keys and values of the canvas are read as well.
    assert real["attention_scores"].flop / 1e12 == pytest.approx(0.19, rel=0.02)
    canvas = 2 * 2 * 256 * (25 * 8 * 256 + 5 * 2 * 512) / 1e9
    assert real["attention_scores"].nbytes / 1e9 - canvas == pytest.approx(0.23, rel=0.02)
    # Published without reading the logits.
    assert real["soft_embedding"].flop / 1e12 == pytest.approx(0.38, rel=0.02)
    assert real["soft_embedding"].nbytes / 1e9 - logits == pytest.approx(0.8, rel=0.03)
    # 0.13 to 0.27 in one pass: written and read once.
    assert real["sampler"] == (pytest.approx(2 * logits * 1e9), 0)


def test_published_floors(real: dict[str, cost.Cost]) -> None:
    chip = hardware.from_table("Apple M4 Max")
    assert chip is not None
    assert cost.total(real).flop / 1e12 / chip.arithmetic_tflop_per_second == pytest.approx(0.147, rel=0.02)
    assert cost.total(real).nbytes / 1e9 / chip.bandwidth_gb_per_second == pytest.approx(0.030, rel=0.05)


def test_stored_size_of_the_26b() -> None:
    stored = cost.stored_bytes(synthetic.quantized_skeleton(released.real_config()))
    assert sum(stored.values()) / 1e9 == pytest.approx(15.4, rel=0.005)
    assert stored["experts"] == 30 * 3 * 128 * 704 * 2816 * 4.5 / 8
    assert stored["router"] == 30 * 2 * 128 * 2816
    assert stored["vision"] == 0


# --- counting on a tiny model -------------------------------------------------------------------------------


class Counter:
    """Counts what a decode pass multiplies and which keys and values it attends to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.products = self.experts = self.attention = self.key_bytes = 0
        linear, switch, tied = nn.Linear.__call__, SwitchLinear.__call__, nn.Embedding.as_linear
        attend = mx.fast.scaled_dot_product_attention

        def count_linear(module: nn.Linear, x: mx.array) -> mx.array:
            self.products += 2 * x.size // x.shape[-1] * module.weight.size
            return linear(module, x)

        def count_tied(module: nn.Embedding, x: mx.array) -> mx.array:
            self.products += 2 * x.size // x.shape[-1] * module.weight.size
            return tied(module, x)

        def count_switch(module: Any, x: mx.array, indices: mx.array, **how: Any) -> mx.array:
            self.experts += 2 * indices.size * math.prod(module.weight.shape[1:])
            return switch(module, x, indices, **how)

        def count_attention(q: mx.array, k: mx.array, v: mx.array, **how: Any) -> mx.array:
            mask = how.get("mask")
            seen = k.shape[2] if mask is None else int(mask.sum().item())
            self.attention += 2 * 2 * q.size * seen
            self.key_bytes += 2 * k.shape[1] * k.shape[3] * seen * k.itemsize
            return attend(q, k, v, **how)

        monkeypatch.setattr(nn.Linear, "__call__", count_linear)
        monkeypatch.setattr(nn.Embedding, "as_linear", count_tied)
        monkeypatch.setattr(SwitchLinear, "__call__", count_switch)
        monkeypatch.setattr(mx.fast, "scaled_dot_product_attention", count_attention)


@pytest.mark.parametrize(("prefix", "canvas"), [(5, 16), (40, 7)])
def test_counted_on_a_tiny_model(monkeypatch: pytest.MonkeyPatch, prefix: int, canvas: int) -> None:
    """A prefix shorter and one longer than the window of 16, on an unquantized model."""
    model = DiffusionGemma(ROUGH)
    cache = model.make_cache()
    model.encode(mx.zeros((1, prefix), dtype=mx.int32), cache)
    counter = Counter(monkeypatch)
    mx.eval(model.decode(mx.zeros((1, canvas), dtype=mx.int32), cache))

    stored = cost.stored_bytes(model)
    parts = cost.step_cost(ROUGH, stored, prefix=prefix, canvas=canvas, itemsize=4, dense_rows=0)
    named = ("self_conditioning", "attention_projections", "dense_mlp", "router_and_norms", "logits")
    assert sum(parts[name].flop for name in named) == counter.products
    assert parts["experts"].flop == counter.experts
    assert parts["attention_scores"] == (counter.key_bytes, counter.attention)
    assert cost.total(parts).flop == counter.products + counter.experts + counter.attention


def test_every_weight_is_read_once() -> None:
    """With every expert chosen; the embedding twice more for the canvas's rows and a dense soft embedding."""
    model = synthetic.quantized_skeleton(ROUGH)
    parameters: Any = tree_flatten(model.model.decoder.parameters())
    weights = sum(array.nbytes for _, array in parameters)
    table = sum(array.nbytes for name, array in parameters if name.startswith("embed_tokens."))
    logits, rows = 1000 * 96 * 2, 1000  # 1000 rows use every expert
    stored = cost.stored_bytes(model)
    parts = cost.step_cost(ROUGH, stored, prefix=0, canvas=rows, itemsize=2, dense_rows=1)
    read = cost.total(parts).nbytes - parts["attention_scores"].nbytes - 3 * logits
    assert read == pytest.approx(weights + table + table * rows / 96)
    sparse = cost.step_cost(ROUGH, stored, prefix=0, canvas=rows, itemsize=2, dense_rows=0)
    assert parts["soft_embedding"].nbytes - sparse["soft_embedding"].nbytes == table
    assert (parts["soft_embedding"].flop, sparse["soft_embedding"].flop) == (2 * 96 * 64, 0)


@pytest.mark.parametrize("rows", [1, 2, 3])
def test_experts_touched(rows: int) -> None:
    """Over all choices of 2 of 4 experts by each row. A canvas of the released model touches all of them."""
    text = replace(ROUGH.text, num_experts=4, top_k_experts=2)
    choices = list(itertools.combinations(range(4), 2))
    touched = [len(set().union(*chosen)) for chosen in itertools.product(choices, repeat=rows)]
    assert cost.experts_touched(text, rows) == pytest.approx(statistics.mean(touched))
    assert cost.experts_touched(released.real_config().text, 256) == pytest.approx(128, rel=1e-6)


# --- chips --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("chip", "bandwidth", "teraflop"), [
    ("Apple M1", 68, 2.6),
    ("Apple M1 Ultra", 800, 21.2),
    ("Apple M3 Ultra", 819, 28.6),
    ("Apple M4 Max", 546, 17.2),
    ("Apple M5 Max", 614, 65.5),
])  # fmt: skip
def test_chip_table(chip: str, bandwidth: float, teraflop: float) -> None:
    found = hardware.from_table(chip)
    assert found is not None
    assert (found.chip, found.bandwidth_gb_per_second, found.source) == (chip, bandwidth, "table")
    assert found.arithmetic_tflop_per_second == pytest.approx(teraflop, rel=0.01)


@pytest.mark.parametrize("chip", ["Apple M77 Max", "Apple M4 Maxi", "Intel(R) Xeon(R)", "M4", ""])
def test_unknown_chip(chip: str) -> None:
    assert hardware.from_table(chip) is None


def test_ceilings_come_from_the_table_on_a_known_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mx, "default_device", lambda: mx.Device(mx.gpu))
    monkeypatch.setattr(mx, "device_info", lambda device: {"device_name": "Apple M2"})
    assert hardware.ceilings(mx.bfloat16) == hardware.from_table("Apple M2")


@pytest.mark.parametrize(("kind", "chip"), [(mx.cpu, "Apple M2"), (mx.gpu, "another"), (mx.cpu, None)])
def test_ceilings_are_measured_otherwise(
    monkeypatch: pytest.MonkeyPatch, kind: mx.DeviceType, chip: str | None
) -> None:
    monkeypatch.setattr(hardware, "_COPIED_BYTES", 2**16)
    monkeypatch.setattr(hardware, "_LARGEST_MATRIX", 256)
    monkeypatch.setattr(mx, "default_device", lambda: mx.Device(kind))
    monkeypatch.setattr(mx, "device_info", lambda device: {} if chip is None else {"device_name": chip})
    found = hardware.ceilings(mx.float32)
    assert (found.chip, found.source) == (chip or "unknown", "measured")
    assert found.bandwidth_gb_per_second > 0
    assert found.arithmetic_tflop_per_second > 0
