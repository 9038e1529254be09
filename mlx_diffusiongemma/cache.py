"""The prefix cache: keys and values of everything encoded so far, in buffers that are written in place.

Each layer has one buffer for keys and one for values, `[B, kv_heads, positions, head_dim]`, in temporal
order. A full-attention layer holds the prefix from position 0 on, a sliding one its last `window - 1`
positions, which end where a canvas begins. Both have room behind the prefix, where a decode pass writes the
canvas (`CanvasView`). It never copies the prefix, and the next pass overwrites the canvas.

A decode pass reads a range of positions whose size repeats (`Layout`), so that a compiled pass is traced for
a few sizes only. Where the prefix is shorter, a mask hides the difference.

Prompts of a batch end at the same position. Shorter ones are padded on the left, row i by `left_padding[i]`
positions. A mask hides the padding, and RoPE counts from the first token behind it.
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
    """Keys and values of one layer, `[B, kv_heads, capacity, head_dim]`, which the first `grow` makes."""

    keys: mx.array
    values: mx.array

    def __init__(self, kv_heads: int, head_dim: int, dtype: mx.Dtype):
        self.heads, self.head_dim, self.dtype = kv_heads, head_dim, dtype

    @property
    def capacity(self) -> int:
        return self.keys.shape[2] if hasattr(self, "keys") else 0

    def grow(self, batch: int, capacity: int) -> None:
        """Make room for `capacity` positions in all. The contents stay."""
        if capacity <= self.capacity:
            return
        room = mx.zeros((batch, self.heads, capacity - self.capacity, self.head_dim), dtype=self.dtype)
        if self.capacity:
            self.keys = mx.concatenate([self.keys, room], axis=2)
            self.values = mx.concatenate([self.values, room], axis=2)
        else:
            self.keys, self.values = room, room


class FullLayerCache(LayerCache):
    """All positions, from 0 on."""

    def append(self, keys: mx.array, values: mx.array, offset: int) -> KeysValues:
        """Store rows `[B, kv_heads, L, head_dim]` from position `offset` on. Return all rows up to them."""
        end, at = offset + keys.shape[2], mx.array(offset)
        self.keys, self.values = update_at(self.keys, keys, at), update_at(self.values, values, at)
        return self.keys[:, :, :end], self.values[:, :, :end]


class SlidingLayerCache(LayerCache):
    """The last `window - 1` positions, which a canvas and the next encoded row may see."""

    def __init__(self, kv_heads: int, head_dim: int, dtype: mx.Dtype, keep: int):
        super().__init__(kv_heads, head_dim, dtype)
        self.keep = keep

    def append(self, keys: mx.array, values: mx.array, offset: int) -> KeysValues:
        """Store rows as `FullLayerCache.append` does. Return the window before them, and them."""
        start = self.keep - min(offset, self.keep)
        keys = mx.concatenate([self.keys[:, :, start : self.keep], keys], axis=2)
        values = mx.concatenate([self.values[:, :, start : self.keep], values], axis=2)
        first = max(0, keys.shape[2] - self.keep)
        at = mx.array(self.keep - (keys.shape[2] - first))
        self.keys = update_at(self.keys, keys[:, :, first:], at)
        self.values = update_at(self.values, values[:, :, first:], at)
        return keys, values


class Layout(NamedTuple):
    """Sizes of what a decode pass reads. They repeat, so one trace of the step serves many passes.

    full: number of positions of full layers, from 0 on, the canvas included.
    window: number of positions of sliding layers, directly before the canvas.
    hides_full, hides_window: True if some of them are empty or padding.
    """

    full: int
    hides_full: bool
    window: int
    hides_window: bool


class CanvasView:
    """The cache in one decode pass. The layers replace `buffers` as they write their canvas rows.

    All arrays may be those of a trace.

    layout: of a cache with the same offset and left_padding.
    offset: int32 scalar, number of encoded positions.
    left_padding: int32 `[B]`, how many of them are padding, or None.
    position: of the canvas's first row for RoPE, int32, a scalar or with left_padding `[B]`.
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
        """Write canvas rows `[B, kv_heads, C, head_dim]` behind the prefix.

        Returns:
            The layer's keys and values up to and with the canvas, and the mask of the positions that hold
            something, `[1, 1, 1, positions]`, with left_padding `[B, 1, 1, positions]`. None if all do.
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
        else:  # as many as there are tokens, directly before the canvas
            mask = mx.arange(window + length) >= window - self.position.reshape(-1, 1)
        return mask[:, None, None]


class PrefixCache:
    """One cache per layer. The first rows set the batch size.

    offset: number of encoded positions, padding included.
    reserved: number of positions, with the last canvas, that full layers grow to when they grow next.
    dtype: of keys and values.
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

        Set it on an empty cache (`InputError` otherwise), as a list or array with a number for each row. The
        first positions that are encoded then are the padding.
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
        """Largest number of `left_padding`, 0 without."""
        return max(self._left_padding, default=0)

    def reserve(self, batch: int, rows: int, canvas: int) -> None:
        """Make room for `rows` more positions, and for a canvas of `canvas` behind them."""
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
        """Number of rows, 0 before the first `reserve`."""
        return self.layers[0].keys.shape[0] if self.layers[0].capacity else 0

    @property
    def nbytes(self) -> int:
        return sum(a.nbytes for layer in self.layers if layer.capacity for a in (layer.keys, layer.values))

    def is_trimmable(self) -> bool:
        """Return True if the sliding windows still hold every position."""
        return self.offset <= self.keep

    def trim(self, count: int) -> None:
        """Forget the last `count` positions. Needs `is_trimmable`."""
        length = self.offset - count
        for layer in self._sliding:
            first, at = self.keep - self.offset, mx.array(self.keep - length)
            layer.keys = update_at(layer.keys, layer.keys[:, :, first : first + length], at)
            layer.values = update_at(layer.values, layer.values[:, :, first : first + length], at)
        self.offset = length

    @property
    def windows(self) -> Windows:
        """Buffers of the sliding layers, for `restore`. Later writes leave them alone."""
        return [(layer.keys, layer.values) for layer in self._sliding]

    def restore(self, offset: int, windows: Windows) -> None:
        """Go back to an earlier `offset`, with the `windows` of that time."""
        for layer, (keys, values) in zip(self._sliding, windows, strict=True):
            layer.keys, layer.values = keys, values
        self.offset = offset

    @property
    def _sliding(self) -> list[SlidingLayerCache]:
        return [layer for layer in self.layers if isinstance(layer, SlidingLayerCache)]

    def layout(self, canvas: int) -> Layout:
        """Return the positions that a decode pass over a canvas of `canvas` positions reads."""
        positions = self.offset + canvas
        full = bucket(positions, self.config.canvas_length)
        window = min(bucket(min(self.offset, self.keep), self.config.canvas_length), self.keep)
        hides_full = positions < full or self.most_padded > 0
        return Layout(full, hides_full, window, self.offset - self.most_padded < window)

    @contextmanager
    def canvas(self, batch: int, length: int) -> Iterator[CanvasView]:
        """Yield a view for one decode pass over `[batch, length]` ids, and take its buffers in the end."""
        self.reserve(batch, 0, length)
        view = CanvasView(
            self.config, self.layout(length), mx.array(self.offset), self.buffers, self.left_padding
        )
        yield view
        self.buffers = view.buffers

    def take(self, rows: Sequence[int]) -> PrefixCache:
        """Return a new cache with these rows, in this order, with repeats.

        Raises `InputError` for a row that is not there.
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
        """Overwrite the canvas of the last decode pass. A mask would hide it, but not a NaN in it."""
        with self.canvas(batch, length) as view:
            for layer, (keys, _) in enumerate(view.buffers):
                zeros = mx.zeros((*keys.shape[:2], length, keys.shape[3]), dtype=keys.dtype)
                view.write(layer, zeros, zeros)


def update_at(buffer: mx.array, rows: mx.array, at: mx.array) -> mx.array:
    """Write `rows` into `buffer` from position `at` on: in place, if nothing else refers to the buffer."""
    return mx.slice_update(buffer, rows, at.reshape(1), axes=(2,))


def bucket(positions: int, unit: int) -> int:
    """Round `positions` up to 1, 2 or a multiple of 4 units (canvases)."""
    for size in (unit, 2 * unit):
        if positions <= size:
            return size
    return -(-positions // (4 * unit)) * 4 * unit
