"""Vision tower and preprocessing against Transformers' own, on random weights and images."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
import torch
from oracle import tiny
from oracle.reference import load_reference
from PIL import Image
from transformers import DynamicCache
from transformers.models.gemma4.configuration_gemma4 import Gemma4VisionConfig
from transformers.models.gemma4.image_processing_pil_gemma4 import Gemma4ImageProcessorPil
from transformers.models.gemma4.modeling_gemma4 import (
    Gemma4MultimodalEmbedder,
    Gemma4VisionModel,
    create_masks_for_vision_model,
    get_block_sequence_ids_for_mask,
)

from mlx_diffusiongemma.checkpoint.loading import load_model
from mlx_diffusiongemma.config.vision import VisionConfig
from mlx_diffusiongemma.prompt import ImageSpan, Prompt
from mlx_diffusiongemma.vision import tower
from mlx_diffusiongemma.vision.patches import BUDGETS, Patches, cut
from mlx_diffusiongemma.vision.tower import Vision

TEXT_SIZE = 24
IMAGE_ID = tiny.ROUGH.vocab - 3
# head_dim is not hidden_size / heads. A grid of 9 x 12 has other columns than rows.
CONFIG: dict[str, Any] = {
    "model_type": "gemma4_vision", "hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 2,
    "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 12, "rms_norm_eps": 1e-6,
    "hidden_activation": "gelu_pytorch_tanh", "patch_size": 4, "pooling_kernel_size": 3,
    "position_embedding_size": 64, "rope_parameters": {"rope_theta": 100.0, "rope_type": "default"},
    "standardize": True, "use_clipped_linears": False, "attention_bias": False,
}  # fmt: skip


def weights_of(reference: torch.nn.Module, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Random weights, none at its initial value: a factor that is left out changes the features."""

    def made(name: str, shape: tuple[int, ...]) -> np.ndarray:
        if "norm" in name:
            return rng.uniform(0.5, 1.5, shape)
        if name.endswith("std_bias"):
            return rng.normal(0, 20, shape)
        if name.endswith("std_scale"):
            return rng.uniform(0, 0.2, shape)
        if name.endswith(("_min", "_max")):
            return np.array(rng.uniform(0.5, 1.5) * (-1 if name.endswith("_min") else 1))
        return rng.normal(0, 0.5 if "table" in name else shape[-1] ** -0.5, shape)

    return {
        name: made(name, tuple(value.shape)).astype(np.float32)
        for name, value in reference.state_dict().items()
    }


