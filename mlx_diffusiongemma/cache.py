"""The prefix cache: keys and values of everything encoded so far.

`append` belongs to encode: it stores and returns what the new rows may attend to. `peek` belongs to
decode: it returns the prefix followed by the canvas and stores nothing. Both return keys and values
`[B, kv_heads, positions, head_dim]` in temporal order, which attention masks rely on.
"""

from __future__ import annotations

import mlx.core as mx
from mlx_lm.models.cache import KVCache

from .config import FULL, TextConfig

KeysValues = tuple[mx.array, mx.array]


class FullLayerCache(KVCache):
    """All positions, in a buffer that grows by steps of 256 (mlx-lm's KVCache)."""

    def append(self, keys: mx.array, values: mx.array) -> KeysValues:
        return self.update_and_fetch(keys, values)

    def peek(self, keys: mx.array, values: mx.array) -> KeysValues:
        # The canvas lands behind the prefix in the same buffer; giving the positions back right away
        # lets the next call overwrite it, so the prefix is never copied.
        fetched = self.update_and_fetch(keys, values)
        self.trim(keys.shape[2])
        return fetched


class SlidingLayerCache:
    """The last `window - 1` positions: what a canvas may see, and what the next encoded row may see."""

    def __init__(self, window: int):
        self.keep = window - 1
        self.keys: mx.array | None = None
        self.values: mx.array | None = None

    def append(self, keys: mx.array, values: mx.array) -> KeysValues:
        keys, values = self.peek(keys, values)
        start = max(0, keys.shape[2] - self.keep)
        # Copies: a view would keep the whole prefill chunk alive.
        self.keys = mx.contiguous(keys[:, :, start:])
        self.values = mx.contiguous(values[:, :, start:])
        return keys, values

    def peek(self, keys: mx.array, values: mx.array) -> KeysValues:
        if self.keys is None or self.values is None:
            return keys, values
        return mx.concatenate([self.keys, keys], axis=2), mx.concatenate([self.values, values], axis=2)


class PrefixCache:
    """One cache per layer, and `offset`: how many tokens have been encoded (= position of the next)."""

    def __init__(self, config: TextConfig):
        self.layers: list[FullLayerCache | SlidingLayerCache] = [
            FullLayerCache() if kind == FULL else SlidingLayerCache(config.sliding_window)
            for kind in config.layer_types
        ]
        self.offset = 0

    def arrays(self) -> list[mx.array]:
        """Every array held, for `mx.eval`."""
        return [a for layer in self.layers for a in (layer.keys, layer.values) if a is not None]
