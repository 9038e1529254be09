"""DiffusionGemma: encode a prefix into the cache, decode a canvas against it, turn rows into logits.

The module tree follows the checkpoint: everything lives under `model.decoder`. The encoder runs the decoder's
weights causally and owns only its layer scalars.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import mlx.core as mx
import mlx.nn as nn

from ..cache import CanvasView, PrefixCache
from ..config.generation import PREFILL_STEP_SIZE, GenerationConfig
from ..config.model import ModelConfig, TextConfig
from ..errors import InputError
from ..ops import (
    RowStatistics,
    SoftEmbedding,
    checked_kernels,
    dense_soft_embedding,
    processed_logits,
    project,
    soft_embedding,
)
from ..prompt import ImageSpan, Prompt, Span, chunk_end, merge_spans
from ..threads import release_at_thread_end
from .attention import Chunk, ImageAttention
from .layers import DecoderLayer, SelfConditioning

_NO_TOWER = "the prompt has images, but this checkpoint has no vision tower; take one that has it"


class Vision(Protocol):
    """The vision part of a checkpoint, `checkpoint.vision.SoftTokens`."""

    def __call__(self, pixels: Any, /) -> mx.array:
        """Return the soft tokens `[n, D]` of an image."""

    def spans(self, ids: Sequence[int], images: Sequence[Any]) -> list[ImageSpan]:
        """Return the places of images among ids."""


class Decoder(nn.Module):
    def __init__(self, config: TextConfig):
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = [DecoderLayer(config, i) for i in range(config.num_hidden_layers)]
        self.norm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.self_conditioning = SelfConditioning(config)


class EncoderLayer(nn.Module):
    """The part of an encoder layer that it does not share with the decoder."""

    def __init__(self) -> None:
        super().__init__()
        self.layer_scalar = mx.ones((1,))


class Backbone(nn.Module):
    """The checkpoint's `model`: the decoder, and the part of the encoder that has its own weights."""

    def __init__(self, config: TextConfig):
        super().__init__()
        self.decoder = Decoder(config)
        self.encoder = nn.Module()
        self.encoder.language_model = nn.Module()
        self.encoder.language_model.layers = [EncoderLayer() for _ in range(config.num_hidden_layers)]


