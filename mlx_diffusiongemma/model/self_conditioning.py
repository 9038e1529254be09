"""Feeds the last step's belief about the canvas into the next step."""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn

from ..config.model import TextConfig
from .mlp import GatedMLP


class SelfConditioning(GatedMLP):
    """`post_norm(x + MLP(pre_norm(soft)))`; `post_norm` has no weight and applies on every decode step.

    On the first step of a canvas there is no belief yet: `soft` is a zero embedding, which the MLP
    maps to zero exactly (zero *logits* would mean the average of the vocabulary instead).
    """

    def __init__(self, config: TextConfig):
        super().__init__(config.hidden_size, config.intermediate_size)
        self.eps = config.rms_norm_eps
        self.pre_norm = nn.RMSNorm(config.hidden_size, eps=self.eps)

    def condition(self, x: mx.array, soft_embedding: mx.array) -> mx.array:
        """Canvas embeddings and soft embedding, both `[B, C, D]` -> decoder input `[B, C, D]`."""
        return mx.fast.rms_norm(x + self(self.pre_norm(soft_embedding)), None, self.eps)
