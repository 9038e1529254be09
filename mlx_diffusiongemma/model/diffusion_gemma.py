"""DiffusionGemma: encode a prefix into the cache, decode a canvas against it, turn rows into logits.

The module tree follows the checkpoint: everything lives under `model.decoder`, and the encoder owns
nothing but its layer scalars, because it runs the decoder's weights causally.
"""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx
import mlx.nn as nn

from ..cache import CanvasView, PrefixCache
from ..config.generation import PREFILL_STEP_SIZE, GenerationConfig
from ..config.model import ModelConfig, TextConfig
from ..errors import InputError
from ..ops import RowStatistics, SoftEmbedding, checked_kernels, dense_soft_embedding, project, soft_embedding
from ..threads import release_at_thread_end
from .attention import Chunk
from .layers import DecoderLayer
from .self_conditioning import SelfConditioning


class Decoder(nn.Module):
    def __init__(self, config: TextConfig):
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = [DecoderLayer(config, i) for i in range(config.num_hidden_layers)]
        self.norm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.self_conditioning = SelfConditioning(config)


class Backbone(nn.Module):
    """What checkpoints call `model`: the decoder, and of the encoder what is not tied to it."""

    def __init__(self, config: TextConfig):
        super().__init__()
        self.decoder = Decoder(config)
        scalars = [{"layer_scalar": mx.ones((1,))} for _ in range(config.num_hidden_layers)]
        self.encoder = {"language_model": {"layers": scalars}}


class DiffusionGemma(nn.Module):
    """The text path. `config` has the shapes, `generation_config` the checkpoint's sampler settings."""

    def __init__(self, config: ModelConfig, generation_config: GenerationConfig | None = None):
        super().__init__()
        self.config = config
        self.generation_config = generation_config or GenerationConfig(eos_token_id=config.eos_token_id)
        self.model = Backbone(config.text)

    @property
    def decoder(self) -> Decoder:
        return self.model.decoder

    def make_cache(self) -> PrefixCache:
        """An empty prefix cache; its batch size is that of the first `encode`."""
        return PrefixCache(self.config, self.dtype)

    def encode(self, input_ids: mx.array, cache: PrefixCache, chunk_size: int = PREFILL_STEP_SIZE) -> None:
        """Appends `input_ids [B, L]` to the cache, `chunk_size` positions at a time.

        May be called again and again; the result does not depend on how the tokens are divided. Prompts of
        different lengths are padded on the left, with any ids. The caller sets `cache.left_padding` before.
        """
        if chunk_size < 1:
            raise InputError(f"chunk_size must be at least 1, found {chunk_size}")
        release_at_thread_end()
        scalars = self.model.encoder["language_model"]["layers"]
        *body, last = self.decoder.layers
        rows, length = input_ids.shape
        cache.reserve(rows, length, self.config.canvas_length)
        for start in range(0, length, chunk_size):
            chunk, x = Chunk(cache), self.embed(input_ids[:, start : start + chunk_size])
            for i, layer in enumerate(body):
                x = layer.encode(x, chunk, cache.layers[i], scalars[i]["layer_scalar"])
            last.encode_last(x, chunk, cache.layers[-1])
            cache.offset += x.shape[1]
            mx.eval(cache.buffers)
            # Chunk-sized temporaries would otherwise pile up in MLX's buffer cache.
            mx.clear_cache()

    def decode(
        self, canvas_ids: mx.array, cache: PrefixCache, soft_embedding: mx.array | None = None
    ) -> mx.array:
        """One look at a canvas: ids `[B, C]` -> fp32 softcapped logits `[B, C, V]`, before temperature.

        `soft_embedding [B, C, D]` is the last step's belief, None on the first step.
        """
        if soft_embedding is None:
            soft_embedding = self.zero_self_conditioning(canvas_ids.shape)
        with cache.canvas(*canvas_ids.shape) as view:
            logits = self.logits(self.decode_hidden(canvas_ids, view, soft_embedding)).astype(mx.float32)
        cap = self.config.text.final_logit_softcapping
        return mx.tanh(logits / cap) * cap

    def decode_hidden(self, canvas_ids: mx.array, view: CanvasView, soft_embedding: mx.array) -> mx.array:
        """The canvas through the decoder: ids `[B, C]` and soft embedding -> normed rows `[B, C, D]`."""
        return self.body(self.embed_canvas(canvas_ids, soft_embedding), view)

    def embed_canvas(self, canvas_ids: mx.array, soft_embedding: mx.array) -> mx.array:
        """Ids `[B, C]` and soft embedding `[B, C, D]` -> the decoder's input `[B, C, D]`."""
        return self.decoder.self_conditioning.condition(self.embed(canvas_ids), soft_embedding)

    def body(self, x: mx.array, view: CanvasView) -> mx.array:
        """All layers and the last norm, `[B, C, D] -> [B, C, D]`; keys and values go to `view`."""
        for i, layer in enumerate(self.decoder.layers):
            x = layer.decode(x, view, i)
        return self.decoder.norm(x)

    def zero_self_conditioning(self, shape: Sequence[int]) -> mx.array:
        """The soft embedding `[B, C, D]` of a canvas's first step: zeros."""
        return mx.zeros((*shape, self.config.text.hidden_size), dtype=self.dtype)

    def logits(self, hidden: mx.array) -> mx.array:
        """Tied projection `[B, C, D]` -> `[B, C, V]` in the weights' dtype, before the softcap."""
        return project(hidden, self.decoder.embed_tokens)

    def soft_embedding(
        self, logits: mx.array, statistics: RowStatistics, temperature: float | mx.array
    ) -> SoftEmbedding:
        """The next step's self-conditioning from the raw logits `[R, V]` of this one (see `ops`)."""
        softcap = self.config.text.final_logit_softcapping
        soft = soft_embedding(logits, statistics, temperature, softcap, self.decoder.embed_tokens, self.dtype)
        return soft._replace(embedding=soft.embedding * self.embed_scale)

    def dense_soft_embedding(self, processed_logits: mx.array) -> mx.array:
        """The same without leaving out anything: processed logits `[..., V]` -> `[..., D]`.

        Processed means softcapped and divided by the step's temperature. They are rounded to the
        embedding's dtype first, as the reference does.
        """
        return (
            dense_soft_embedding(processed_logits, self.decoder.embed_tokens, self.dtype) * self.embed_scale
        )

    def checked_kernels(self, canvas_shape: Sequence[int]) -> tuple[str, ...]:
        """Names of the Metal kernels that a step takes, checked at their first use (see `ops`)."""
        return checked_kernels(self.decoder.embed_tokens, self.dtype, canvas_shape)

    @property
    def embed_scale(self) -> mx.array:
        """sqrt(hidden_size), rounded to the model's dtype (53.0 in bf16 for 2816)."""
        return mx.array(self.config.text.hidden_size**0.5, dtype=self.dtype)

    @property
    def dtype(self) -> mx.Dtype:
        """Dtype of activations: that of the norms, which are never quantized."""
        return self.decoder.norm.weight.dtype

    def embed(self, ids: mx.array) -> mx.array:
        """Ids of any shape -> their scaled embeddings `[..., D]`, in the model's dtype."""
        return self.decoder.embed_tokens(ids).astype(self.dtype) * self.embed_scale
