"""How much memory a model needs to generate, and which Macs have it.

An estimate from shapes. In tables GB are 10**9 bytes, but a "16 GB" Mac has 16 * 2**30.
"""

from __future__ import annotations

from mlx_diffusiongemma.config import FULL, ModelConfig
from mlx_diffusiongemma.model.diffusion_gemma import PREFILL_STEP_SIZE

from .tables import aligned, size

_MACS = (16, 24, 32, 36, 48, 64)
_CONTEXTS = (8192, 32768)


def memory_needed(config: ModelConfig, weight_bytes: int, context_tokens: int) -> int:
    """Bytes that generating takes behind a prefix of `context_tokens`, with 16-bit activations: the sum of

    weights: `weight_bytes`, those that are loaded
    cache: 2 (K, V) * kv_heads * head_dim * 2 bytes * (prefix + canvas) over all layers, where the prefix of
        a sliding layer is at most window - 1
    work: the larger of a denoising step (rows: the canvas; keys: prefix and canvas) and of the last chunk of
        prefill (rows: at most 2048; keys: the prefix), each the sum of
        attention scores and mask of the layer with the most keys, rows * keys * (2 * heads + 1) bytes: MLX
        fuses no attention as wide as that of full layers;
        the experts, rows * top_k * (10 * hidden + 6 * moe_intermediate) bytes: input, sorted and not, gate,
        up and their product in 2 bytes each, the output in 2 and weighted in 4;
        what lies beside them, rows * (8 * hidden + 6 * intermediate + 8 * heads * head_dim) bytes, of the
        widest head;
        of a step, logits [canvas, vocabulary] in 2 bytes and once in 4
    """
    text, canvas = config.text, config.canvas_length
    prefixes = [
        context_tokens if kind == FULL else min(context_tokens, text.sliding_window - 1)
        for kind in text.layer_types
    ]
    cache = sum(
        2 * heads * head_dim * 2 * (prefix + canvas)
        for heads, head_dim, prefix in zip(text.kv_heads, text.head_dims, prefixes, strict=True)
    )

    def work(rows: int, keys: int) -> int:
        scores = keys * (2 * text.num_attention_heads + 1)
        experts = text.top_k_experts * (10 * text.hidden_size + 6 * text.moe_intermediate_size)
        queries = text.num_attention_heads * max(text.head_dims)
        beside = 8 * text.hidden_size + 6 * text.intermediate_size + 8 * queries
        return rows * (scores + experts + beside)

    step = work(canvas, max(prefixes) + canvas) + canvas * text.vocab_size * (2 + 4)
    prefill = work(min(context_tokens, PREFILL_STEP_SIZE), max(prefixes))
    return weight_bytes + cache + max(step, prefill)


def mac_table(config: ModelConfig, weight_bytes: int) -> str:
    """Which Macs hold the model with 8k and 32k tokens of context, or with its limit if that is less."""
    contexts = sorted({min(tokens, config.text.max_position_embeddings) for tokens in _CONTEXTS})
    needed = [memory_needed(config, weight_bytes, tokens) for tokens in contexts]
    lines = [
        ("Mac", "GPU may use", *(f"{_context(tokens)} context" for tokens in contexts)),
        ("needed", "", *map(size, needed)),
    ]
    for gigabytes in _MACS:
        limit = gpu_limit(gigabytes)
        lines.append((f"{gigabytes} GB", size(limit), *(_fits(amount, limit) for amount in needed)))
    return aligned(lines, left=1) + (
        "\nBy default macOS lets the GPU wire two thirds of memory up to 36 GB, three quarters above;"
        "\n`sudo sysctl iogpu.wired_limit_mb=N` raises that until the next restart."
        "\nEstimated from shapes; tight: with less than 5% to spare."
    )


def gpu_limit(gigabytes: int) -> int:
    """Bytes that the GPU of a Mac with so much memory may wire by default (a 16 GB Mac has 16 * 2**30)."""
    memory = gigabytes * 2**30
    return memory * 2 // 3 if gigabytes <= 36 else memory * 3 // 4


def _fits(amount: int, limit: int) -> str:
    return "no" if amount > limit else "tight" if amount > 0.95 * limit else "yes"


def _context(tokens: int) -> str:
    return f"{tokens // 1024}k" if tokens % 1024 == 0 else str(tokens)
