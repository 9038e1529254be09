"""Attention of one layer. Encode and decode differ only in the cache call and the mask."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from ..cache import CanvasView, FullLayerCache, KeysValues, PrefixCache, SlidingLayerCache
from ..config.model import FULL, RopeParameters, TextConfig
from ..prompt import Span, chunk_end, merge_spans

# A sliding layer takes a prompt in bands of this many rows. A band reads itself and the window before it, not
# the whole chunk. Smaller bands read fewer masked positions, larger ones need fewer launches.
BAND_ROWS = 512


# Where the positions of an image see each other in both directions: in sliding layers and inside the window
# (Gemma 4 in Transformers, and Google's own code), in all layers and beyond the window (DiffusionGemma's
# `generate` in Transformers), or nowhere (a direct call of DiffusionGemma in Transformers, and vLLM).
ImageAttention = Literal["sliding", "everywhere", "causal"]


class Attention(nn.Module):
    """Grouped-query attention with per-head norms of q, k and v and a scale of 1."""

    def __init__(self, config: TextConfig, layer: int):
        super().__init__()
        self.heads, self.kv_heads = config.num_attention_heads, config.kv_heads[layer]
        self.head_dim, self.eps = config.head_dims[layer], config.rms_norm_eps
        kind = config.layer_types[layer]
        self.window = None if kind == FULL else config.sliding_window
        hidden, width = config.hidden_size, self.head_dim
        self.q_proj = nn.Linear(hidden, self.heads * width, bias=False)
        self.k_proj = nn.Linear(hidden, self.kv_heads * width, bias=False)
        if kind != FULL:  # full layers have K = V
            self.v_proj = nn.Linear(hidden, self.kv_heads * width, bias=False)
        self.o_proj = nn.Linear(self.heads * width, hidden, bias=False)
        self.q_norm = nn.RMSNorm(width, eps=self.eps)
        self.k_norm = nn.RMSNorm(width, eps=self.eps)
        self.rope = proportional_rope(width, config.rope[kind])

    def keys_values(self, x: mx.array, position: int | mx.array) -> KeysValues:
        """Return K and V `[B, kv_heads, L, head_dim]` of normed rows `x [B, L, D]` from `position` on."""
        keys = self._split(self.k_proj(x), self.kv_heads)
        # On full layers V is the raw key projection: before its norm and before RoPE.
        values = self._split(self.v_proj(x), self.kv_heads) if "v_proj" in self else keys
        keys = self.rope(self.k_norm(keys).swapaxes(1, 2), position)
        values = mx.fast.rms_norm(values, None, self.eps).swapaxes(1, 2)
        return keys, values

    def encode(self, x: mx.array, chunk: Chunk, cache: FullLayerCache | SlidingLayerCache) -> mx.array:
        """Store K and V of rows `x [B, L, D]`. Return their attention to the cache and these rows."""
        keys, values = cache.append(*self.keys_values(x, chunk.position), chunk.offset)
        queries, rows = self._queries(x, chunk.position), x.shape[1]
        if self.window is None:
            return self._project(_attend(queries, keys, values, chunk.mask(0, rows, keys.shape[2])))
        before = keys.shape[2] - rows  # keys have the positions of the window, then those of the rows
        bands = []
        for start, end in chunk.bands(rows):
            near = slice(max(0, before + start - self.window + 1), before + end)
            mask = chunk.mask(start, end, near.stop - near.start, self.window)
            bands.append(_attend(queries[:, :, start:end], keys[:, :, near], values[:, :, near], mask))
        return self._project(mx.concatenate(bands, axis=2))

    def decode(self, x: mx.array, view: CanvasView, layer: int) -> mx.array:
        """Return the attention of canvas rows to the prefix in layer `layer` and to the whole canvas."""
        keys, values, mask = view.write(layer, *self.keys_values(x, view.position))
        return self._project(_attend(self._queries(x, view.position), keys, values, mask))

    def _queries(self, x: mx.array, position: int | mx.array) -> mx.array:
        return self.rope(self.q_norm(self._split(self.q_proj(x), self.heads)).swapaxes(1, 2), position)

    def _project(self, out: mx.array) -> mx.array:
        """Project the output of attention: `[B, heads, L, head_dim]` -> `[B, L, D]`."""
        return self.o_proj(out.swapaxes(1, 2).flatten(2))

    def _split(self, x: mx.array, heads: int) -> mx.array:
        return x.reshape(*x.shape[:2], heads, self.head_dim)


def _attend(queries: mx.array, keys: mx.array, values: mx.array, mask: mx.array | str | None) -> mx.array:
    """Return attention with a scale of 1. MLX chooses the kernel. No other choice is measured yet."""
    return mx.fast.scaled_dot_product_attention(queries, keys, values, scale=1.0, mask=mask)


def proportional_rope(head_dim: int, parameters: RopeParameters) -> nn.Module:
    """Return a split-half rotary embedding of `rotated * head_dim` features, in pairs (i, i + head_dim / 2).

    The frequency exponent is divided by the full head_dim even if few pairs turn ("proportional" RoPE of
    Gemma 4). The other pairs do not turn. The module takes `x [B, heads, L, head_dim]` and the position of
    the first row: an int or an int32 array, scalar or `[B]`.
    """
    # Imported here because mlx_lm imports transformers, which takes seconds. Not every command needs it.
    from mlx_lm.models.rope_utils import ProportionalRoPE

    rope: nn.Module = ProportionalRoPE(
        head_dim, rotated_dims=2 * int(parameters.rotated * head_dim // 2), base=parameters.theta
    )
    # Evaluated now: a lazy array belongs to this thread's stream and would fail in another thread.
    mx.eval(rope.state)
    return rope


class Chunk:
    """Rows that are encoded together: their positions, and which positions each may see, for all layers.

    offset: number of positions before the chunk.
    position: RoPE position of the first row: an int, or with padding int32 `[B]`, negative for padding.
    spans: for each row of the batch, start and end of its image blocks in the chunk.
    images: where the positions of a block see each other in both directions (see `ImageAttention`).
    """

    def __init__(
        self,
        cache: PrefixCache,
        spans: Sequence[Sequence[Span]] = (),
        images: ImageAttention = "sliding",
    ):
        self.images = images
        self.offset, self.left_padding, self.most_padded = cache.offset, cache.left_padding, cache.most_padded
        self.position = self.offset if self.left_padding is None else self.offset - self.left_padding
        self.spans = spans
        self._unbroken = merge_spans(span for row in spans for span in row)
        self._masks: dict[tuple[int, int, int | None, int, int | None], mx.array] = {}

    def bands(self, rows: int) -> Iterator[tuple[int, int]]:
        """Yield start and end of the bands in which a sliding layer takes `rows`. None cuts an image."""
        start = 0
        while start < rows:
            end = chunk_end(start, rows, BAND_ROWS, self._unbroken)
            yield start, end
            start = end

    def mask(self, start: int, end: int, keys: int, window: int | None = None) -> mx.array | str:
        """Return the mask of rows `start` to `end` of the chunk. The last of the `keys` keys are these rows.

        A row sees itself and earlier positions, within `window`, and its image block as `images` says.
        Padding is hidden, except from itself, because attention to nothing is not finite.

        Returns:
            "causal", or a boolean array `[rows, keys]`, or `[B, 1, rows, keys]` if the rows of the batch
            differ in padding or blocks. Arrays are cached.
        """
        first = self.offset + end - keys  # position of the first key
        padding = max(0, self.most_padded - first)
        sees_blocks = self.images == "everywhere" or (self.images == "sliding" and window is not None)
        blocks = sees_blocks and any(start < b and a < end for a, b in self._unbroken)
        if window is not None and keys <= window:
            window = None
        if window is None and not padding and not blocks:
            return "causal"
        made = (end - start, keys, window, padding, start if blocks else None)
        if made not in self._masks:
            distance = mx.arange(keys - (end - start), keys)[:, None] - mx.arange(keys)[None, :]
            visible = distance >= 0
            if blocks and self.images == "sliding":
                visible = visible | self._same_block(start, end, keys)
            if window is not None:
                visible = visible & (distance < window)
            if blocks and self.images == "everywhere":  # also beyond the window
                visible = visible | self._same_block(start, end, keys)
            if self.left_padding is not None and padding:
                held = mx.arange(first, first + keys) >= self.left_padding[:, None, None, None]
                visible = (visible & held) | (distance == 0)
            self._masks[made] = visible
        return self._masks[made]

    def _same_block(self, start: int, end: int, keys: int) -> mx.array:
        """Return True where row and key are in one image block: `[rows, keys]`, or `[B, 1, rows, keys]`."""
        numbers = np.zeros((len(self.spans), keys), dtype=np.int32)  # number of each key's block, 0 for none
        for row, spans in zip(numbers, self.spans, strict=True):
            for number, (first, last) in enumerate(spans, start=1):
                if start <= first and last <= end:
                    row[keys - end + first : keys - end + last] = number
        block = mx.array(numbers)[:, None, None, :]
        same = (block[..., start - end :].swapaxes(2, 3) == block) & (block > 0)
        return same if len(self.spans) > 1 else same[0, 0]
