"""The HTML of a generation: all there, nothing of the model's text taken for markup, small, and offline."""

from __future__ import annotations

import base64
import io
import json
import re
import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from matplotlib.image import imread
from support.page_reading import Parsed, check_view, views
from support.scripted import TURN_END, Scripted

import mlx_dg
from mlx_diffusiongemma.display.notebook import page, quantised, trace_view, view_data
from mlx_diffusiongemma.engine.trace import Trace, TracedStep
from mlx_diffusiongemma.text.tokenizer import Tokenizer

HARD = 'Spell "internationalisation" backwards.'
HOSTILE = (
    '</script><img src=x onerror="alert(1)">',
    "</SCRIPT >",
    "<!--<script>",
    "]]>&lt;&amp;",
    "\"'`${x}\\u003c",
    "\u2028\u2029",
    "\x00\x1b[31m\x9b\x7f",
    "</pre></details></div>",
)


def test_text_by_channels_and_statistics(demo: Any) -> None:
    """Displaying runs it. Without a trace it needs no script."""
    generation = mlx_dg.generate(*demo, "What is 345 + 78?", thinking=True, seed=0)
    bundle = generation._repr_mimebundle_()
    assert bundle["text/plain"] == "423"
    parsed = Parsed(bundle["text/html"])
    tags = [tag for tag, _ in parsed.tags]
    assert "script" not in tags
    assert (tags.count("details"), parsed.answer) == (1, "423")
    for part in (generation.thought, "20.0 tokens per forward", "ended by stop", "seed 0", "1 block "):
        assert part in parsed.text
    stats = generation.stats
    for name in ("in_step", "gross", "net"):
        assert f"{name.replace('_', '-')} {getattr(stats, name + '_tokens_per_second'):.1f}" in parsed.text


def test_tries_and_blocks_each_have_a_canvas(tokenizer: Tokenizer) -> None:
    attempts = [[TURN_END], tokenizer.encode("yes é🎉 \n" * 40)[:64]]
    model: Any = Scripted(lambda block, attempt: attempts[attempt] if block == 0 else [TURN_END])
    generation = mlx_dg.generate(model, tokenizer, "hi", trace=True)
    html = page(generation)
    check_view(views(html)[0], generation)
    stills = [attributes["alt"] for tag, attributes in Parsed(html).tags if tag == "img"]
    assert [still.split(",")[0] for still in stills if still] == ["canvas 1", "canvas 2"]


def test_candidates_are_shown_together_and_batches_apart(demo: Any) -> None:
    generation = mlx_dg.generate(*demo, "What is 99 + 88?", n=2, seed=1, trace=True)
    for each in generation.candidates:
        found = views(page(each))
        assert len(found) == 2
        for view, candidate in zip(found, generation.candidates, strict=True):
            check_view(view, candidate)
    assert "candidate 1" in Parsed(page(generation)).text
    batch = mlx_dg.generate_batch(*demo, ["What is the capital of Norway?", "Count to 3."], seed=0)
    assert [Parsed(page(each)).answer for each in batch] == ["The capital of Norway is Oslo.", "1 2 3"]


def test_it_needs_nothing_from_outside_and_does_not_clash(demo: Any) -> None:
    """No addresses, no ids; every rule of style is about our own classes."""
    html = page(mlx_dg.generate(*demo, "What is 345 + 78?", seed=0, trace=True))
    assert not re.search(r"https?:|//[a-z]|@import|url\(", html)
    parsed = Parsed(html)
    assert not any("id" in attributes for _, attributes in parsed.tags)
    (style,) = re.findall("<style>(.*?)</style>", html, re.DOTALL)
    selectors = [each.strip() for rule in re.findall(r"([^{}]+)\{", style) for each in rule.split(",")]
    assert len(selectors) > 20
    assert all(selector.startswith(".mlx-dg") for selector in selectors)


def test_hostile_text(tokenizer: Tokenizer) -> None:
    """A model that writes markup: as text, in the thought, and token by token."""
    hostile = "".join(HOSTILE)
    ids = tokenizer.encode(f"<|channel>thought\n{hostile}<channel|>{hostile}<turn|>")
    canvases = [ids[start : start + 64] for start in range(0, len(ids), 64)]
    model: Any = Scripted(canvases)
    generation = mlx_dg.generate(model, tokenizer, "hi", trace=True, max_new_tokens=64 * len(canvases))
    html = page(generation)
    assert generation.answer == hostile
    parsed = Parsed(html)
    allowed = {"div", "section", "details", "summary", "pre", "p", "small", "script", "style"}
    assert {tag for tag, _ in parsed.tags} == allowed | {"figure", "figcaption", "img"}
    assert not any(name.startswith("on") for _, attributes in parsed.tags for name in attributes)
    visible = hostile.replace("\x00\x1b[31m\x9b\x7f", "\u2400\u241b[31m\ufffd\u2421")
    assert parsed.answer == visible
    assert parsed.text.count(visible) == 2
    check_view(views(html)[0], generation)
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f]", html)


