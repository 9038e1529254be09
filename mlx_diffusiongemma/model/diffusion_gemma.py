"""DiffusionGemma: encode a prefix into the cache, decode a canvas against it, turn rows into logits.

The module tree follows the checkpoint: everything lives under `model.decoder`, and the encoder owns
nothing but its layer scalars, because it runs the decoder's weights causally.
"""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn

from ..cache import PrefixCache
from ..config import SLIDING, ModelConfig, TextConfig
from ..generation_config import GenerationConfig
from ..ops import RowStatistics, SoftEmbedding, dense_soft_embedding, soft_embedding
from .attention import Mask
from .layers import DecoderLayer
from .self_conditioning import SelfConditioning

# Rows per encode pass, mlx-lm's `prefill_step_size`: bounds the attention scores of a long prompt.
PREFILL_STEP_SIZE = 2048


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
        return PrefixCache(self.config.text)

    def encode(self, input_ids: mx.array, cache: PrefixCache, chunk_size: int = PREFILL_STEP_SIZE) -> None:
        """Appends `input_ids [B, L]` to the cache, `chunk_size` positions at a time.

        May be called again and again; the result does not depend on how the tokens are divided.
        """
        scalars = self.model.encoder["language_model"]["layers"]
        *body, last = self.decoder.layers
        for start in range(0, input_ids.shape[1], chunk_size):
            chunk = input_ids[:, start : start + chunk_size]
            x = self._embed(chunk)
            masks = self._encode_masks(chunk.shape[1], cache)
            for i, layer in enumerate(body):
                mask = masks[self.config.text.layer_types[i]]
                x = layer.encode(x, cache.offset, mask, cache.layers[i], scalars[i]["layer_scalar"])
            last.encode_last(x, cache.offset, cache.layers[-1])
            cache.offset += chunk.shape[1]
            mx.eval(cache.arrays())
            # Chunk-sized temporaries would otherwise pile up in MLX's buffer cache.
            mx.clear_cache()

    def decode(
        self, canvas_ids: mx.array, cache: PrefixCache, soft_embedding: mx.array | None = None
    ) -> mx.array:
        """One look at a canvas: ids `[B, C]` -> fp32 softcapped logits `[B, C, V]`, before temperature.

        `soft_embedding [B, C, D]` is the last step's belief, None on the first step.
        """
        logits = self.logits(self.decode_hidden(canvas_ids, cache, soft_embedding)).astype(mx.float32)
        cap = self.config.text.final_logit_softcapping
        return mx.tanh(logits / cap) * cap

    def decode_hidden(
        self, canvas_ids: mx.array, cache: PrefixCache, soft_embedding: mx.array | None
    ) -> mx.array:
        """The canvas through the decoder: ids `[B, C]` -> normed rows `[B, C, D]`; only reads the cache."""
        x = self.decoder.self_conditioning.condition(self._embed(canvas_ids), soft_embedding)
        for layer, layer_cache in zip(self.decoder.layers, cache.layers, strict=True):
            x = layer.decode(x, cache.offset, layer_cache)
        return self.decoder.norm(x)

    def logits(self, hidden: mx.array) -> mx.array:
        """Tied projection `[B, C, D]` -> `[B, C, V]` in the weights' dtype, before the softcap."""
        return self.decoder.embed_tokens.as_linear(hidden)

    def soft_embedding(
        self, logits: mx.array, statistics: RowStatistics, temperature: float
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

    @property
    def embed_scale(self) -> mx.array:
        """sqrt(hidden_size), rounded to the model's dtype (53.0 in bf16 for 2816)."""
        return mx.array(self.config.text.hidden_size**0.5, dtype=self.dtype)

    @property
    def dtype(self) -> mx.Dtype:
        """Dtype of activations: that of the norms, which are never quantized."""
        return self.decoder.norm.weight.dtype

    def _embed(self, ids: mx.array) -> mx.array:
        return self.decoder.embed_tokens(ids).astype(self.dtype) * self.embed_scale

    def _encode_masks(self, rows: int, cache: PrefixCache) -> dict[str, Mask]:
        """Causal masks per layer type for `rows` new positions; the window counts the row itself."""
        window = self.config.text.sliding_window
        masks: dict[str, Mask] = dict.fromkeys(self.config.text.layer_types, "causal")
        kept = min(cache.offset, window - 1)
        if SLIDING in masks and kept + rows > window:
            distance = mx.arange(kept, kept + rows)[:, None] - mx.arange(kept + rows)[None, :]
            masks[SLIDING] = (distance >= 0) & (distance < window)
        return masks
