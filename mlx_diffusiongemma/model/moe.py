"""The mixture of experts: a router over raw residuals and a bank of gated MLPs."""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn

from ..config.model import TextConfig
from .mlp import geglu

# From this many routed rows on, sorting rows by expert pays: each expert's weights are read once.
_SORT_FROM = 64


class Router(nn.Module):
    """Chooses `top_k_experts` experts per token."""

    def __init__(self, config: TextConfig):
        super().__init__()
        self.top_k, self.eps = config.top_k_experts, config.rms_norm_eps
        self.proj = nn.Linear(config.hidden_size, config.num_experts, bias=False)
        self.scale = mx.ones((config.hidden_size,))
        self.per_expert_scale = mx.ones((config.num_experts,))

    def __call__(self, residual: mx.array) -> tuple[mx.array, mx.array]:
        """Raw residual `[B, L, D]` -> expert ids `[B, L, k]` and fp32 weights `[B, L, k]`."""
        x = mx.fast.rms_norm(residual, None, self.eps) * self.scale * residual.shape[-1] ** -0.5
        scores = self.proj(x).astype(mx.float32)  # [B, L, experts]
        experts = mx.argpartition(-scores, kth=self.top_k - 1, axis=-1)[..., : self.top_k]
        # Softmax over all experts, renormalised over the chosen ones, is softmax over the chosen ones.
        weights = mx.softmax(mx.take_along_axis(scores, experts, axis=-1), axis=-1)
        return experts, weights * self.per_expert_scale[experts]


class Experts(nn.Module):
    """`num_experts` gated MLPs; gate and up rows are stacked in one matrix, gate first."""

    def __init__(self, config: TextConfig):
        # Imported here because mlx_lm imports transformers: seconds, for commands that may build no model.
        from mlx_lm.models.switch_layers import SwitchLinear

        super().__init__()
        hidden, width = config.hidden_size, config.moe_intermediate_size
        self.gate_up_proj = SwitchLinear(hidden, 2 * width, config.num_experts, bias=False)
        self.down_proj = SwitchLinear(width, hidden, config.num_experts, bias=False)

    def __call__(self, x: mx.array, experts: mx.array, weights: mx.array) -> mx.array:
        """Sum over each token's experts: `x [B, L, D]`, ids and weights `[B, L, k]` -> `[B, L, D]`."""
        k = experts.shape[-1]
        rows, ids = x.reshape(-1, 1, x.shape[-1]), experts.reshape(-1)
        order = mx.argsort(ids) if ids.size >= _SORT_FROM else mx.arange(ids.size)
        sorted_ids = ids[order]
        in_order = ids.size >= _SORT_FROM
        gate, up = mx.split(
            self.gate_up_proj(rows[order // k], sorted_ids, sorted_indices=in_order), 2, axis=-1
        )
        out = self.down_proj(geglu(gate, up), sorted_ids, sorted_indices=in_order)  # [B * L * k, 1, D]
        out = out[mx.argsort(order)].reshape(*experts.shape, -1)
        return (out * weights[..., None]).sum(axis=-2).astype(x.dtype)
