"""Minimum bytes and operations of a denoising step, from its shapes and the storage of its tensors.

These pure functions count the bytes that every implementation must move. Each needed weight, key and value is
read once. Logits are written once, and the sampler reads them once. Activations between operations are not
counted, because they may stay in caches. Attention scores are not counted, because they may be fused.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from mlx.utils import tree_flatten

from ..config.model import FULL, ModelConfig, TextConfig
from ..converter.recipes import CLASSES, tensor_class

if TYPE_CHECKING:
    from ..model import DiffusionGemma


class Cost(NamedTuple):
    """Bytes moved to and from memory, and floating-point operations (a multiply and an add are two)."""

    nbytes: float
    flop: float = 0.0


def stored_bytes(model: DiffusionGemma) -> dict[str, int]:
    """Return the bytes of the decoder's tensors, scales included, by class (`converter.recipes.CLASSES`)."""
    stored = dict.fromkeys(CLASSES, 0)
    parameters: Any = tree_flatten(model.parameters())
    for name, array in parameters:
        if not name.startswith("model.encoder."):  # the encoder's layer scalars, which a step does not read
            stored[tensor_class(name)] += array.nbytes
    return stored


def step_cost(
    config: ModelConfig, stored: dict[str, int], *, prefix: int, canvas: int, itemsize: int, dense_rows: float
) -> dict[str, Cost]:
    """Return the cost of each part of one step, in the order of a pass.

    Args:
        stored: bytes by class, see `stored_bytes`.
        prefix: number of positions before the canvas.
        canvas: number of positions of the canvas.
        itemsize: bytes of an activation, a key or a logit.
        dense_rows: number of canvas positions whose soft embedding is softmax(logits) @ table over the whole
            vocabulary. The other rows embed a few tokens, and cost a second read of their logits.
    """
    text = config.text
    gated = 3 * text.hidden_size * text.intermediate_size  # weights of a gated MLP: gate, up, down
    experts = 3 * text.hidden_size * text.moe_intermediate_size * text.top_k_experts  # per row and layer
    table, logits = text.vocab_size * text.hidden_size, canvas * text.vocab_size * itemsize
    layers = text.num_hidden_layers

    def product(weights: int) -> float:
        return 2.0 * canvas * weights

    return {
        "embedding_rows": Cost(stored["embedding"] * canvas / text.vocab_size),
        "self_conditioning": Cost(stored["self_conditioning"], product(gated)),
        "attention_projections": Cost(stored["attention"], product(_projection_weights(text))),
        "attention_scores": _attention(text, prefix, canvas, itemsize),
        "dense_mlp": Cost(stored["mlp"], product(gated * layers)),
        "router_and_norms": Cost(
            stored["router"] + stored["norms"], product(text.hidden_size * text.num_experts * layers)
        ),
        "experts": Cost(
            stored["experts"] * experts_touched(text, canvas) / text.num_experts, product(experts * layers)
        ),
        "logits": Cost(stored["embedding"], product(table)),
        "sampler": Cost(2 * logits),
        "soft_embedding": Cost(logits + (stored["embedding"] if dense_rows else 0), 2 * dense_rows * table),
    }


def total(parts: dict[str, Cost]) -> Cost:
    return Cost(sum(part.nbytes for part in parts.values()), sum(part.flop for part in parts.values()))


def experts_touched(text: TextConfig, rows: int) -> float:
    """Return the expected number of distinct experts per layer if `rows` rows choose uniformly."""
    missed: float = (1 - text.top_k_experts / text.num_experts) ** rows
    return text.num_experts * (1 - missed)


def _projection_weights(text: TextConfig) -> int:
    """Return the number of weights of the q, k, v and o projections. Layers with full attention have no v."""
    return sum(
        text.hidden_size * head_dim * (2 * text.num_attention_heads + heads * (1 if kind == FULL else 2))
        for kind, heads, head_dim in zip(text.layer_types, text.kv_heads, text.head_dims, strict=True)
    )


def _attention(text: TextConfig, prefix: int, canvas: int, itemsize: int) -> Cost:
    """Return the cost of attention: two products for each query, key and head, and one read of K and V."""
    nbytes, flop = 0.0, 0.0
    for kind, heads, head_dim in zip(text.layer_types, text.kv_heads, text.head_dims, strict=True):
        keys = canvas + (prefix if kind == FULL else min(prefix, text.sliding_window - 1))
        nbytes += 2 * heads * head_dim * keys * itemsize
        flop += 2 * 2 * text.num_attention_heads * head_dim * canvas * keys
    return Cost(nbytes, flop)