class DiffusionGemma(nn.Module):
    """The model. `config` has its shapes, `generation_config` the checkpoint's sampler settings."""

    def __init__(self, config: ModelConfig, generation_config: GenerationConfig | None = None):
        super().__init__()
        self.config = config
        self.generation_config = generation_config or GenerationConfig(eos_token_id=config.eos_token_id)
        self.vision: Vision | None = None  # set by the loader if the checkpoint has a vision tower
        self.image_attention: ImageAttention = "sliding"
        self.model = Backbone(config.text)

    @property
    def decoder(self) -> Decoder:
        return self.model.decoder

    @property
    def layers(self) -> list[DecoderLayer]:
        """The transformer layers, for tools of mlx-lm such as `linear_to_lora_layers` and `load_adapters`."""
        return self.decoder.layers

    def shard(self, group: mx.distributed.Group | None = None) -> None:
        """Do nothing for a `group` of one member, which keeps the whole model. None: all processes.

        Raises:
            InputError: the group has several members, which is not supported.
        """
        size = (group or mx.distributed.init()).size()
        if size > 1:
            raise InputError(f"the group has {size} members, but the model cannot be divided; use one")

    def make_cache(self) -> PrefixCache:
        """Return an empty prefix cache. The first `encode` sets its batch size."""
        return PrefixCache(self.config, self.dtype)

    def encode(
        self,
        input_ids: mx.array | Prompt | Sequence[Prompt],
        cache: PrefixCache,
        chunk_size: int = PREFILL_STEP_SIZE,
        spans: Sequence[Sequence[Span]] = (),
    ) -> None:
        """Append a prompt, or the next part of it, to the cache.

        The result does not depend on how a prompt is divided into calls and chunks, as long as no call cuts a
        span. Prompts of different lengths are padded on the left, with any ids. The caller sets
        `cache.left_padding` before.

        Args:
            input_ids: a `Prompt`, a list of prompts of the same length, ids `[B, L]`, or embeddings
                `[B, L, D]` as `embed` returns them.
            chunk_size: maximum number of positions to encode at a time. A longer span is a chunk of its own.
            spans: for each row, start and end of its image blocks in `input_ids`, in order. The positions of
                a block see each other in both directions (see `Chunk`). Ignored for prompts.

        Raises:
            InputError: a prompt has images, but the checkpoint has no vision tower, or the positions of an
                image are not as many as its soft tokens.
        """
        if chunk_size < 1:
            raise InputError(f"chunk_size must be at least 1, found {chunk_size}")
        prompts: Sequence[Prompt] = ()
        if not isinstance(input_ids, mx.array):
            prompts = [input_ids] if isinstance(input_ids, Prompt) else input_ids
            prompts = [self.placed(prompt) for prompt in prompts]
            self.check_images(prompts)
            spans = [prompt.spans for prompt in prompts]
            input_ids = mx.array([prompt.ids for prompt in prompts], dtype=mx.int32)
        release_at_thread_end()
        rows, length = input_ids.shape[:2]
        if len(spans) not in (0, rows):
            raise InputError(f"spans: found those of {len(spans)} rows for a batch of {rows}")
        cache.reserve(rows, length, self.config.canvas_length)
        unbroken, start = merge_spans(span for row in spans for span in row), 0
        while start < length:
            end = chunk_end(start, length, chunk_size, unbroken)
            inside = [[(a - start, b - start) for a, b in row if start <= a < end] for row in spans]
            part = input_ids[:, start:end]
            x = self.embed(part) if part.ndim == 2 else part.astype(self.dtype)
            for row, prompt in enumerate(prompts):
                for image in prompt.images:
                    if self.vision and image.pixels is not None and start <= image.start < end:
                        # Soft tokens replace embeddings, but are not scaled like them.
                        soft = self.vision(image.pixels).astype(self.dtype)
                        x[row, image.start - start : image.end - start] = soft
            self._encode_chunk(x, cache, Chunk(cache, inside, self.image_attention))
            start = end

    def placed(self, prompt: Prompt) -> Prompt:
        """Return the prompt with a span for each of its images.

        Raises:
            InputError: the checkpoint has no vision tower, or the image ids do not fit the images.
        """
        if not prompt.unplaced:
            return prompt
        if self.vision is None:
            raise InputError(_NO_TOWER)
        return Prompt(prompt.ids, self.vision.spans(prompt.ids, prompt.unplaced))

    def check_images(self, prompts: Sequence[Prompt]) -> None:
        """Raise `InputError` for images that this checkpoint or their spans have no room for."""
        for image in (image for prompt in prompts for image in prompt.images if image.pixels is not None):
            if self.vision is None:
                raise InputError(_NO_TOWER)
            if image.pixels.soft_tokens != image.length:
                raise InputError(
                    f"an image of {image.pixels.soft_tokens} soft tokens has {image.length} positions in the "
                    "prompt; repeat the image id once for each soft token"
                )

    def _encode_chunk(self, x: mx.array, cache: PrefixCache, chunk: Chunk) -> None:
        scalars = self.model.encoder.language_model.layers
        *body, last = self.decoder.layers
        for i, layer in enumerate(body):
            x = layer.encode(x, chunk, cache.layers[i], scalars[i].layer_scalar)
        last.encode_last(x, chunk, cache.layers[-1])
        cache.offset += x.shape[1]
        mx.eval(cache.buffers)
        # Chunk-sized temporaries would otherwise pile up in MLX's buffer cache.
        mx.clear_cache()

    def decode(
        self, canvas_ids: mx.array, cache: PrefixCache, soft_embedding: mx.array | None = None
    ) -> mx.array:
        """Decode a canvas once: ids `[B, C]` -> fp32 softcapped logits `[B, C, V]`, before temperature.

        soft_embedding: `[B, C, D]`, from the step before. None on the first step.
        """
        if soft_embedding is None:
            soft_embedding = self.zero_self_conditioning(canvas_ids.shape)
        with cache.canvas(*canvas_ids.shape) as view:
            logits = self.logits(self.decode_hidden(canvas_ids, view, soft_embedding))
        return processed_logits(logits, 1.0, self.config.text.final_logit_softcapping)

    def decode_hidden(self, canvas_ids: mx.array, view: CanvasView, soft_embedding: mx.array) -> mx.array:
        """Run a canvas through the decoder: ids `[B, C]` and soft embedding -> normed rows `[B, C, D]`."""
        return self.body(self.embed_canvas(canvas_ids, soft_embedding), view)

    def embed_canvas(self, canvas_ids: mx.array, soft_embedding: mx.array) -> mx.array:
        """Return the decoder's input `[B, C, D]` from ids `[B, C]` and soft embedding `[B, C, D]`."""
        return self.decoder.self_conditioning.condition(self.embed(canvas_ids), soft_embedding)

    def body(self, x: mx.array, view: CanvasView) -> mx.array:
        """Run all layers and the last norm, `[B, C, D] -> [B, C, D]`. Keys and values go to `view`."""
        for i, layer in enumerate(self.decoder.layers):
            x = layer.decode(x, view, i)
        return self.decoder.norm(x)

    def zero_self_conditioning(self, shape: Sequence[int]) -> mx.array:
        """Return the soft embedding `[B, C, D]` of a canvas's first step: zeros."""
        return mx.zeros((*shape, self.config.text.hidden_size), dtype=self.dtype)

    def logits(self, hidden: mx.array) -> mx.array:
        """Project rows `[B, C, D]` with the embedding table to logits `[B, C, V]`, before the softcap."""
        return project(hidden, self.decoder.embed_tokens)

    def soft_embedding(
        self, logits: mx.array, statistics: RowStatistics, temperature: float | mx.array
    ) -> SoftEmbedding:
        """Return the next step's self-conditioning from this step's raw logits `[R, V]` (see `ops`)."""
        softcap = self.config.text.final_logit_softcapping
        soft = soft_embedding(logits, statistics, temperature, softcap, self.decoder.embed_tokens, self.dtype)
        return soft._replace(embedding=soft.embedding * self.embed_scale)

    def dense_soft_embedding(self, processed_logits: mx.array) -> mx.array:
        """Return `soft_embedding` from the whole vocabulary: processed logits `[..., V]` -> `[..., D]`.

        Processed means softcapped and divided by the step's temperature. The logits are first rounded to the
        model's dtype, as the reference does.
        """
        return (
            dense_soft_embedding(processed_logits, self.decoder.embed_tokens, self.dtype) * self.embed_scale
        )

    def checked_kernels(self, canvas_shape: Sequence[int]) -> tuple[str, ...]:
        """Check the Metal kernels of a step, and return the names of those that it uses (see `ops`)."""
        return checked_kernels(self.decoder.embed_tokens, self.dtype, canvas_shape)

    @property
    def embed_scale(self) -> mx.array:
        """sqrt(hidden_size), rounded to the model's dtype (53.0 in bf16 for 2816)."""
        return mx.array(self.config.text.hidden_size**0.5, dtype=self.dtype)

    @property
    def dtype(self) -> mx.Dtype:
        """Dtype of activations and norms, which are never quantized."""
        return self.decoder.norm.weight.dtype

    def embed(self, ids: mx.array) -> mx.array:
        """Return the scaled embeddings `[..., D]` of ids of any shape, in the model's dtype."""
        return self.decoder.embed_tokens(ids).astype(self.dtype) * self.embed_scale