def made_trace(drafts: np.ndarray, rng: np.random.Generator, mean_entropy: float = 0.25) -> Trace:
    trace = Trace()
    trace.total_steps = len(drafts)
    trace.steps += [
        TracedStep(
            block=123,
            attempt=0,
            index=index,
            step=48 - index,
            temperature=rng.random(),
            seconds=rng.random() * 100,
            mean_entropy=mean_entropy,
            done=False,
            draft_ids=ids,
            canvas_ids=ids,
            entropies=rng.exponential(1, ids.shape).astype(np.float32),
            accepted=rng.random(ids.shape) < 0.5,
            logprobs=np.zeros(ids.shape, np.float32),
        )
        for index, ids in enumerate(drafts)
    ]
    return trace


def fake_tokenizer(texts: dict[int, str]) -> Any:
    return SimpleNamespace(
        byte_values={},
        hidden_ids=frozenset({0}),
        special=SimpleNamespace(pad=0),
        decode=lambda ids: "".join(texts.get(token, f" word{token}") for token in ids),
    )


def test_hostile_tokens() -> None:
    """Single tokens that hold markup, as a vocabulary may, reach the script as they are."""
    drafts = np.arange(len(HOSTILE))[None]
    html = trace_view(made_trace(drafts, np.random.default_rng(0)), fake_tokenizer(dict(enumerate(HOSTILE))))
    (view,) = views(html)
    assert view["texts"] == list(HOSTILE)
    (data,) = re.findall(r'<script type="application/json">(.*?)</script>', html, re.DOTALL)
    assert data.isascii()
    assert data.isprintable()
    assert not set("<>&") & set(data)


def test_size_is_bounded() -> None:
    """At most 3 KB a step of 256 positions if every draft is new; 3.5 KB in a usual one, texts included."""
    rng = np.random.default_rng(0)
    drafts = rng.integers(1, 262144, (48, 256))
    worst = view_data(made_trace(drafts, rng), fake_tokenizer({}))
    assert len(json.dumps(worst["canvases"], separators=(",", ":"))) / 48 < 3000
    for step in range(1, 48):
        drafts[step] = np.where(rng.random(256) < 0.25, rng.integers(1, 4000, 256), drafts[step - 1])
    usual = view_data(made_trace(drafts, rng), fake_tokenizer({}))
    assert len(json.dumps(usual, separators=(",", ":"))) / 48 < 3500


def test_entropies_are_kept_to_two_percent() -> None:
    nats = np.geomspace(0.001, 12.5, 1000)
    back = 0.001 * 12500 ** (quantised(nats) / 255)
    np.testing.assert_allclose(back, nats, rtol=0.02)
    assert quantised(np.array([0, 1e-9, 0.001, 12.5, 100])).tolist() == [0, 0, 0, 255, 255]


def test_what_is_not_a_number_and_very_long_canvases() -> None:
    """JSON has no NaN; a still is not taller for more steps."""
    rng = np.random.default_rng(0)
    trace = made_trace(np.zeros((1000, 64), np.int32), rng, mean_entropy=float("nan"))
    trace.steps[0].entropies[:] = np.nan
    html = trace_view(trace, fake_tokenizer({}))
    (view,) = views(html)
    assert [step[2] for step in view["canvases"][0]["steps"]] == [None] * 1000
    assert set(view["canvases"][0]["entropies"][0]) == {255}
    (image,) = [attributes for tag, attributes in Parsed(html).tags if tag == "img"]
    pixels = imread(io.BytesIO(base64.b64decode(str(image["src"]).split(",")[1])))
    assert pixels.shape[0] <= 240
    assert "downwards one step of 5" in Parsed(html).text


def test_a_trace_is_all_there_and_its_still_is_the_heat_map(demo: Any) -> None:
    generation = mlx_dg.generate(*demo, HARD, thinking=True, seed=0, trace=True)
    html = page(generation)
    (view,), parsed = views(html), Parsed(html)
    check_view(view, generation)
    assert len(view["canvases"][0]["steps"]) > 10
    (image,) = [attributes for tag, attributes in parsed.tags if tag == "img"]
    assert image["border"] == "1"  # an attribute, because GitHub leaves out styles
    assert "trust the notebook or run the cell" in parsed.text
    prefix, encoded = str(image["src"]).split(",")
    assert prefix == "data:image/png;base64"
    pixels = imread(io.BytesIO(base64.b64decode(encoded)))
    opacity = np.kron(quantised(generation.trace.canvases[0].entropies) / 255, np.ones((12, 10)))
    np.testing.assert_allclose(pixels[..., 3], opacity, atol=1e-3)
    np.testing.assert_allclose(pixels[..., :3] * 255, np.broadcast_to((230, 97, 0), (*opacity.shape, 3)))


def test_without_pillow_there_is_no_still(demo: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "PIL", None)
    generation = mlx_dg.generate(*demo, "Hi", seed=0, trace=True)
    html = page(generation)
    assert "img" not in [tag for tag, _ in Parsed(html).tags]
    check_view(views(html)[0], generation)


