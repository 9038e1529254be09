"""The vision tower of a checkpoint, which is read when the first image comes."""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten

from ..config.model import ModelConfig
from ..config.vision import VisionConfig
from ..errors import CheckpointError, InputError
from ..ops import on_gpu
from ..prompt import ImageSpan
from ..vision.patches import BUDGETS, Patches, cut, fitted_size
from ..vision.reading import read_image
from ..vision.tower import Vision
from .tied_weights import model_tensors
from .weights import TensorInfo, read_tensors

ENCODER = "model.encoder."
PREFIXES = (f"{ENCODER}vision_tower.", f"{ENCODER}embed_vision.")
# mlx-vlm leaves out the name of the matrix in a projection.
_PROJECTION = re.compile(r"((?:self_attn|mlp)\.[a-z]+_proj)\.(?=weight$)")
# Bounds that some programs store although config.json says that nothing is clipped.
_BOUNDS = re.compile(r"\.(?:input|output)_(?:min|max)$")
_MOST_BYTES = 64 * 10**6  # maximum for the soft tokens that are kept; those of one image take 3 MB


class SoftTokens:
    """Turns the patches of an image into soft tokens, and keeps those of the last images.

    Args:
        directory: the checkpoint's directory. The tower is read with the first image.
    """

    def __init__(self, directory: Path, config: ModelConfig):
        self._directory, self._config = directory, config
        self._vision: Vision | None = None
        self._kept = OrderedDict[str, mx.array]()

    @property
    def config(self) -> VisionConfig:
        """Shapes of the tower. Raises `ConfigError` if config.json does not have them."""
        return VisionConfig.from_dict(self._config.vision)

    def __call__(self, patches: Patches) -> mx.array:
        """Return the soft tokens `[n, D]` of one image, float32."""
        if patches.digest in self._kept:
            self._kept.move_to_end(patches.digest)
            return self._kept[patches.digest]
        if self._vision is None:
            self._vision = load_vision(self._directory, self._config)
        soft = self._vision(mx.array(patches.values), patches.positions)
        mx.eval(soft)
        mx.clear_cache()
        self._kept[patches.digest] = soft
        while len(self._kept) > 1 and sum(each.nbytes for each in self._kept.values()) > _MOST_BYTES:
            self._kept.popitem(last=False)
        return soft

    def spans(self, ids: Sequence[int], images: Sequence[Any]) -> list[ImageSpan]:
        """Return the places of images among ids.

        Args:
            images: in order. An image (see `read_image`) takes the budget that fills its place.
                Patches and their positions, as a pair of arrays, take as many as they have soft tokens.

        Raises:
            InputError: an image cannot be read, or has not its number of image ids.
        """
        config, image_id, spans, at = self.config, self._config.image_token_id, [], 0
        for number, image in enumerate(images, start=1):
            start = next((i for i in range(at, len(ids)) if ids[i] == image_id), len(ids))
            end = next((i for i in range(start, len(ids)) if ids[i] != image_id), len(ids))
            choices = _choices(image, f"image {number}", config)
            count = next(iter(choices)) if len(choices) == 1 else end - start
            if count not in choices or start + count > end:
                numbers = " or ".join(map(str, choices))
                raise InputError(
                    f"image {number}: found {end - start} image ids for it, not {numbers}; repeat "
                    f"{image_id} once for each soft token"
                )
            patches = choices[count]()
            at = start + patches.soft_tokens
            spans.append(ImageSpan(start, patches.soft_tokens, patches.digest, patches))
        if image_id in ids[at:]:
            raise InputError(f"{len(images)} images, but more image ids ({image_id}); give their images too")
        return spans


def _choices(image: Any, name: str, config: VisionConfig) -> dict[int, Callable[[], Patches]]:
    """Return a function for each number of soft tokens that an image can become, which cuts its patches."""
    patch, kernel = config.patch_size, config.pooling_kernel_size
    if isinstance(image, tuple) and len(image) == 2:
        values, positions = np.asarray(image[0], np.float32), np.asarray(image[1])
        if values.ndim != 2 or positions.shape != (len(values), 2) or positions.dtype.kind not in "iu":
            raise InputError(f"{name}: patches must be [n, {3 * patch**2}] with int positions [n, 2]")
        given = Patches(values, positions.astype(np.int32), len(values) // kernel**2)
        return {given.soft_tokens: lambda: given}
    picture = read_image(image, name)
    choices: dict[int, Callable[[], Patches]] = {}
    for budget in BUDGETS:
        width, height = fitted_size(*picture.size, budget, patch, kernel)
        choices.setdefault(
            width * height // (patch * kernel) ** 2, partial(cut, picture, budget, patch, kernel)
        )
    return choices


def vision_tensors(tensors: dict[str, TensorInfo]) -> dict[str, TensorInfo]:
    """Return those of a checkpoint's tensors that belong to vision, by their names in `Vision`."""
    return {
        _PROJECTION.sub(r"\1.linear.", name.removeprefix(ENCODER)): info
        for name, info in tensors.items()
        if name.startswith(PREFIXES)
    }


def load_vision(directory: Path, config: ModelConfig) -> Vision:
    """Return the vision part of a checkpoint with evaluated weights.

    float16 becomes float32, because the pooled features exceed its range. On MLX's CPU backend everything is
    float32.

    Raises:
        ConfigError, CheckpointError: its configuration or tensors are not those of a vision tower.
    """
    vision = Vision(VisionConfig.from_dict(config.vision), config.text.hidden_size)
    tensors = vision_tensors(model_tensors(directory))
    if not vision.config.use_clipped_linears:
        tensors = {name: info for name, info in tensors.items() if not _BOUNDS.search(name)}
    parameters: Any = tree_flatten(vision.parameters())
    expected = {name: tuple(array.shape) for name, array in parameters}
    found = {name: info.shape for name, info in tensors.items()}
    for name in sorted(expected.keys() | found.keys()):
        if expected.get(name) != found.get(name):
            wanted, there = (list(s[name]) if name in s else "none" for s in (expected, found))
            raise CheckpointError(
                f"{directory}: the vision tower's {name} has shape {there}, but config.json calls for "
                f"{wanted}; download it again"
            )
    stored = read_tensors(sorted({info.file for info in tensors.values()}))
    weights = []
    for name, info in tensors.items():
        weight = stored[info.name]
        is_wide = not on_gpu() or weight.dtype == mx.float16
        weights.append((name, weight.astype(mx.float32) if is_wide else weight))
    vision.load_weights(weights)
    vision.eval()
    mx.eval(vision.parameters())
    return vision
