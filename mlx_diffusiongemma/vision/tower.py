"""The vision tower: patches of one image to soft tokens in the text model's width.

Names follow the checkpoint (`vision_tower`, `embed_vision`). An image is never padded, so no mask is needed.
From pooling to projection everything is float32: the pooled features reach the tens of thousands.
"""

from __future__ import annotations

from functools import partial

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from ..config.vision import VisionConfig
from ..errors import InputError
from ..ops import on_gpu

# Rows of queries at a time where MLX has no fused attention: this bounds the memory of the scores.
_BAND_ROWS = 512
# Sizes of heads for which MLX's GPU backend has a fused attention without a mask.
_FUSED = (64, 80, 128)


class Vision(nn.Module):
    """The tower and its projection into the text model."""

    def __init__(self, config: VisionConfig, text_size: int):
        super().__init__()
        self.config = config
        self.vision_tower = Tower(config)
        self.embed_vision = nn.Module()
        self.embed_vision.embedding_projection = nn.Linear(config.hidden_size, text_size, bias=False)

    def __call__(self, patches: mx.array, positions: np.ndarray) -> mx.array:
        """Return the soft tokens of one image, float32 `[n / K², D]`, row by row of the image.

        Args:
            patches: values from 0 to 1, `[n, P * P * 3]`: rows and columns of pixels, then channels.
            positions: column and row of each patch, int `[n, 2]`. Together they fill a rectangle.

        Raises:
            InputError: the positions are not those of a rectangle whose sides are multiples of K patches, or
                the tower has no embeddings for them.
        """
        order = pooling_order(positions, self.config.pooling_kernel_size)
        width, most = 3 * self.config.patch_size**2, self.config.position_embedding_size
        if patches.shape != (len(order), width) or positions.max() >= most:
            raise InputError(
                f"an image of {len(order)} patches with values {list(patches.shape)} and places up to "
                f"{positions.max()}; the tower takes {width} values a patch and places below {most}"
            )
        features = self.vision_tower(patches, positions, mx.array(order))
        # The weightless norm comes before the projection, and the result is not scaled.
        features = mx.fast.rms_norm(features, None, self.config.rms_norm_eps)
        projection = self.embed_vision.embedding_projection
        return projection(features.astype(projection.weight.dtype)).astype(mx.float32)


class Tower(nn.Module):
    """`vision_tower`: patch embedding, bidirectional layers, pooling, standardization."""

    def __init__(self, config: VisionConfig):
        super().__init__()
        self.config = config
        self.patch_embedder = PatchEmbedder(config)
        self.encoder = nn.Module()
        self.encoder.layers = [TowerLayer(config) for _ in range(config.num_hidden_layers)]
        if config.standardize:
            self.std_bias = mx.zeros((config.hidden_size,))
            self.std_scale = mx.ones((config.hidden_size,))

    def __call__(self, patches: mx.array, positions: np.ndarray, order: mx.array) -> mx.array:
        """Patches `[n, P * P * 3]` -> features `[n / K², hidden]`, float32. See `pooling_order`."""
        x = self.patch_embedder(patches, mx.array(positions))[None]
        angles = axial_angles(positions, self.config.head_dim, self.config.rope_theta, x.dtype)
        for layer in self.encoder.layers:
            x = layer(x, *angles)
        cells = x[0][order].reshape(-1, self.config.pooling_kernel_size**2, x.shape[-1])
        # Rounded to the working dtype before it is scaled, as the reference does.
        pooled = cells.astype(mx.float32).mean(axis=1).astype(x.dtype).astype(mx.float32)
        pooled = pooled * self.config.hidden_size**0.5
        if self.config.standardize:
            pooled = (pooled - self.std_bias.astype(mx.float32)) * self.std_scale.astype(mx.float32)
        return pooled


class PatchEmbedder(nn.Module):
    """Projects a patch, and adds an embedding of its column and one of its row."""

    def __init__(self, config: VisionConfig):
        super().__init__()
        self.input_proj = nn.Linear(3 * config.patch_size**2, config.hidden_size, bias=False)
        self.position_embedding_table = mx.zeros((2, config.position_embedding_size, config.hidden_size))

    def __call__(self, patches: mx.array, positions: mx.array) -> mx.array:
        columns, rows = self.position_embedding_table
        x = (2 * (patches - 0.5)).astype(self.input_proj.weight.dtype)
        return self.input_proj(x) + (columns[positions[:, 0]] + rows[positions[:, 1]])


class TowerLayer(nn.Module):
    """Attention and a gated MLP, each with a norm before and after it."""

    def __init__(self, config: VisionConfig):
        super().__init__()

        def norm() -> nn.RMSNorm:
            return nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)

        self.self_attn = TowerAttention(config)
        self.mlp = TowerMLP(config)
        self.input_layernorm = norm()
        self.post_attention_layernorm = norm()
        self.pre_feedforward_layernorm = norm()
        self.post_feedforward_layernorm = norm()

    def __call__(self, x: mx.array, cos: mx.array, sin: mx.array) -> mx.array:
        x = x + self.post_attention_layernorm(self.self_attn(self.input_layernorm(x), cos, sin))
        return x + self.post_feedforward_layernorm(self.mlp(self.pre_feedforward_layernorm(x)))