def test_tool_calls_warnings_and_an_interrupt(tokenizer: Tokenizer) -> None:
    call = '<|tool_call>call:get_weather{city:<|"|>a<b<|"|>}<tool_call|>'
    broken = "<|tool_call>call:<i>{{<tool_call|><turn|>"
    model: Any = Scripted([tokenizer.encode(call + broken)])
    bundle = mlx_dg.generate(model, tokenizer, "hi")._repr_mimebundle_()
    assert bundle["text/plain"].startswith('get_weather({"city": "a<b"})\n⚠ tool call: ')
    assert bundle["text/plain"].endswith("call:<i>{{")
    parsed = Parsed(bundle["text/html"])
    assert 'get_weather({"city": "a<b"})' in parsed.text
    assert "call:<i>{{" in parsed.text
    assert {tag for tag, _ in parsed.tags} == {"style", "div", "section", "p", "small", "pre", "code"}
    unsure: Any = Scripted([tokenizer.encode("yes<turn|>")], sure=1)
    generation = mlx_dg.generate(unsure, tokenizer, "hi", max_denoising_steps=2)
    text = Parsed(page(generation)).text
    assert generation.blocks[0].warning
    assert f"⚠ {generation.blocks[0].warning}" in text


def test_a_cut_answer_says_so(demo: Any) -> None:
    generation = mlx_dg.generate(*demo, "Count to 37.", seed=0, max_new_tokens=20)
    bundle = generation._repr_mimebundle_()
    (warning,) = generation.warnings
    assert bundle["text/plain"] == f"{generation.answer}\n⚠ {warning}"
    assert f"⚠ {warning}" in Parsed(bundle["text/html"]).text
    assert "ended by length" in Parsed(bundle["text/html"]).text


def test_a_generation_that_was_closed_runs_no_further(demo: Any) -> None:
    generation = mlx_dg.generate(*demo, "Count to 37.", seed=0, trace=True)
    generation.close()
    assert "closed before its end" in Parsed(page(generation)).text
    with pytest.raises(mlx_dg.InputError, match=r"plot_trace: nothing was denoised \(it was closed\)"):
        mlx_dg.plot_trace(generation)
    assert generation.blocks == []


def test_an_interrupted_generation_shows_what_is_there(tokenizer: Tokenizer) -> None:
    def interrupt(step: Any) -> None:
        if model.attempt == 0 and len(model.encoded) == 2:
            raise KeyboardInterrupt

    model: Any = Scripted([tokenizer.encode("yes " * 80)[:64], [TURN_END]])
    generation = mlx_dg.generate(model, tokenizer, "hi", on_step=interrupt, trace=True)
    with pytest.raises(KeyboardInterrupt):
        list(generation)
    html = page(generation)
    assert "closed before its end" in Parsed(html).text
    assert "canvas 2, 1 step:" in Parsed(html).text
    assert ", not committed." in Parsed(html).text
    check_view(views(html)[0], generation)


@pytest.mark.parametrize("early", [False, True], ids=["while displayed", "earlier"])
def test_a_failed_generation_shows_what_is_there(tokenizer: Tokenizer, early: bool) -> None:
    text = tokenizer.encode("yes " * 80)[:64]
    model: Any = Scripted([text, text], sure=lambda _: 60.0 if len(model.encoded) == 1 else float("nan"))
    generation = mlx_dg.generate(model, tokenizer, "hi", trace=True)
    if early:
        with pytest.raises(mlx_dg.GenerationError):
            list(generation)
    bundle = generation._repr_mimebundle_()
    answer, warning = bundle["text/plain"].splitlines()
    parsed = Parsed(bundle["text/html"])
    assert parsed.answer == answer == generation.blocks[0].answer
    assert warning.startswith("⚠ the model's logits are NaN or infinite at denoising step 1")
    assert warning in parsed.text
    assert "ended by an error" in parsed.text
    check_view(views(bundle["text/html"])[0], generation)


def test_steps_that_were_not_kept(demo: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mlx_diffusiongemma.engine.trace.MOST_STEPS", 5)
    generation = mlx_dg.generate(*demo, HARD, thinking=True, seed=0, trace=True)
    html = page(generation)
    total = generation.stats.denoising_steps
    assert f"⚠ the last 5 of {total} steps were kept" in Parsed(html).text
    check_view(views(html)[0], generation)
    assert views(html)[0]["canvases"][0]["steps"][0][0] == total - 5


def test_what_the_grammar_finished_is_said(demo: Any) -> None:
    generation = mlx_dg.generate(*demo, "Hi", choices=["zebra", "yak"], seed=0, trace=True)
    html = page(generation)
    (canvas,) = generation.trace.last_tries
    expected = f"{len(canvas.finished)} tokens finished by the grammar or the thinking budget"
    assert expected in Parsed(html).text
    check_view(views(html)[0], generation)
