"""The forward pass for training: prompt and canvas in one pass, with the parameters of a Transformers model.

Transformers encodes the prompt, then decodes the canvas, and loops over the experts in Python. For a network
this small, that takes most of the time of a step. Both passes share their weights, so one pass with a mask
gives the same logits: prompt positions are causal, canvas positions see the prompt and the whole canvas. Here
all experts are computed, and multiplied by the router's weights, most of which are 0. This gives the same
gradients. `train.py` compares the logits with those of Transformers before it starts.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def norm(x: Tensor, weight: Tensor | None = None) -> Tensor:
    """Return RMSNorm of x, computed in float32, times `weight` (not times 1 + weight)."""
    y = x.float()
    y = y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + 1e-6)
    return (y if weight is None else y * weight).to(x.dtype)


def rotate(x: Tensor, angles: Tensor) -> Tensor:
    """Apply RoPE to x [B, H, S, D] with angles [B, S, D/2]. Dimensions i and i + D/2 are a pair."""
    cos, sin = angles.cos()[:, None].to(x.dtype), angles.sin()[:, None].to(x.dtype)
    a, b = x.chunk(2, -1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), -1)


def gated_mlp(m: nn.Module, x: Tensor) -> Tensor:
    gate = F.gelu(F.linear(x, m.gate_proj.weight), approximate="tanh")
    return F.linear(gate * F.linear(x, m.up_proj.weight), m.down_proj.weight)


def attention(a: nn.Module, x: Tensor, angles: Tensor, mask: Tensor, queries_from: int) -> Tensor:
    """Return attention of the queries from `queries_from` on. mask [B, 1, S, S]: True for visible keys."""
    batch, length, _ = x.shape
    k_raw = F.linear(x, a.k_proj.weight).view(batch, length, -1, a.head_dim)
    v = k_raw if a.v_proj is None else F.linear(x, a.v_proj.weight).view(batch, length, -1, a.head_dim)
    q = F.linear(x[:, queries_from:], a.q_proj.weight).view(batch, length - queries_from, -1, a.head_dim)
    q = rotate(norm(q, a.q_norm.weight).transpose(1, 2), angles[:, queries_from:])
    k = rotate(norm(k_raw, a.k_norm.weight).transpose(1, 2), angles)
    v = norm(v).transpose(1, 2)
    heads, groups = k.shape[1], q.shape[1] // k.shape[1]
    # Not the fused function, whose backward pass takes four times as long on the CPU at these sizes.
    scores = q.reshape(batch, heads, -1, a.head_dim) @ k.transpose(-1, -2)
    scores = scores.view(batch, heads * groups, length - queries_from, length)
    probs = scores.float().masked_fill(~mask[:, :, queries_from:], -torch.inf).softmax(-1).to(v.dtype)
    out = probs.view(batch, heads, -1, length) @ v
    out = out.view(batch, heads * groups, -1, a.head_dim)
    return F.linear(out.transpose(1, 2).reshape(batch, length - queries_from, -1), a.o_proj.weight)


def experts(layer: nn.Module, residual: Tensor, top_k: int) -> Tensor:
    """Return the outputs of all experts, summed with the renormalised top-k weights of the router."""
    router, bank = layer.router, layer.experts
    scaled = norm(residual.float()) * router.scale * residual.shape[-1] ** -0.5
    with torch.autocast("cpu", enabled=False):  # the choice of experts must not depend on bfloat16 rounding
        probs = F.linear(scaled, router.proj.weight).softmax(-1)
    top, index = probs.topk(top_k, -1)
    top = top / top.sum(-1, keepdim=True)
    weights = torch.zeros_like(probs).scatter(-1, index, top) * router.per_expert_scale
    x = norm(residual, layer.pre_feedforward_layernorm_2.weight)
    hidden = F.linear(x, bank.gate_up_proj.flatten(0, 1)).unflatten(-1, (bank.num_experts, -1))
    gate, up = hidden.chunk(2, -1)  # [B, S, experts, moe_intermediate]
    hidden = F.gelu(gate, approximate="tanh") * up * weights.unsqueeze(-1).to(up.dtype)
    return F.linear(hidden.flatten(-2), bank.down_proj.transpose(1, 2).flatten(0, 1).t())


def build_masks(lengths: Tensor, width: int, canvas: int, window: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return full and sliding mask [B, 1, S, S] and positions [B, S], for prompts right-padded to `width`."""
    position = torch.arange(width)
    valid = position < lengths[:, None]  # [B, P]
    causal = position[:, None] >= position
    near = (position[:, None] - position) < window
    own = torch.eye(width, dtype=torch.bool)  # padding sees itself, because otherwise its softmax is NaN
    recent = position >= lengths[:, None] - (window - 1)
    masks = []
    for prompt_rule, canvas_rule in ((causal, valid), (causal & near, valid & recent)):
        top = F.pad((prompt_rule & valid[:, None]) | own, (0, canvas))
        bottom = F.pad(canvas_rule[:, None].expand(-1, canvas, -1), (0, canvas), value=True)
        masks.append(torch.cat((top, bottom), 1)[:, None])
    prompt_positions = position.expand(len(lengths), -1)
    return masks[0], masks[1], torch.cat((prompt_positions, lengths[:, None] + torch.arange(canvas)), 1)


