"""Model cards: their metadata as the hub reads it, the licence, and the numbers."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard

from mlx_diffusiongemma.converter.card import front_matter, model_card, read_readme


def stored(*sizes: int, bits: int = 0, error: float | None = None) -> dict[str, Any]:
    how = {"group_size": 64, "bits": bits, "mode": "affine"} if bits else None
    named = dict(zip(("tensors", "parameters", "bytes_in", "bytes_out"), sizes, strict=True))
    return {"quantization": how, **named, "rms_error": error}


RECORD: dict[str, Any] = {
    "format": 1,
    "version": "0.1.0",
    "source": "google/diffusiongemma-26B-A4B-it",
    "revision": "abc123",
    "recipe": "mixed-4bit",
    "dtype": None,
    "classes": {
        "experts": stored(60, 22_837_985_280, 45_675_970_560, 12_846_366_720, bits=4, error=0.08764),
        "norms": stored(271, 1000, 2000, 2000),
    },
    "verification": {
        "rms_logit_error": 0.01466,
        "argmax_agreement": 0.9766,
        "entropy_difference": 0.00213,
        "positions": 512,
    },
}
README = """---
license: gemma
license_name: gemma-terms
license_link: https://ai.google.dev/gemma/terms
language: [en, de]
pipeline_tag: image-text-to-text
extra_gated_prompt: Accept
---
# Its card
"""


def loaded(path: Path, text: str) -> ModelCard:
    path.write_text(text, encoding="utf-8")
    return ModelCard.load(path)


def test_the_hub_finds_licence_and_origin(tmp_path: Path) -> None:
    card = loaded(tmp_path / "README.md", model_card(RECORD, RECORD["source"], README))
    assert card.data.to_dict() == {
        "library_name": "mlx",
        "base_model": "google/diffusiongemma-26B-A4B-it",
        "pipeline_tag": "image-text-to-text",
        "license": "gemma",
        "license_name": "gemma-terms",
        "license_link": "https://ai.google.dev/gemma/terms",
        "language": ["en", "de"],
        "tags": ["mlx", "diffusion_gemma", "mlx-diffusiongemma", "mixed-4bit"],
    }
    assert "The source's licence: gemma-terms (https://ai.google.dev/gemma/terms)." in card.text
    assert "at revision `abc123`" in card.text


def test_numbers_are_those_of_the_record() -> None:
    card = model_card(RECORD, RECORD["source"])
    # 4 bits and a 16-bit scale and bias per 64 weights are 4.5 bits
    assert (
        "| class | stored as | tensors | parameters | bits/weight | in | out | RMS error |\n"
        "| --- | --- | --- | --- | --- | --- | --- | --- |\n"
        "| experts | 4-bit affine g64 | 60 | 22,838.0 M | 4.50 | 45.68 GB | 12.85 GB | 8.76% |\n"
        "| norms | unquantized | 271 | 0.0 M | 16.00 | 0.00 MB | 0.00 MB |  |\n"
        "| total |  | 331 | 22,838.0 M | 4.50 | 45.68 GB | 12.85 GB |  |\n"
    ) in card
    assert (
        "Compared with the source at 512 canvas positions: RMS logit error 0.0147, argmax agreement 97.7%, "
        "mean entropy difference 0.0021 nats."
    ) in card
    assert "Compared with the source" not in model_card(RECORD | {"verification": None}, "demo")


def test_the_commands_load_the_repository_that_is_known() -> None:
    card = model_card(RECORD, RECORD["source"], name="me/model-4bit")
    assert 'mlx_dg generate --model me/model-4bit "Why is the sky blue?" --thinking\n' in card
    assert 'mlx_dg.load("me/model-4bit")' in card


@pytest.mark.parametrize("source", ["demo", "a directory", "/home/x/model", "../model", "a/b/c"])
def test_a_local_source_is_not_a_base_model(source: str, tmp_path: Path) -> None:
    card = loaded(tmp_path / "README.md", model_card(RECORD | {"revision": None}, source))
    assert card.data.base_model is None
    assert f"`{source}`, a DiffusionGemma" in card.text


@pytest.mark.parametrize("readme", [
    "",
    "# no front matter",
    "---\nlicense: [unclosed\n---\n",
    "---\n- a list\n---\n",
    "---\nlicense: {a: mapping}\nlicense_link: 5\nlanguage: [en, no]\n---\n",  # YAML's no is false
    "---\nlicense:\n---\n",
    "---\nlicense: 2026-99-99\n---\n",
    "---\n" + "[" * 10_000 + "\n---\n",
    "text\n---\nlicense: mit\n---\n",
])  # fmt: skip
def test_a_source_without_a_licence_or_with_broken_front_matter(
    readme: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    card = loaded(tmp_path / "README.md", model_card(RECORD, RECORD["source"], readme))
    assert card.data.pipeline_tag == "text-generation"
    assert card.data.license is None
    assert card.data.language is None
    assert "The source's README names no licence. See [" in card.text
    assert not caplog.records


def test_front_matter_may_have_any_keys_values_and_bytes(tmp_path: Path) -> None:
    assert read_readme(tmp_path) == ""
    readme = b"\xef\xbb\xbf---\r\nlicense: mit\r\n1: 2\r\nmodel-index: 3\r\n---\r\n\xff\xfe"
    (tmp_path / "README.md").write_bytes(readme)
    card = loaded(tmp_path / "card.md", model_card(RECORD, "demo", read_readme(tmp_path)))
    assert card.data.license == "mit"
    licence = "see LICENSE: \"quoted\", 'it''s' \u00e9 # not a comment"
    readme = f"---\n{json.dumps({'license': 'other', 'license_name': licence})}\n---\n"
    card = loaded(tmp_path / "card.md", model_card(RECORD, "demo", readme))
    assert card.data.license_name == licence


@pytest.mark.parametrize("plant", [os.mkfifo, lambda path: os.symlink("/dev/zero", path)])
def test_a_readme_that_is_not_a_file_is_not_read(plant: Callable[[Path], None], tmp_path: Path) -> None:
    plant(tmp_path / "README.md")
    assert read_readme(tmp_path) == ""


@pytest.mark.parametrize(
    "matter",
    [
        "x: [" + "a," * 900_000 + "a]",
        "x: " + "59:" * 30_000 + "59",
        "a: &a xxx\nlanguage: [" + "*a," * 6000 + "*a]",
    ],
    ids=["long", "sexagesimal", "aliases"],
)
def test_front_matter_that_would_take_long_is_ignored(matter: str) -> None:
    assert front_matter(f"---\nlicense: mit\n{matter}\n---\n") == {}
