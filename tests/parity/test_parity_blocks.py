"""Image blocks against Transformers: Gemma 4's masks, injected into DiffusionGemma's encoder."""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
import torch
from oracle import tiny
from oracle.reference import load_reference
from transformers import DynamicCache
from transformers.models.gemma4.modeling_gemma4 import (
    create_masks_for_vision_model,
    get_block_sequence_ids_for_mask,
)

from mlx_diffusiongemma.checkpoint.loading import load_model
from mlx_diffusiongemma.model.attention import ImageAttention

TOLERANCE = 1e-4


@pytest.mark.parametrize("spans", [[], [(1, 6)], [(0, 5), (8, 40), (41, 49)], [(30, 50)]])
@torch.no_grad()
def test_logits_behind_blocks(tmp_path: Path, spans: list[tuple[int, int]]) -> None:
    """A second turn included: its masks reach into the cache, and its block begins behind it."""
    directory = tiny.build(tiny.ROUGH, tmp_path)
    theirs, ours = load_reference(directory), load_model(directory, dtype=mx.float32)
    rng = np.random.default_rng(0)
    first, second = rng.integers(0, 90, (1, 50)), rng.integers(0, 90, (1, 20))
    canvas = rng.integers(0, 90, (1, 16))
    types = np.zeros((1, 70), dtype=np.int64)
    turns = ((first, spans), (second, [(2, 9)] if spans else []))
    encoder = theirs.model.encoder.language_model
    reference, cache = DynamicCache(config=theirs.config.text_config), ours.make_cache()
    for ids, here in turns:
        offset, chunk_size = cache.offset, int(rng.integers(1, 20))
        for start, end in here:
            types[:, offset + start : offset + end] = 1
        embeddings = encoder.embed_tokens(torch.from_numpy(ids))
        masks = create_masks_for_vision_model(
            config=theirs.config.text_config,
            inputs_embeds=embeddings,
            attention_mask=None,
            cache=reference,
            position_ids=torch.arange(offset, offset + ids.shape[1])[None],
            block_sequence_ids=get_block_sequence_ids_for_mask(torch.from_numpy(types), torch.device("cpu")),
        )
        encoder(inputs_embeds=embeddings, attention_mask=masks, cache=reference)
        ours.encode(mx.array(ids), cache, chunk_size, spans=[here])
        expected = theirs(decoder_input_ids=torch.from_numpy(canvas), cache=reference).logits.numpy()
        assert np.abs(np.array(ours.decode(mx.array(canvas), cache)) - expected).max() <= TOLERANCE


@pytest.mark.parametrize("rule", ["sliding", "everywhere", "causal"])
@torch.no_grad()
def test_the_three_rules(tmp_path: Path, rule: ImageAttention) -> None:
    """Masks written out from each rule and injected. One block is longer than the window."""
    directory = tiny.build(tiny.ROUGH, tmp_path)
    theirs, ours = load_reference(directory), load_model(directory, dtype=mx.float32)
    ours.image_attention = rule
    rng, spans = np.random.default_rng(3), [(2, 7), (10, 40), (41, 49)]
    ids, canvas = rng.integers(0, 90, (1, 60)), rng.integers(0, 90, (1, 16))
    distance = np.arange(60)[:, None] - np.arange(60)[None, :]
    block = np.zeros((60, 60), dtype=bool)
    for start, end in spans:
        block[start:end, start:end] = True
    causal, near = distance >= 0, distance < tiny.ROUGH.window
    sliding, full = {
        "sliding": ((causal | block) & near, causal),
        "everywhere": ((causal & near) | block, causal | block),
        "causal": (causal & near, causal),
    }[rule]
    masks = {
        f"{kind}_attention": torch.where(torch.from_numpy(seen), 0.0, -torch.inf)[None, None]
        for kind, seen in (("sliding", sliding), ("full", full))
    }
    encoder, reference = theirs.model.encoder.language_model, DynamicCache(config=theirs.config.text_config)
    encoder(inputs_embeds=encoder.embed_tokens(torch.from_numpy(ids)), attention_mask=masks, cache=reference)
    expected = theirs(decoder_input_ids=torch.from_numpy(canvas), cache=reference).logits.numpy()
    for chunk_size in (60, 7):
        cache = ours.make_cache()
        ours.encode(mx.array(ids), cache, chunk_size, spans=[spans])
        assert np.abs(np.array(ours.decode(mx.array(canvas), cache)) - expected).max() <= TOLERANCE
