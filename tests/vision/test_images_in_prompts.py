"""Images in messages: their places among the ids, and generations behind them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer as RawTokenizer

import mlx_dg
from mlx_diffusiongemma import InputError, PromptCache, generate, generate_batch
from mlx_diffusiongemma.checkpoint.loading import load_model
from mlx_diffusiongemma.errors import CheckpointError
from mlx_diffusiongemma.prompt import Prompt

PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8))
OTHER = Image.fromarray(255 - np.asarray(PICTURE))
SHORT = {"max_new_tokens": 64, "max_denoising_steps": 4, "seed": 0}


def user(*parts: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [part if isinstance(part, dict) else text(part) for part in parts]}]


def text(value: str) -> dict[str, str]:
    return {"type": "text", "text": value}


def image(value: Any) -> dict[str, Any]:
    return {"type": "image", "image": value}


def test_ids_are_those_of_the_expanded_text(seeing: Any, seeing_directory: Path) -> None:
    """Transformers writes the brackets and soft tokens into the text before it is encoded."""
    _, tokenizer = seeing
    messages = user("A", image(PICTURE), "B", image(PICTURE))
    rendered = tokenizer.apply_chat_template(messages, tokenize=False)
    raw = RawTokenizer.from_file(str(seeing_directory / "tokenizer.json"))
    expanded = rendered.replace("<|image|>", "<|image>" + "<|image|>" * 63 + "<image|>")
    prompt = tokenizer.prompt(messages)
    assert list(prompt.ids) == raw.encode(expanded, add_special_tokens=False).ids
    assert [span.length for span in prompt.images] == [63, 63]  # 4:3 at 70
    for span in prompt.images:
        assert set(prompt.ids[span.start : span.end]) == {tokenizer.special.image}
        assert prompt.ids[span.start - 1] == tokenizer.special.image_open
        assert prompt.ids[span.end] == tokenizer.special.image_close
    assert tokenizer.prompt(messages, soft_tokens=140).images[0].length == 130


def test_every_spelling_of_an_image_part_is_read(seeing: Any, tmp_path: Path) -> None:
    _, tokenizer = seeing
    path = tmp_path / "a.png"
    PICTURE.save(path)
    expected = tokenizer.prompt(user(image(PICTURE), "hi"))
    assert tokenizer.prompt("hi", images=[str(path)]) == expected
    for part in (
        {"type": "image", "path": path},
        {"type": "image", "url": str(path)},
        {"type": "image_url", "image_url": {"url": str(path)}},
        {"type": "input_image", "image_url": str(path)},
    ):
        assert tokenizer.prompt(user(part, "hi")) == expected
    assert tokenizer.prompt(user(image(OTHER), "hi")) != expected


def test_text_that_spells_the_placeholder_stays_text(seeing: Any) -> None:
    _, tokenizer = seeing
    prompt = tokenizer.prompt("what is <|image|> here", images=[PICTURE])
    assert len(prompt.images) == 1
    assert prompt.ids.count(tokenizer.special.image) == prompt.images[0].length
    with pytest.raises(InputError, match="wrote 2 places for 1 images"):
        tokenizer.prompt("what is <|image|> here", images=[PICTURE], allow_special_tokens=True)


def test_the_pixels_decide_and_rows_of_a_batch_are_independent(seeing: Any) -> None:
    prompts = [
        user(image(PICTURE), "A"),
        user(image(OTHER), "A"),
        user("a longer question ", image(OTHER)),
        "A",
    ]
    alone = [generate(*seeing, prompt, **SHORT).token_ids for prompt in prompts]
    assert alone[0] != alone[1]
    together = generate_batch(*seeing, prompts, progress=False, **SHORT)
    assert [each.token_ids for each in together] == alone


def test_a_later_turn_reuses_an_image_and_another_picture_does_not(seeing: Any) -> None:
    model, tokenizer = seeing
    cache = PromptCache(model)
    first = user(image(PICTURE), "A")
    list(generate(model, tokenizer, first, prompt_cache=cache, **SHORT))
    turns = [*first, {"role": "assistant", "content": "B"}, {"role": "user", "content": "C"}]
    again = generate(model, tokenizer, turns, prompt_cache=cache, **SHORT)
    assert again.token_ids == generate(model, tokenizer, turns, **SHORT).token_ids
    assert again.stats.cached_tokens > 64
    other = generate(model, tokenizer, user(image(OTHER), "A"), prompt_cache=cache, **SHORT)
    assert other.token_ids == generate(model, tokenizer, user(image(OTHER), "A"), **SHORT).token_ids
    assert other.stats.cached_tokens <= 6


def test_soft_tokens_are_computed_once(seeing: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer = seeing
    prompt = tokenizer.prompt("hi", images=[PICTURE])
    model.encode(prompt, model.make_cache())
    monkeypatch.setattr(model.vision, "_vision", None)  # without a tower only kept ones can be had
    monkeypatch.setattr(model.vision, "_directory", Path("nowhere"))
    model.encode(prompt, model.make_cache())


def test_structure_candidates_and_budgets_work_behind_an_image(seeing: Any) -> None:
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    generation = generate(
        *seeing, "A", images=[PICTURE], n=2, schema=schema, thinking_budget=8, thinking=True, **SHORT
    )
    assert all(isinstance(json.loads(each.answer)["n"], int) for each in generation.candidates)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prompt": "A", "images": [PICTURE], "soft_tokens": 99}, "soft_tokens must be one of 70, 140"),
        ({"prompt": user("A"), "images": [PICTURE]}, "images: messages have theirs in parts"),
        ({"prompt": [5, 6], "images": [PICTURE]}, "token ids cannot be combined with .* images"),
        ({"prompt": user(image(PICTURE), image("no.png"))}, "image 2: 'no.png' cannot be read"),
        ({"prompt": user({"type": "image"}, "A")}, "image 1: found NoneType"),
        ({"prompt": user({"type": "video", "video": "a.mp4"})}, "content part of type 'video'"),
        ({"prompt": "A", "images": [PICTURE] * 70}, "positions, but the context holds 4096"),
    ],
    ids=range(7),
)
def test_bad_images_are_refused_before_anything_runs(
    seeing: Any, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        generate(*seeing, **arguments, **SHORT)


def test_a_prompt_by_hand_that_does_not_fit_its_images(seeing: Any) -> None:
    model, tokenizer = seeing
    prompt = tokenizer.prompt("hi", images=[PICTURE])
    [span] = prompt.images
    wrong = Prompt(prompt.ids, [type(span)(span.start, 60, span.digest, span.pixels)])
    with pytest.raises(InputError, match="an image of 63 soft tokens has 60 positions in the prompt"):
        model.encode(wrong, model.make_cache())


def test_checkpoints_without_a_tower_or_with_a_wrong_one(
    seeing: Any, seeing_directory: Path, tmp_path: Path
) -> None:
    shutil.copytree(seeing_directory, tmp_path / "blind")
    weights = load_file(seeing_directory / "model.safetensors")
    text_only = {name: value for name, value in weights.items() if "vision" not in name}
    save_file(text_only, tmp_path / "blind" / "model.safetensors")
    with pytest.raises(InputError, match="this checkpoint has no vision tower; take one that has it"):
        generate(*mlx_dg.load(tmp_path / "blind"), "A", images=[PICTURE])
    name = "model.encoder.vision_tower.encoder.layers.0.mlp.up_proj.linear.weight"
    save_file(weights | {name: weights[name][:8]}, tmp_path / "blind" / "model.safetensors")
    with pytest.raises(
        CheckpointError, match=r"mlp.up_proj.linear.weight has shape \[8, 16\], but config.json"
    ):
        list(generate(*mlx_dg.load(tmp_path / "blind"), "A", images=[PICTURE], **SHORT))


def test_projections_in_mlx_vlms_spelling_load(seeing: Any, seeing_directory: Path, tmp_path: Path) -> None:
    shutil.copytree(seeing_directory, tmp_path / "other")
    weights = load_file(seeing_directory / "model.safetensors")
    save_file(
        {name.replace(".linear.weight", ".weight"): value for name, value in weights.items()},
        tmp_path / "other" / "model.safetensors",
    )
    _, tokenizer = seeing
    patches = tokenizer.prompt("A", images=[PICTURE]).images[0].pixels
    ours, expected = load_model(tmp_path / "other"), seeing[0]
    assert ours.vision is not None
    assert mx.array_equal(ours.vision(patches), expected.vision(patches))


def test_a_prompt_by_hand(seeing: Any, tmp_path: Path) -> None:
    """Images of any form beside ids: the places follow from the ids."""
    model, tokenizer = seeing
    made = tokenizer.prompt(user("A", image(PICTURE), "B", image(OTHER)))
    PICTURE.save(tmp_path / "a.png")
    patches = made.images[1].pixels
    by_hand = mlx_dg.Prompt(made.ids, images=[tmp_path / "a.png", (patches.values, patches.positions)])
    assert model.placed(by_hand) == made
    expected = generate(model, tokenizer, made, **SHORT).token_ids
    assert generate(model, tokenizer, by_hand, **SHORT).token_ids == expected
    cache, again = model.make_cache(), model.make_cache()
    model.encode(by_hand, cache, chunk_size=7)
    model.encode(made, again)
    canvas = mx.zeros((1, 32), dtype=mx.int32)
    assert mx.allclose(model.decode(canvas, cache), model.decode(canvas, again), atol=1e-4)


@pytest.mark.parametrize(
    ("ids", "images", "message"),
    [
        ([5, *[702] * 62, 6], [PICTURE], "image 1: found 62 image ids for it, not 63 or 130 or 266 or 540"),
        ([5, 6], [PICTURE], "image 1: found 0 image ids for it"),
        ([*[702] * 63, 5, *[702] * 63], [PICTURE], r"1 images, but more image ids \(702\)"),
        ([*[702] * 63], [(np.zeros((9, 5)), np.zeros((9, 3), int))], "image 1: patches must be"),
        (
            [*[702] * 2],
            [(np.zeros((27, 768)), np.zeros((27, 2), int))],
            "image 1: found 2 image ids for it, not 3",
        ),
        ([*[702] * 63], ["missing.png"], "image 1: 'missing.png' cannot be read"),
    ],
    ids=range(6),
)
def test_a_prompt_by_hand_with_the_wrong_places(
    seeing: Any, ids: list[int], images: Any, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        generate(*seeing, mlx_dg.Prompt(ids, images=images), **SHORT)


def test_a_conversion_keeps_the_tower(seeing: Any, seeing_directory: Path, tmp_path: Path) -> None:
    model, tokenizer = seeing
    target = mlx_dg.convert(seeing_directory, tmp_path / "converted")
    [span] = tokenizer.prompt("A", images=[PICTURE]).images
    converted, other = mlx_dg.load(target)
    assert converted.vision is not None
    assert mx.array_equal(converted.vision(span.pixels), model.vision(span.pixels))
    assert other.prompt("A", images=[PICTURE]).images == (span,)