def pair(**changes: Any) -> tuple[Vision, Callable[[np.ndarray, np.ndarray], np.ndarray]]:
    """Our tower, and a function that runs Transformers' with the same weights."""
    values, rng = CONFIG | changes, np.random.default_rng(7)
    config: Any = Gemma4VisionConfig(**values)
    text: Any = type("Text", (), {"hidden_size": TEXT_SIZE})()
    reference, embedder = Gemma4VisionModel(config).eval(), Gemma4MultimodalEmbedder(config, text)
    ours = Vision(VisionConfig.from_dict(values), TEXT_SIZE)
    for prefix, module in (("vision_tower", reference), ("embed_vision", embedder)):
        weights = weights_of(module, rng)
        module.load_state_dict({name: torch.tensor(value) for name, value in weights.items()})
        ours.load_weights([(f"{prefix}.{n}", mx.array(w)) for n, w in weights.items()], strict=False)

    def run(patches: np.ndarray, positions: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            features = reference(torch.tensor(patches)[None], torch.tensor(positions)[None])
            projected: np.ndarray = embedder(features.last_hidden_state).numpy().reshape(-1, TEXT_SIZE)
        return projected

    return ours, run


def image(columns: int, rows: int) -> tuple[np.ndarray, np.ndarray]:
    grid = np.stack(np.meshgrid(np.arange(columns), np.arange(rows)), -1).reshape(-1, 2)
    pixels = np.random.default_rng(columns).uniform(0, 1, (columns * rows, 48)).astype(np.float32)
    return pixels, grid


def relative_error(value: mx.array, expected: np.ndarray) -> float:
    return float(np.abs(np.array(value) - expected).max() / np.abs(expected).max())


@pytest.mark.parametrize("changes", [
    {},
    {"use_clipped_linears": True},
    {"standardize": False},
    {"num_attention_heads": 4, "num_key_value_heads": 2},
    {"rope_parameters": {"rope_theta": 10.0, "rope_type": "axial"}},
], ids=str)  # fmt: skip
@pytest.mark.parametrize("size", [(9, 12), (6, 6), (3, 30)])
def test_soft_tokens_are_those_of_transformers(changes: dict[str, Any], size: tuple[int, int]) -> None:
    ours, reference = pair(**changes)
    patches, positions = image(*size)
    expected = reference(patches, positions)
    assert expected.shape == (size[0] * size[1] // 9, TEXT_SIZE)
    assert relative_error(ours(mx.array(patches), positions), expected) <= 1e-5
    shuffled = np.random.default_rng(1).permutation(len(patches))
    assert relative_error(ours(mx.array(patches[shuffled]), positions[shuffled]), expected) <= 1e-5


def test_bands_of_queries_and_wider_heads_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, _ = pair()
    patches, positions = image(9, 12)
    expected = np.array(ours(mx.array(patches), positions))
    monkeypatch.setattr(tower, "_BAND_ROWS", 50)
    assert relative_error(ours(mx.array(patches), positions), expected) <= 1e-6
    monkeypatch.setattr(tower, "on_gpu", lambda: True)
    assert relative_error(ours(mx.array(patches), positions), expected) <= 1e-6


def with_images(length: int, places: list[tuple[int, int]], seed: int) -> Prompt:
    """Random ids with an image of n soft tokens, one below the other, from each start."""
    rng, ids, images = np.random.default_rng(seed), np.random.default_rng(seed).integers(0, 90, length), []
    for start, number in places:
        grid = np.stack(np.meshgrid(np.arange(3), np.arange(3 * number)), -1).reshape(-1, 2)
        values = rng.uniform(0, 1, (len(grid), 768)).astype(np.float32)
        patches = Patches(values, grid.astype(np.int32), number)
        ids[start : start + number] = IMAGE_ID
        images.append(ImageSpan(start, number, patches.digest, patches))
    return Prompt(ids.tolist(), images)


@torch.no_grad()
def test_logits_behind_images(tmp_path: Path) -> None:
    """Two turns with images through encode, in chunks, against Transformers with Gemma 4's masks injected."""
    directory = tiny.build(tiny.ROUGH, tmp_path)
    theirs, ours = load_reference(directory), load_model(directory, dtype=mx.float32)
    encoder, rng = theirs.model.encoder, np.random.default_rng(0)
    canvas, types = rng.integers(0, 90, (1, 16)), np.zeros((1, 70), dtype=np.int64)
    reference, cache = DynamicCache(config=theirs.config.text_config), ours.make_cache()
    # Blocks shorter and longer than a chunk; images of the same size with other pixels.
    for prompt in (with_images(50, [(1, 5), (8, 5), (30, 4)], 1), with_images(20, [(2, 5)], 2)):
        offset = cache.offset
        embeddings = encoder.language_model.embed_tokens(torch.tensor([prompt.ids]))
        for image in prompt.images:
            types[:, offset + image.start : offset + image.end] = 1
            inputs = (
                torch.tensor(image.pixels.values)[None],
                torch.tensor(image.pixels.positions).long()[None],
            )
            features = encoder.vision_tower(*inputs).last_hidden_state
            embeddings[0, image.start : image.end] = encoder.embed_vision(features)
        masks = create_masks_for_vision_model(
            config=theirs.config.text_config,
            inputs_embeds=embeddings,
            attention_mask=None,
            cache=reference,
            position_ids=torch.arange(offset, offset + len(prompt))[None],
            block_sequence_ids=get_block_sequence_ids_for_mask(torch.from_numpy(types), torch.device("cpu")),
        )
        encoder.language_model(inputs_embeds=embeddings, attention_mask=masks, cache=reference)
        ours.encode(prompt, cache, chunk_size=4)
        expected = theirs(decoder_input_ids=torch.from_numpy(canvas), cache=reference).logits.numpy()
        assert np.abs(np.array(ours.decode(mx.array(canvas), cache)) - expected).max() <= 1e-4


SIZES = [
    *[(1, 1), (3000, 100), (900, 3), (13440, 49), (960, 672), (640, 480), (1920, 1080), (512, 512), (1, 500)],
    *[(2532, 1170), (48, 48), (2, 3)],
]


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_patches_are_those_of_transformers_bit_for_bit() -> None:
    rng = np.random.default_rng(1)
    processors = {budget: Gemma4ImageProcessorPil(max_soft_tokens=budget) for budget in BUDGETS}
    random = (10 ** rng.uniform(0, 3.0, (60, 2))).astype(int).tolist()
    compared = 0
    for width, height in [*SIZES, *random]:
        picture = Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
        for budget in BUDGETS if width * height < 300_000 else (280,):
            expected = processors[budget](
                images=picture, input_data_format="channels_last", return_tensors="np"
            )
            number = int(expected["num_soft_tokens_per_image"][0])
            found = cut(picture, budget)
            assert found.soft_tokens == number, (width, height, budget)
            assert np.array_equal(found.values, expected["pixel_values"][0][: number * 9])
            assert np.array_equal(found.positions, expected["image_position_ids"][0][: number * 9])
            compared += 1
    assert compared >= 300
