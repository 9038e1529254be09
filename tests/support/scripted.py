"""A `Network` that denoises each canvas to ids that a test chooses, and records its calls."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from mlx_diffusiongemma.cache import CanvasView, PrefixCache
from mlx_diffusiongemma.checkpoint.loading import resolve
from mlx_diffusiongemma.config.generation import PREFILL_STEP_SIZE, GenerationConfig
from mlx_diffusiongemma.config.model import ModelConfig
from mlx_diffusiongemma.generation import Generation, generate
from mlx_diffusiongemma.ops import RowStatistics, SoftEmbedding
from mlx_diffusiongemma.prompt import Prompt, Span
from mlx_diffusiongemma.text.tokenizer import Tokenizer

TURN_END = 106

# From the numbers of the block and of the attempt, from 0, to the ids that the canvas converges to.
Script = Callable[[int, int], list[int]]


class Scripted:
    """A model whose proposal for block n is `canvases[n]`, or the result of a function (see `Script`).

    Short lists are padded. sure: difference of the proposed token's logit to all others, a number or a
    function of the attempt. If it is large, a canvas takes two steps.
    """

    def __init__(
        self, canvases: list[list[int]] | Script, sure: float | Callable[[int], float] = 60.0
    ) -> None:
        self.config = ModelConfig.load(resolve("demo"))
        self.generation_config = GenerationConfig.load(resolve("demo"))
        self.script = canvases if callable(canvases) else lambda block, _: canvases[block]
        self.sure = sure if callable(sure) else lambda _: sure
        self.dtype = mx.float32
        self.layers: list[nn.Module] = []
        self.encoded: list[list[int]] = []  # ids of every `encode`
        self.batches: list[int] = []  # number of rows of every step
        self.attempt = -1

    def parameters(self) -> dict[str, mx.array]:
        return {}

    def update(self, parameters: dict[str, mx.array]) -> None:
        """Do nothing, because there are no weights."""

    def make_cache(self) -> PrefixCache:
        return PrefixCache(self.config, self.dtype)

    def encode(
        self,
        input_ids: mx.array | Prompt | Sequence[Prompt],
        cache: PrefixCache,
        chunk_size: int = PREFILL_STEP_SIZE,
        spans: Sequence[Sequence[Span]] = (),
    ) -> None:
        if not isinstance(input_ids, mx.array):
            prompts = [input_ids] if isinstance(input_ids, Prompt) else input_ids
            input_ids = mx.array([prompt.ids for prompt in prompts], dtype=mx.int32)
        self.encoded.append(input_ids[0].tolist())  # type: ignore[arg-type]
        self.attempt = -1
        cache.reserve(input_ids.shape[0], input_ids.shape[1], self.config.canvas_length)
        cache.offset += input_ids.shape[1]

    def embed(self, ids: mx.array) -> mx.array:
        return ids[..., None].astype(mx.float32)

    def zero_self_conditioning(self, shape: Sequence[int]) -> mx.array:
        self.attempt += 1  # the first call for every canvas
        return mx.zeros((*shape, 1))

    def decode_hidden(self, canvas_ids: mx.array, view: CanvasView, soft_embedding: mx.array) -> mx.array:
        rows, length = canvas_ids.shape
        self.batches.append(rows)
        ids = self.script(len(self.encoded) - 1, self.attempt)
        return mx.array([(ids + [0] * length)[:length]] * rows)

    def checked_kernels(self, canvas_shape: Sequence[int]) -> tuple[str, ...]:
        return ()

    def logits(self, hidden: mx.array) -> mx.array:
        proposed = mx.arange(self.config.text.vocab_size) == hidden[..., None]
        return proposed * self.sure(self.attempt)

    def dense_soft_embedding(self, processed_logits: mx.array) -> mx.array:
        return processed_logits[..., :1]

    def soft_embedding(
        self, logits: mx.array, statistics: RowStatistics, temperature: float | mx.array
    ) -> SoftEmbedding:
        return SoftEmbedding(logits[..., :1], dropped_mass=mx.zeros(logits.shape[:1]))


def scripted_generation(
    tokenizer: Tokenizer, canvases: list[list[int]] | Script, sure: float = 60.0, **settings: Any
) -> Generation:
    """Return a generation, not started, of a scripted model with the prompt "hi"."""
    model: Any = Scripted(canvases, sure)
    return generate(model, tokenizer, "hi", **settings)


def full_canvas(tokenizer: Tokenizer) -> list[int]:
    """Return 64 ids of text, which fill a canvas without a stop id."""
    return (tokenizer.encode("ab ") * 64)[:64]
