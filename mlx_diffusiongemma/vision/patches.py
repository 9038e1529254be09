"""Cuts an image into patches, bit for bit as Transformers' `Gemma4ImageProcessorPil` does it."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from ..errors import InputError

if TYPE_CHECKING:
    from PIL.Image import Image

BUDGETS = (70, 140, 280, 560, 1120)  # soft tokens per image


@dataclass(frozen=True)
class Patches:
    """Input of the vision tower.

    values: float32 `[n, P * P * 3]`, from 0 to 1: rows and columns of pixels, then channels.
    positions: column and row of each patch, int32 `[n, 2]`.
    soft_tokens: number of soft tokens that they become.
    digest: hash of `values` and `positions`.
    """

    values: np.ndarray = field(repr=False)
    positions: np.ndarray = field(repr=False)
    soft_tokens: int
    digest: str = ""

    def __post_init__(self) -> None:
        content = hashlib.sha256(self.values.tobytes())
        content.update(self.positions.tobytes())
        object.__setattr__(self, "digest", content.hexdigest()[:32])


def fitted_size(width: int, height: int, budget: int, patch: int = 16, kernel: int = 3) -> tuple[int, int]:
    """Return the width and height to which an image is resized, multiples of `patch * kernel` pixels.

    The image fills the budget, also if it is smaller. Each side is rounded down by itself, so its shape
    changes a little. A side that would vanish becomes one soft token, and the other takes the budget.
    """
    unit = patch * kernel
    factor = math.sqrt(budget * unit**2 / (width * height))
    columns, rows = (math.floor(factor * side / unit) for side in (width, height))
    if rows == 0:
        rows, columns = 1, min(width // height, budget)
    elif columns == 0:
        columns, rows = 1, min(height // width, budget)
    return columns * unit, rows * unit


def check_budget(budget: int) -> int:
    """Raise `InputError` unless `budget` is one that the model was trained with."""
    if isinstance(budget, bool) or budget not in BUDGETS:
        choices = ", ".join(map(str, BUDGETS))
        raise InputError(f"soft_tokens must be one of {choices}, found {budget!r}")
    return budget


def cut(image: Image, budget: int, patch: int = 16, kernel: int = 3) -> Patches:
    """Resize an RGB image to fill `budget` soft tokens, and cut it into patches."""
    from PIL.Image import Resampling

    width, height = fitted_size(*image.size, check_budget(budget), patch, kernel)
    if (width, height) != image.size:
        image = image.resize((width, height), Resampling.BICUBIC)
    pixels = np.asarray(image, dtype=np.float32) / np.float32(255)
    columns, rows = width // patch, height // patch
    values = pixels.reshape(rows, patch, columns, patch, 3).swapaxes(1, 2).reshape(rows * columns, -1)
    grid = np.meshgrid(np.arange(columns, dtype=np.int32), np.arange(rows, dtype=np.int32))
    positions = np.stack(grid, axis=-1).reshape(-1, 2)
    return Patches(np.ascontiguousarray(values), positions, rows * columns // kernel**2)
