"""Attention of one layer; encode and decode differ only in the cache call and the mask."""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn

from ..cache import CanvasView, FullLayerCache, KeysValues, SlidingLayerCache
from ..config import FULL, RopeParameters, TextConfig

# Rows of a prompt that a sliding layer takes at a time: each block reads the window before it and itself, not
# the whole chunk. Smaller blocks read less that they mask, larger ones need fewer launches.
BAND_ROWS = 512


# Head dims of MLX's fused attention kernel for more than 8 queries. Left to itself MLX writes out the scores
# of 192 and 256, which it holds to be faster; they are most of what attention moves (neither was timed here).
_FUSED_HEAD_DIMS = (64, 72, 80, 96, 128, 192, 256)


def _attend(queries: mx.array, keys: mx.array, values: mx.array, mask: mx.array | str | None) -> mx.array:
    on_metal = mx.metal.is_available() and mx.default_device().type == mx.DeviceType.gpu
    fused = on_metal and queries.shape[2] > 8 and queries.shape[3] in _FUSED_HEAD_DIMS
    return mx.fast.scaled_dot_product_attention(
        queries, keys, values, scale=1.0, mask=mask, force_fused=fused
    )


class BandMasks:
    """Masks of causal rows that see `window` positions, their own included; the same for all layers.

    Called with `rows` and `keys`, of which the last are the rows themselves: boolean `[rows, keys]`, or
    "causal" where the window holds all keys. Each is made once.
    """

    def __init__(self, window: int):
        self.window = window
        self._made: dict[tuple[int, int], mx.array] = {}

    def __call__(self, rows: int, keys: int) -> mx.array | str:
        if keys <= self.window:
            return "causal"
        if (rows, keys) not in self._made:
            distance = mx.arange(keys - rows, keys)[:, None] - mx.arange(keys)[None, :]
            self._made[rows, keys] = (distance >= 0) & (distance < self.window)
        return self._made[rows, keys]


class RoPE:
    """Split-half rotary embedding of `rotated * head_dim` features per head, in pairs (i, i + head_dim / 2).

    The frequency exponent is divided by the full head_dim even when few pairs turn ("proportional"
    RoPE of Gemma 4); the others have infinite wavelength. Not a Module: nothing here is a parameter.
    """

    def __init__(self, head_dim: int, parameters: RopeParameters):
        self.head_dim = head_dim
        live = int(parameters.rotated * head_dim // 2)
        exponents = mx.arange(0, 2 * live, 2, dtype=mx.float32) / head_dim
        still = mx.full((head_dim // 2 - live,), mx.inf)
        self.wavelengths = mx.concatenate([parameters.theta**exponents, still])
        # Evaluated now: a lazy array belongs to this thread's stream and would fail in another thread.
        mx.eval(self.wavelengths)

    def __call__(self, x: mx.array, offset: int | mx.array) -> mx.array:
        """Rotates `x [B, heads, L, head_dim]` whose first row stands at position `offset` (int32 scalar)."""
        return mx.fast.rope(
            x, self.head_dim, traditional=False, base=None, scale=1.0, offset=offset, freqs=self.wavelengths
        )


class Attention(nn.Module):
    """Grouped-query attention with per-head norms of q, k and v and a scale of 1."""

    def __init__(self, config: TextConfig, layer: int):
        super().__init__()
        self.heads, self.kv_heads = config.num_attention_heads, config.kv_heads[layer]
        self.head_dim, self.eps = config.head_dims[layer], config.rms_norm_eps
        kind = config.layer_types[layer]
        self.sliding = kind != FULL
        hidden, width = config.hidden_size, self.head_dim
        self.q_proj = nn.Linear(hidden, self.heads * width, bias=False)
        self.k_proj = nn.Linear(hidden, self.kv_heads * width, bias=False)
        if kind != FULL:  # full layers have K = V
            self.v_proj = nn.Linear(hidden, self.kv_heads * width, bias=False)
        self.o_proj = nn.Linear(self.heads * width, hidden, bias=False)
        self.q_norm = nn.RMSNorm(width, eps=self.eps)
        self.k_norm = nn.RMSNorm(width, eps=self.eps)
        self.rope = RoPE(width, config.rope[kind])

    def keys_values(self, x: mx.array, offset: int | mx.array) -> KeysValues:
        """K and V `[B, kv_heads, L, head_dim]` of normed rows `x [B, L, D]` at positions from `offset` on."""
        keys = self._split(self.k_proj(x), self.kv_heads)
        # On full layers V is the raw key projection: before its norm and before RoPE.
        values = self._split(self.v_proj(x), self.kv_heads) if "v_proj" in self else keys
        keys = self.rope(self.k_norm(keys).swapaxes(1, 2), offset)
        values = mx.fast.rms_norm(values, None, self.eps).swapaxes(1, 2)
        return keys, values

    def encode(
        self, x: mx.array, offset: int, masks: BandMasks, cache: FullLayerCache | SlidingLayerCache
    ) -> mx.array:
        """Rows `x [B, L, D]` attend to the cache and to themselves, and are stored."""
        keys, values = cache.append(*self.keys_values(x, offset), offset)
        queries, rows = self._queries(x, offset), x.shape[1]
        if not self.sliding:
            return self._project(_attend(queries, keys, values, "causal"))
        before = keys.shape[2] - rows  # positions of the window, then those of the rows
        blocks = []
        for start in range(0, rows, BAND_ROWS):
            end = min(start + BAND_ROWS, rows)
            seen = slice(max(0, before + start - masks.window + 1), before + end)
            mask = masks(end - start, seen.stop - seen.start)
            blocks.append(_attend(queries[:, :, start:end], keys[:, :, seen], values[:, :, seen], mask))
        return self._project(mx.concatenate(blocks, axis=2))

    def decode(self, x: mx.array, view: CanvasView, layer: int) -> mx.array:
        """Every canvas row attends to all that layer `layer` holds and to the whole canvas."""
        keys, values, mask = view.write(layer, *self.keys_values(x, view.offset))
        return self._project(_attend(self._queries(x, view.offset), keys, values, mask))

    def _queries(self, x: mx.array, offset: int | mx.array) -> mx.array:
        return self.rope(self.q_norm(self._split(self.q_proj(x), self.heads)).swapaxes(1, 2), offset)

    def _project(self, out: mx.array) -> mx.array:
        """Attention's output `[B, heads, L, head_dim]` -> `[B, L, D]`."""
        return self.o_proj(out.swapaxes(1, 2).flatten(2))

    def _split(self, x: mx.array, heads: int) -> mx.array:
        return x.reshape(*x.shape[:2], heads, self.head_dim)