Masks = tuple[Tensor, Tensor, Tensor]


def canvas_logits(
    model: nn.Module, prompt: Tensor, canvas: Tensor, masks: Masks, soft: Tensor | None
) -> Tensor:
    """Return softcapped float32 logits [B, C, V] of the canvas.

    prompt, canvas: ids [B, P] and [B, C]. masks: result of `build_masks`. soft: the self-conditioning signal
    [B, C, D], or None on a first step.
    """
    text, decoder = model.config.text_config, model.model.decoder
    table = decoder.embed_tokens.weight
    width = prompt.shape[1]
    x = F.embedding(torch.cat((prompt, canvas), 1), table) * text.hidden_size**0.5
    rows = x[:, width:]
    if soft is not None:
        condition = decoder.self_conditioning
        rows = rows + gated_mlp(condition, norm(soft, condition.pre_norm.weight))
    x = torch.cat((x[:, :width], norm(rows).to(x.dtype)), 1)
    full, sliding, positions = masks
    rotary = decoder.rotary_emb
    angles = {
        "full_attention": positions[..., None].float() * rotary.full_attention_inv_freq,
        "sliding_attention": positions[..., None].float() * rotary.sliding_attention_inv_freq,
    }
    for i, layer in enumerate(decoder.layers):
        kind = text.layer_types[i]
        # In the last layer, the prompt's positions are only keys and values.
        start = width if i == len(decoder.layers) - 1 else 0
        y = attention(layer.self_attn, norm(x, layer.input_layernorm.weight), angles[kind],
                      full if kind == "full_attention" else sliding, start)  # fmt: skip
        x = x[:, start:] + norm(y, layer.post_attention_layernorm.weight)
        dense = gated_mlp(layer.mlp, norm(x, layer.pre_feedforward_layernorm.weight))
        mixed = norm(dense, layer.post_feedforward_layernorm_1.weight)
        mixed = mixed + norm(experts(layer, x, text.top_k_experts), layer.post_feedforward_layernorm_2.weight)
        x = x + norm(mixed, layer.post_feedforward_layernorm.weight)
    logits = F.linear(norm(x, decoder.norm.weight), table).float()
    return text.final_logit_softcapping * torch.tanh(logits / text.final_logit_softcapping)


def soft_embedding(model: nn.Module, logits: Tensor, temperature: Tensor) -> Tensor:
    """Return the self-conditioning signal softmax(logits / T) @ E * sqrt(hidden), [B, C, D]."""
    table = model.model.decoder.embed_tokens.weight
    return (logits / temperature).softmax(-1) @ table * table.shape[1] ** 0.5