class TowerAttention(nn.Module):
    """Attention of every patch to every patch, with per-head norms of q, k and v and a scale of 1."""

    def __init__(self, config: VisionConfig):
        super().__init__()
        self.head_dim, self.eps = config.head_dim, config.rms_norm_eps
        heads, groups = config.num_attention_heads * self.head_dim, config.num_key_value_heads * self.head_dim
        self.q_proj = Projection(config.hidden_size, heads, config.use_clipped_linears)
        self.k_proj = Projection(config.hidden_size, groups, config.use_clipped_linears)
        self.v_proj = Projection(config.hidden_size, groups, config.use_clipped_linears)
        self.o_proj = Projection(heads, config.hidden_size, config.use_clipped_linears)
        self.q_norm = nn.RMSNorm(self.head_dim, eps=self.eps)
        self.k_norm = nn.RMSNorm(self.head_dim, eps=self.eps)

    def __call__(self, x: mx.array, cos: mx.array, sin: mx.array) -> mx.array:
        queries = _rotated(self.q_norm(self._split(self.q_proj(x))), cos, sin)
        keys = _rotated(self.k_norm(self._split(self.k_proj(x))), cos, sin)
        values = mx.fast.rms_norm(self._split(self.v_proj(x)), None, self.eps)
        out = _attend(*(each.swapaxes(1, 2) for each in (queries, keys, values)))
        return self.o_proj(out.swapaxes(1, 2).flatten(2))

    def _split(self, x: mx.array) -> mx.array:
        return x.reshape(*x.shape[:2], -1, self.head_dim)


class TowerMLP(nn.Module):
    """`down(gelu(gate(x)) * up(x))`."""

    def __init__(self, config: VisionConfig):
        super().__init__()
        hidden, width, clipped = config.hidden_size, config.intermediate_size, config.use_clipped_linears
        self.gate_proj = Projection(hidden, width, clipped)
        self.up_proj = Projection(hidden, width, clipped)
        self.down_proj = Projection(width, hidden, clipped)

    def __call__(self, x: mx.array) -> mx.array:
        return self.down_proj(_geglu(self.gate_proj(x), self.up_proj(x)))


class Projection(nn.Module):
    """A matrix without bias. If `clipped`, its input and output are clipped to stored bounds."""

    def __init__(self, inputs: int, outputs: int, clipped: bool):
        super().__init__()
        self.linear = nn.Linear(inputs, outputs, bias=False)
        if clipped:
            self.input_min, self.output_min = mx.array(-float("inf")), mx.array(-float("inf"))
            self.input_max, self.output_max = mx.array(float("inf")), mx.array(float("inf"))

    def __call__(self, x: mx.array) -> mx.array:
        if "input_min" not in self:
            return self.linear(x)
        x = self.linear(mx.clip(x, self.input_min, self.input_max))
        return mx.clip(x, self.output_min, self.output_max)


def axial_angles(
    positions: np.ndarray, head_dim: int, theta: float, dtype: mx.Dtype
) -> tuple[mx.array, mx.array]:
    """Return cosines and sines for `_rotated`, `[n, 1, 2, head_dim / 4]`: of columns, then of rows."""
    half = head_dim // 2
    frequencies = 1.0 / theta ** (np.arange(0, half, 2, dtype=np.float32) / np.float32(half))
    angles = mx.array(positions.astype(np.float32)[:, None, :, None] * frequencies.astype(np.float32))
    return mx.cos(angles).astype(dtype), mx.sin(angles).astype(dtype)


@partial(mx.compile, shapeless=True)
def _turned(a: mx.array, b: mx.array, cos: mx.array, sin: mx.array) -> list[mx.array]:
    return [a * cos - b * sin, b * cos + a * sin]


def _rotated(x: mx.array, cos: mx.array, sin: mx.array) -> mx.array:
    """Rotate `x [1, n, heads, head_dim]`: one half of a head by the column, the other by the row.

    Within each half, feature i turns with feature i + head_dim / 4.
    """
    parts = x.reshape(*x.shape[:-1], 2, 2, -1)
    turned = _turned(parts[..., 0, :], parts[..., 1, :], cos, sin)
    return mx.stack(turned, axis=-2).reshape(x.shape)


def _attend(queries: mx.array, keys: mx.array, values: mx.array) -> mx.array:
    """Attention `[1, heads, n, head_dim]` of all to all, with a scale of 1."""
    attend = partial(mx.fast.scaled_dot_product_attention, scale=1.0)
    size = queries.shape[-1]
    if on_gpu():
        # Zeros at the end of each head change nothing, and let MLX take its fused kernel.
        wide = next((each for each in _FUSED if each >= size), size)
        widths = [(0, 0)] * 3 + [(0, wide - size)]
        out: mx.array = attend(*(mx.pad(each, widths) for each in (queries, keys, values)))[..., :size]
        return out
    starts = range(0, queries.shape[2], _BAND_ROWS)
    return mx.concatenate([attend(queries[:, :, i : i + _BAND_ROWS], keys, values) for i in starts], axis=2)


@partial(mx.compile, shapeless=True)
def _geglu(gate: mx.array, up: mx.array) -> mx.array:
    return nn.gelu_approx(gate) * up


def pooling_order(positions: np.ndarray, kernel: int) -> np.ndarray:
    """Return the patches cell by cell, int32 `[n]`: `kernel`² patches of each cell, cells row by row."""
    columns, rows = positions[:, 0], positions[:, 1]
    width, height = int(columns.max(initial=-1)) + 1, int(rows.max(initial=-1)) + 1
    cells = columns // kernel + (width // kernel) * (rows // kernel)
    places = np.sort(columns.astype(np.int64) + width * rows.astype(np.int64))
    whole = width % kernel == height % kernel == 0 and np.array_equal(places, np.arange(width * height))
    if not len(positions) or not whole or positions.min() < 0:
        raise InputError(
            f"an image of {len(positions)} patches in {width} columns and {height} rows: they must fill a "
            f"rectangle whose sides are multiples of {kernel}"
        )
    return np.argsort(cells, kind="stable").astype(np.int32)
