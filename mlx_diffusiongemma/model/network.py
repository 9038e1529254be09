"""The protocol of a network: everything that the engine needs from a model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import mlx.core as mx
import mlx.nn as nn

from ..cache import CanvasView, PrefixCache
from ..config.generation import GenerationConfig
from ..config.model import ModelConfig
from ..ops import RowStatistics, SoftEmbedding
from ..prompt import Prompt, Span


class Network(Protocol):
    """A denoiser of canvases, `DiffusionGemma` or a stand-in. `DiffusionGemma` documents the methods."""

    config: ModelConfig
    generation_config: GenerationConfig

    @property
    def dtype(self) -> mx.Dtype: ...

    @property
    def layers(self) -> Sequence[nn.Module]: ...

    def parameters(self) -> dict[str, Any]: ...

    def update(self, parameters: dict[str, Any]) -> Any: ...

    def make_cache(self) -> PrefixCache: ...

    def encode(
        self,
        input_ids: mx.array | Prompt | Sequence[Prompt],
        cache: PrefixCache,
        chunk_size: int = ...,
        spans: Sequence[Sequence[Span]] = ...,
    ) -> None: ...

    def embed(self, ids: mx.array) -> mx.array: ...

    def zero_self_conditioning(self, shape: Sequence[int]) -> mx.array: ...

    def decode_hidden(self, canvas_ids: mx.array, view: CanvasView, soft_embedding: mx.array) -> mx.array: ...

    def logits(self, hidden: mx.array) -> mx.array: ...

    def soft_embedding(
        self, logits: mx.array, statistics: RowStatistics, temperature: float | mx.array
    ) -> SoftEmbedding: ...

    def dense_soft_embedding(self, processed_logits: mx.array) -> mx.array: ...

    def checked_kernels(self, canvas_shape: Sequence[int]) -> tuple[str, ...]: ...
