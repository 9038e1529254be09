"""One transformer layer: attention, then a dense MLP and experts side by side."""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn

from ..cache import CanvasView, FullLayerCache, SlidingLayerCache
from ..config.model import TextConfig
from .attention import Attention, Chunk
from .mlp import GatedMLP
from .moe import Experts, Router


class DecoderLayer(nn.Module):
    """Weights of one layer (parameter names are Hugging Face's); `layer_scalar` is the decoder's own."""

    def __init__(self, config: TextConfig, layer: int):
        super().__init__()

        def norm() -> nn.RMSNorm:
            return nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)

        self.self_attn = Attention(config, layer)
        self.mlp = GatedMLP(config.hidden_size, config.intermediate_size)
        self.router = Router(config)
        self.experts = Experts(config)
        self.input_layernorm = norm()
        self.post_attention_layernorm = norm()
        self.pre_feedforward_layernorm = norm()
        self.pre_feedforward_layernorm_2 = norm()
        self.post_feedforward_layernorm = norm()
        self.post_feedforward_layernorm_1 = norm()
        self.post_feedforward_layernorm_2 = norm()
        self.layer_scalar = mx.ones((1,))

    def encode(
        self,
        x: mx.array,
        chunk: Chunk,
        cache: FullLayerCache | SlidingLayerCache,
        layer_scalar: mx.array,
    ) -> mx.array:
        """Causal rows `x [B, L, D]`, stored in the cache, scaled by the *encoder's* `layer_scalar`."""
        attended = self.self_attn.encode(self.input_layernorm(x), chunk, cache)
        return self._feedforward(x + self.post_attention_layernorm(attended)) * layer_scalar

    def encode_last(self, x: mx.array, chunk: Chunk, cache: FullLayerCache | SlidingLayerCache) -> None:
        """The last layer of encode: nobody reads its output, so only keys and values are made."""
        cache.append(*self.self_attn.keys_values(self.input_layernorm(x), chunk.position), chunk.offset)

    def decode(self, x: mx.array, view: CanvasView, layer: int) -> mx.array:
        """Bidirectional canvas rows `x [B, C, D]`; `layer` is this layer's number, the view's key."""
        attended = self.self_attn.decode(self.input_layernorm(x), view, layer)
        return self._feedforward(x + self.post_attention_layernorm(attended)) * self.layer_scalar

    def _feedforward(self, residual: mx.array) -> mx.array:
        dense = self.post_feedforward_layernorm_1(self.mlp(self.pre_feedforward_layernorm(residual)))
        # The router looks at the raw residual, the experts at a normed one.
        routed = self.experts(self.pre_feedforward_layernorm_2(residual), *self.router(residual))
        routed = self.post_feedforward_layernorm_2(routed)
        return residual + self.post_feedforward_layernorm(dense + routed)
