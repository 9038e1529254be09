"""One transformer layer: attention, then a dense MLP and experts in parallel."""

from __future__ import annotations

from functools import partial

import mlx.core as mx
import mlx.nn as nn

from ..cache import CanvasView, FullLayerCache, SlidingLayerCache
from ..config.model import TextConfig
from .attention import Attention, Chunk

# From this many routed rows on, sorting rows by expert pays: each expert's weights are read once.
_SORT_FROM = 64


class DecoderLayer(nn.Module):
    """Weights of one layer, under Hugging Face's names. `layer_scalar` is the decoder's own."""

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
        self, x: mx.array, chunk: Chunk, cache: FullLayerCache | SlidingLayerCache, layer_scalar: mx.array
    ) -> mx.array:
        """Encode rows `x [B, L, D]` causally, and store K and V. `layer_scalar` is the encoder's."""
        attended = self.self_attn.encode(self.input_layernorm(x), chunk, cache)
        return self._feedforward(x + self.post_attention_layernorm(attended)) * layer_scalar

    def encode_last(self, x: mx.array, chunk: Chunk, cache: FullLayerCache | SlidingLayerCache) -> None:
        """Store keys and values only, in the last layer, because nothing reads its output."""
        cache.append(*self.self_attn.keys_values(self.input_layernorm(x), chunk.position), chunk.offset)

    def decode(self, x: mx.array, view: CanvasView, layer: int) -> mx.array:
        """Decode canvas rows `x [B, C, D]` bidirectionally. layer: index of this layer in the view."""
        attended = self.self_attn.decode(self.input_layernorm(x), view, layer)
        return self._feedforward(x + self.post_attention_layernorm(attended)) * self.layer_scalar

    def _feedforward(self, residual: mx.array) -> mx.array:
        dense = self.post_feedforward_layernorm_1(self.mlp(self.pre_feedforward_layernorm(residual)))
        # The router looks at the raw residual, the experts at a normed one.
        routed = self.experts(self.pre_feedforward_layernorm_2(residual), *self.router(residual))
        routed = self.post_feedforward_layernorm_2(routed)
        return residual + self.post_feedforward_layernorm(dense + routed)


class GatedMLP(nn.Module):
    """`down(gelu(gate(x)) * up(x))`, D -> intermediate -> D, without biases."""

    def __init__(self, hidden_size: int, intermediate_size: int):
        super().__init__()
        self.gate_proj = nn.Linear(hidden_size, intermediate_size, bias=False)
        self.up_proj = nn.Linear(hidden_size, intermediate_size, bias=False)
        self.down_proj = nn.Linear(intermediate_size, hidden_size, bias=False)

    def __call__(self, x: mx.array) -> mx.array:
        return self.down_proj(_geglu(self.gate_proj(x), self.up_proj(x)))


class Router(nn.Module):
    """Chooses `top_k_experts` experts per token."""

    def __init__(self, config: TextConfig):
        super().__init__()
        self.top_k, self.eps = config.top_k_experts, config.rms_norm_eps
        self.proj = nn.Linear(config.hidden_size, config.num_experts, bias=False)
        self.scale = mx.ones((config.hidden_size,))
        self.per_expert_scale = mx.ones((config.num_experts,))

    def __call__(self, residual: mx.array) -> tuple[mx.array, mx.array]:
        """Return ids and fp32 weights of k experts, both `[B, L, k]`, for the raw residual `[B, L, D]`."""
        x = mx.fast.rms_norm(residual, None, self.eps) * self.scale * residual.shape[-1] ** -0.5
        scores = self.proj(x).astype(mx.float32)  # [B, L, experts]
        experts = mx.argpartition(-scores, kth=self.top_k - 1, axis=-1)[..., : self.top_k]
        # Softmax over all experts, renormalised over the chosen ones, is softmax over the chosen ones.
        weights = mx.softmax(mx.take_along_axis(scores, experts, axis=-1), axis=-1)
        return experts, weights * self.per_expert_scale[experts]


class Experts(nn.Module):
    """`num_experts` gated MLPs. Gate and up rows are stacked in one matrix, gate first."""

    def __init__(self, config: TextConfig):
        # Imported here because mlx_lm imports transformers, which takes seconds. Not every command needs it.
        from mlx_lm.models.switch_layers import SwitchLinear

        super().__init__()
        hidden, width = config.hidden_size, config.moe_intermediate_size
        self.gate_up_proj = SwitchLinear(hidden, 2 * width, config.num_experts, bias=False)
        self.down_proj = SwitchLinear(width, hidden, config.num_experts, bias=False)

    def __call__(self, x: mx.array, experts: mx.array, weights: mx.array) -> mx.array:
        """Return the weighted sum of each token's experts, `[B, L, D]`. experts, weights: `[B, L, k]`."""
        k = experts.shape[-1]
        rows, ids = x.reshape(-1, 1, x.shape[-1]), experts.reshape(-1)
        in_order = ids.size >= _SORT_FROM
        order = mx.argsort(ids) if in_order else mx.arange(ids.size)
        ids = ids[order]
        gate, up = mx.split(self.gate_up_proj(rows[order // k], ids, sorted_indices=in_order), 2, axis=-1)
        out = self.down_proj(_geglu(gate, up), ids, sorted_indices=in_order)  # [B * L * k, 1, D]
        out = out[mx.argsort(order)].reshape(*experts.shape, -1)
        return (out * weights[..., None]).sum(axis=-2).astype(x.dtype)


class SelfConditioning(GatedMLP):
    """`post_norm(x + MLP(pre_norm(soft)))`. `post_norm` has no weight and applies on every decode step.

    On the first step of a canvas, `soft` is a zero embedding, which the MLP maps to zero exactly. Zero
    *logits* would instead give the average embedding of the vocabulary.
    """

    def __init__(self, config: TextConfig):
        super().__init__(config.hidden_size, config.intermediate_size)
        self.eps = config.rms_norm_eps
        self.pre_norm = nn.RMSNorm(config.hidden_size, eps=self.eps)

    def condition(self, x: mx.array, soft_embedding: mx.array) -> mx.array:
        """Return the decoder input from canvas embeddings and soft embedding. All are `[B, C, D]`."""
        return mx.fast.rms_norm(x + self(self.pre_norm(soft_embedding)), None, self.eps)


@partial(mx.compile, shapeless=True)
def _geglu(gate: mx.array, up: mx.array) -> mx.array:
    """`gelu(gate) * up` with the tanh approximation of GELU."""
    return nn.gelu_approx(gate) * up
