"""The prefix cache: keys and values of everything encoded so far, in buffers that are written in place.

Each layer has one buffer for keys and one for values, `[B, kv_heads, positions, head_dim]`, in the order of
positions. A full-attention layer holds the whole prefix, a sliding one its last `window - 1` positions. Both
have room after the prefix, where a decode pass writes the canvas (`CanvasView`). A decode pass never copies
the prefix, and the next pass overwrites the canvas.

The number of positions that a decode pass reads is rounded up (`Layout`), so that MLX traces a compiled pass
for a few sizes only. A mask hides positions that are empty.

Prompts of a batch end at the same position. Shorter ones are padded on the left, row i by `left_padding[i]`
positions. A mask hides the padding, and RoPE counts from the first token after it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import mlx.core as mx

from .config.model import FULL, ModelConfig
from .errors import InputError

KeysValues = tuple[mx.array, mx.array]
Windows = list[KeysValues]  # the buffers of all sliding layers


class LayerCache:
    """Keys and values of one layer, `[B, kv_heads, capacity, head_dim]`. The first `grow` creates them."""

    keys: mx.array
    values: mx.array

    def __init__(self, kv_heads: int, head_dim: int, dtype: mx.Dtype):
        self.heads, self.head_dim, self.dtype = kv_heads, head_dim, dtype

    @property
    def capacity(self) -> int:
        return self.keys.shape[2] if hasattr(self, "keys") else 0

    def grow(self, batch: int, capacity: int) -> None:
        """Grow the buffers to at least `capacity` positions, and keep their contents."""
        if capacity <= self.capacity:
            return
        room = mx.zeros((batch, self.heads, capacity - self.capacity, self.head_dim), dtype=self.dtype)
        if self.capacity:
            self.keys = mx.concatenate([self.keys, room], axis=2)
            self.values = mx.concatenate([self.values, room], axis=2)
        else:
            self.keys, self.values = room, room


class FullLayerCache(LayerCache):
    """Cache of a full-attention layer, which holds all positions from 0 on."""

    def append(self, keys: mx.array, values: mx.array, offset: int) -> KeysValues:
        """Store keys and values `[B, kv_heads, L, head_dim]` from position `offset` on.

        Return those of all positions so far.
        """
        end, at = offset + keys.shape[2], mx.array(offset)
        self.keys, self.values = update_at(self.keys, keys, at), update_at(self.values, values, at)
        return self.keys[:, :, :end], self.values[:, :, :end]


class SlidingLayerCache(LayerCache):
    """Cache of a sliding layer: the last `window - 1` positions. Later positions see no others."""

    def __init__(self, kv_heads: int, head_dim: int, dtype: mx.Dtype, keep: int):
        super().__init__(kv_heads, head_dim, dtype)
        self.keep = keep

    def append(self, keys: mx.array, values: mx.array, offset: int) -> KeysValues:
        """Store rows as `FullLayerCache.append` does. Return the window before them, followed by them."""
        start = self.keep - min(offset, self.keep)
        keys = mx.concatenate([self.keys[:, :, start : self.keep], keys], axis=2)
        values = mx.concatenate([self.values[:, :, start : self.keep], values], axis=2)
        first = max(0, keys.shape[2] - self.keep)
        at = mx.array(self.keep - (keys.shape[2] - first))
        self.keys = update_at(self.keys, keys[:, :, first:], at)
        self.values = update_at(self.values, values[:, :, first:], at)
        return keys, values


class Layout(NamedTuple):
    """Positions that a decode pass reads. Numbers are rounded, so one trace of the step serves many passes.

    full: number of positions that full layers read, from 0 on, including the canvas.
    window: number of positions that sliding layers read, directly before the canvas.
    hides_full, hides_window: True if some of these positions are empty or padding, so a mask hides them.
    """

    full: int
    hides_full: bool
    window: int
    hides_window: bool


class CanvasView:
    """The cache during one decode pass. Each layer replaces its entry in `buffers` by one with its canvas.

    All arrays may be placeholders in a trace of `mx.compile`.

    layout: result of `PrefixCache.layout`.
    offset: int32 scalar, number of encoded positions.
    left_padding: int32 `[B]`, number of padding positions that each row begins with, or None.
    position: RoPE position of the canvas's first row, int32: a scalar, or `[B]` with left_padding.
    """

    def __init__(
        self,
        config: ModelConfig,
        layout: Layout,
        offset: mx.array,
        buffers: Sequence[KeysValues],
        left_padding: mx.array | None = None,
    ):
        self.kinds, self.keep = config.text.layer_types, config.text.sliding_window - 1
        self.layout, self.offset, self.buffers = layout, offset, list(buffers)
        self.left_padding = left_padding
        self.position = offset if left_padding is None else offset - left_padding
        self._masks: dict[str, mx.array | None] = {}

    def write(
        self, layer: int, keys: mx.array, values: mx.array
    ) -> tuple[mx.array, mx.array, mx.array | None]:
        """Write canvas rows `[B, kv_heads, C, head_dim]` after the prefix.

        Returns:
            The keys and values that the layer reads, including the canvas, and a mask `[1, 1, 1, positions]`,
            or `[B, 1, 1, positions]` with left_padding. It is False for empty positions and padding. The
            mask is None if there are none.
        """
        kind, length = self.kinds[layer], keys.shape[2]
        full, _, window, _ = self.layout
        if kind == FULL:
            at, start, end = self.offset, 0, full
        else:
            at, start, end = mx.array(self.keep), self.keep - window, self.keep + length
        buffer_keys, buffer_values = self.buffers[layer]
        keys, values = update_at(buffer_keys, keys, at), update_at(buffer_values, values, at)
        self.buffers[layer] = keys, values
        if kind not in self._masks:
            self._masks[kind] = self._mask(kind, length)
        return keys[:, :, start:end], values[:, :, start:end], self._masks[kind]

    def _mask(self, kind: str, length: int) -> mx.array | None:
        full, hides_full, window, hides_window = self.layout
        if not (hides_full if kind == FULL else hides_window):
            return None
        if kind == FULL:
            positions = mx.arange(full)[None]
            mask = positions < self.offset + length
            if self.left_padding is not None:
                mask = mask & (positions >= self.left_padding[:, None])
        else:  # tokens lie directly before the canvas, empty positions and padding before them
            mask = mx.arange(window + length) >= window - self.position.reshape(-1, 1)
        return mask[:, None, None]


class PrefixCache:
    """The caches of all layers. The first rows that are encoded set the batch size.

    offset: number of encoded positions, including padding.
    reserved: minimum capacity of full layers when they grow next. Set it to the final number of positions,
        including the last canvas, so that they grow only once.
    dtype: dtype of keys and values.
    """

    def __init__(self, config: ModelConfig, dtype: mx.Dtype):
        self.config, self.dtype, text = config, dtype, config.text
        self.keep = text.sliding_window - 1
        self.layers: list[FullLayerCache | SlidingLayerCache] = [
            FullLayerCache(heads, width, dtype)
            if kind == FULL
            else SlidingLayerCache(heads, width, dtype, self.keep)
            for kind, heads, width in zip(text.layer_types, text.kv_heads, text.head_dims, strict=True)
        ]
        self.offset = 0
        self.reserved = 0
        self._left_padding: list[int] = []

    @property
    def left_padding(self) -> mx.array | None:
        """Number of padding positions that each row begins with, int32 `[B]`. None if no row has any.

        Set it on an empty cache (otherwise `InputError`), as a list or array with one number per row. Then
        encode prompts that include the padding.
        """
        return mx.array(self._left_padding, dtype=mx.int32) if self.most_padded else None

    @left_padding.setter
    def left_padding(self, left_padding: Sequence[int] | mx.array | None) -> None:
        if self.offset:
            raise InputError(
                f"left_padding: the cache holds {self.offset} positions already; set them before"
            )
        self._left_padding = [] if left_padding is None else [int(pad) for pad in left_padding]

    @property
    def most_padded(self) -> int:
        """Largest number in `left_padding`, or 0 without padding."""
        return max(self._left_padding, default=0)

    def reserve(self, batch: int, rows: int, canvas: int) -> None:
        """Make room for `rows` more positions and a canvas of `canvas` positions after them."""
        positions = bucket(max(self.offset + rows + canvas, self.reserved), self.config.canvas_length)
        for layer in self.layers:
            layer.grow(batch, self.keep + canvas if isinstance(layer, SlidingLayerCache) else positions)

    @property
    def buffers(self) -> list[KeysValues]:
        """Keys and values of every layer."""
        return [(layer.keys, layer.values) for layer in self.layers]

    @buffers.setter
    def buffers(self, buffers: Sequence[KeysValues]) -> None:
        for layer, (keys, values) in zip(self.layers, buffers, strict=True):
            layer.keys, layer.values = keys, values

    @property
    def batch(self) -> int:
        """Number of rows in the batch, 0 before the first `reserve`."""
        return self.layers[0].keys.shape[0] if self.layers[0].capacity else 0

    @property
    def nbytes(self) -> int:
        return sum(a.nbytes for layer in self.layers if layer.capacity for a in (layer.keys, layer.values))

    def is_trimmable(self) -> bool:
        """Return True if sliding layers still hold every position, as `trim` needs."""
        return self.offset <= self.keep

    def trim(self, count: int) -> None:
        """Forget the last `count` positions. Call it only if `is_trimmable()`."""
        length = self.offset - count
        for layer in self._sliding:
            first, at = self.keep - self.offset, mx.array(self.keep - length)
            layer.keys = update_at(layer.keys, layer.keys[:, :, first : first + length], at)
            layer.values = update_at(layer.values, layer.values[:, :, first : first + length], at)
        self.offset = length

    @property
    def windows(self) -> Windows:
        """Buffers of the sliding layers, for `restore`. Later writes do not change them."""
        return [(layer.keys, layer.values) for layer in self._sliding]

    def restore(self, offset: int, windows: Windows) -> None:
        """Go back to an earlier `offset`. windows: the property `windows` as it was then."""
        for layer, (keys, values) in zip(self._sliding, windows, strict=True):
            layer.keys, layer.values = keys, values
        self.offset = offset

    @property
    def _sliding(self) -> list[SlidingLayerCache]:
        return [layer for layer in self.layers if isinstance(layer, SlidingLayerCache)]

    def layout(self, canvas: int) -> Layout:
        """Return the `Layout` of a decode pass over a canvas of `canvas` positions."""
        positions = self.offset + canvas
        full = bucket(positions, self.config.canvas_length)
        window = min(bucket(min(self.offset, self.keep), self.config.canvas_length), self.keep)
        hides_full = positions < full or self.most_padded > 0
        return Layout(full, hides_full, window, self.offset - self.most_padded < window)

    @contextmanager
    def canvas(self, batch: int, length: int) -> Iterator[CanvasView]:
        """Yield a view for one decode pass over `[batch, length]` ids. At the end, keep its buffers."""
        self.reserve(batch, 0, length)
        view = CanvasView(
            self.config, self.layout(length), mx.array(self.offset), self.buffers, self.left_padding
        )
        yield view
        self.buffers = view.buffers

    def take(self, rows: Sequence[int]) -> PrefixCache:
        """Return a new cache with copies of `rows`, in this order. A row may occur more than once.

        Raises `InputError` if `rows` is empty or a row does not exist.
        """
        other = PrefixCache(self.config, self.dtype)
        if not rows or not all(0 <= row < self.batch for row in rows):
            raise InputError(
                f"rows {list(rows)}: the cache holds {self.batch}, numbered from 0; take some of them"
            )
        if self._left_padding:
            other.left_padding = [self._left_padding[row] for row in rows]
        other.offset, other.reserved = self.offset, self.reserved
        index = mx.array(list(rows))
        other.buffers = [(keys[index], values[index]) for keys, values in self.buffers]
        # Lazy copies would refer to these buffers, which could then not be written in place.
        mx.eval(other.buffers)
        return other

    def forget_canvas(self, batch: int, length: int) -> None:
        """Overwrite the canvas of the last decode pass with zeros. A mask cannot hide a NaN in it."""
        with self.canvas(batch, length) as view:
            for layer, (keys, _) in enumerate(view.buffers):
                zeros = mx.zeros((*keys.shape[:2], length, keys.shape[3]), dtype=keys.dtype)
                view.write(layer, zeros, zeros)


def update_at(buffer: mx.array, rows: mx.array, at: mx.array) -> mx.array:
    """Write `rows` into `buffer` from position `at` on: in place, if nothing else refers to the buffer."""
    return mx.slice_update(buffer, rows, at.reshape(1), axes=(2,))


def bucket(positions: int, unit: int) -> int:
    """Round `positions` up to 1, 2 or a multiple of 4 times `unit`, the canvas length."""
    for size in (unit, 2 * unit):
        if positions <= size:
            return size
    return -(-positions // (4 * unit)) * 4 * unit
