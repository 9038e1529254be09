"""`--verify` computes layer by layer the same as whole models, and detects errors of a conversion."""

from __future__ import annotations

import gc
import shutil
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from oracle import demo, tiny
from support.converting import copied, one_tensor_per_expert, quantized, tensors_of

from mlx_diffusiongemma.checkpoint.loading import load_model
from mlx_diffusiongemma.config.model import ModelConfig
from mlx_diffusiongemma.converter import verification
from mlx_diffusiongemma.converter.safetensors_source import SafetensorsSource
from mlx_diffusiongemma.converter.verification import probe
from mlx_diffusiongemma.errors import CheckpointError

SAME = {"rms_logit_error": 0.0, "argmax_agreement": 1.0, "entropy_difference": 0.0, "positions": 32}
EMBEDDING = "model.decoder.embed_tokens.weight"


def verify(source: Path, converted: Path) -> dict[str, float]:
    return verification.verify(SafetensorsSource(source), converted)


def whole(directory: Path, prompt: mx.array, canvas: mx.array, temperatures: list[float]) -> np.ndarray:
    """Return softcapped logits `[steps, C, V]` of the model that `load_model` returns."""
    model, soft, out = load_model(directory), None, []
    cache = model.make_cache()
    model.encode(prompt, cache)
    for temperature in temperatures:
        logits = model.decode(canvas, cache, soft)
        soft = model.dense_soft_embedding(logits / temperature)
        out.append(np.array(logits[0], dtype=np.float64))
    return np.stack(out)


def entropies(logits: np.ndarray, temperatures: list[float]) -> np.ndarray:
    """Nats, `[steps, C]`, in float64."""
    x = logits / np.array(temperatures)[:, None, None]
    x -= x.max(axis=-1, keepdims=True)
    p = np.exp(x) / np.exp(x).sum(axis=-1, keepdims=True)
    entropy: np.ndarray = -(p * np.log(p)).sum(axis=-1)
    return entropy


@pytest.mark.parametrize(
    ("bits", "mode", "group_size"), [(4, "affine", 64), (8, "affine", 32), (4, "mxfp4", 32), (4, "nvfp4", 16)]
)
def test_layer_by_layer_equals_the_whole_models(
    source: Path, tmp_path: Path, bits: int, mode: str, group_size: int
) -> None:
    how = {"group_size": group_size, "bits": bits, "mode": mode}
    target = quantized(source, tmp_path / "out", how)
    prompt, canvas = probe(source, ModelConfig.load(source))
    # generation_config.json of tiny checkpoints: 0.35 to 0.85 in 12 steps, of which these are the first two
    temperatures = [0.85, 0.35 + 0.5 * 11 / 12]
    a, b = (whole(directory, prompt, canvas, temperatures) for directory in (source, target))
    measured = verify(source, target)
    assert measured["rms_logit_error"] > 0
    assert measured["rms_logit_error"] == pytest.approx(np.sqrt(np.square(a - b).mean()), rel=1e-4)
    assert measured["argmax_agreement"] == pytest.approx((a.argmax(-1) == b.argmax(-1)).mean())
    difference = np.abs(entropies(a, temperatures) - entropies(b, temperatures)).mean()
    assert measured["entropy_difference"] == pytest.approx(difference, rel=1e-3)
    assert measured["positions"] == 2 * canvas.size == 32


def test_the_demo_survives_8_bits_better_than_4(tmp_path: Path) -> None:
    source = demo.DIRECTORY
    four, eight = (
        verify(source, quantized(source, tmp_path / str(bits), {"bits": bits, "group_size": 64}))
        for bits in (4, 8)
    )
    assert eight["rms_logit_error"] < four["rms_logit_error"] / 4
    assert eight["entropy_difference"] < four["entropy_difference"]
    assert eight["argmax_agreement"] >= four["argmax_agreement"] > 0.5


@pytest.mark.parametrize(("name", "shows"), [
    ("model.decoder.layers.4.self_attn.k_proj.weight", True),
    ("model.decoder.layers.5.experts.down_proj", True),
    ("model.decoder.layers.0.router.per_expert_scale", True),
    ("model.encoder.language_model.layers.2.layer_scalar", True),  # only encode reads it
    ("model.decoder.self_conditioning.up_proj.weight", True),  # only the second step reads it
    ("model.decoder.norm.weight", True),
    (EMBEDDING, True),
    ("model.encoder.vision_tower.patch_embedder.input_proj.weight", False),
])  # fmt: skip
def test_a_planted_error_shows(source: Path, tmp_path: Path, name: str, shows: bool) -> None:
    tensors = tensors_of(source)
    # Not a factor alone: norms would undo it.
    tensors[name] = tensors[name][::-1] * 1.25
    measured = verify(source, copied(source, tmp_path / "damaged", tensors))
    assert (measured["rms_logit_error"] > 1e-3) == shows
    assert (measured["entropy_difference"] > 0) == shows


def test_a_checkpoint_equals_itself_also_with_one_tensor_per_expert(source: Path, tmp_path: Path) -> None:
    assert verify(source, source) == SAME
    tensors = one_tensor_per_expert(tensors_of(source), split_gates=True)
    assert verify(copied(source, tmp_path / "unstacked", tensors), source) == SAME


@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16])
def test_a_conversion_to_16_bits_is_a_small_difference(source: Path, tmp_path: Path, dtype: mx.Dtype) -> None:
    tensors = {name: tensor.astype(dtype) for name, tensor in tensors_of(source).items()}
    measured = verify(source, copied(source, tmp_path / "rounded", tensors))
    assert 0 < measured["rms_logit_error"] < 0.2


def test_one_layer_is_in_memory_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """MLX's peak does not grow with the number of layers."""
    monkeypatch.setattr(verification, "PROMPT", "Why?")  # activations must not count
    peaks, sizes = [], []
    for layers in (2, 6):
        deep = tiny.build(
            tiny.ROUGH,
            tmp_path / f"{layers}",
            layer_types=("sliding_attention", "full_attention") * (layers // 2),
            hidden=128,
            expert=256,
            experts=8,
        )
        shutil.copy(demo.DIRECTORY / "tokenizer.json", deep)
        gc.collect()
        mx.clear_cache()
        mx.reset_peak_memory()
        before = mx.get_active_memory()
        verify(deep, deep)
        peaks.append(mx.get_peak_memory() - before)
        sizes.append((deep / "model.safetensors").stat().st_size)
    assert peaks[1] < 1.1 * peaks[0]
    assert peaks[1] < 0.4 * sizes[1]


def test_a_damaged_result_is_named(source: Path, tmp_path: Path) -> None:
    tensors = tensors_of(source)
    del tensors[EMBEDDING]
    with pytest.raises(CheckpointError, match=r"embed_tokens\.weight missing"):
        verify(source, copied(source, tmp_path / "incomplete", tensors))
