"""Runners: choosing one, fingerprints of a checkpoint, and this package as a runner on the demo."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from mlx.utils import tree_map

import mlx_dg
from mlx_diffusiongemma.checkpoint.loading import resolve
from mlx_diffusiongemma.demo import tasks
from mlx_diffusiongemma.errors import InputError
from mlx_diffusiongemma.evaluation.runners import Runner, checkpoint, choose, native
from mlx_diffusiongemma.evaluation.runners.native import Native
from mlx_diffusiongemma.evaluation.task import Grade, Task

DEMO = resolve("demo")
CITIES = {"type": "array", "items": {"type": "object", "required": ["city"]}, "minItems": 1}


def task(prompt: Any, **more: Any) -> Task:
    return Task("a-task", prompt, lambda reply: Grade(True, True), **more)


@pytest.fixture(scope="module")
def runner() -> Runner:
    return choose("mlx_dg", "demo", None)


@pytest.mark.parametrize("thinking", [True, False])
def test_a_reply_is_that_of_generate(runner: Runner, demo: Any, thinking: bool) -> None:
    settings: dict[str, Any] = {"max_new_tokens": 192, "entropy_bound": 0.2}
    [reply] = runner(task("Count to 37.", thinking=thinking, settings=settings), 5)
    same = mlx_dg.generate(*demo, "Count to 37.", thinking=thinking, seed=5, **settings)
    assert reply.answer == same.answer == " ".join(map(str, range(1, 38)))
    assert reply.thought == same.thought
    assert bool(reply.thought) == thinking
    assert reply.blocks == tuple(block.answer for block in same)
    assert "".join(reply.blocks) == reply.answer
    assert (reply.finish_reason, reply.outcome, reply.error) == ("stop", "delivered", None)
    cost, stats = reply.cost, same.stats
    assert cost.blocks == stats.blocks == 2
    assert cost.denoising_steps == stats.denoising_steps
    assert cost.new_tokens == stats.new_tokens == len(same.token_ids)
    assert cost.answer_tokens == stats.answer_tokens == 101
    assert 0 < cost.seconds < 60


def test_candidates_schemas_tools_and_limits(runner: Runner, demo: Any) -> None:
    replies = runner(task("JSON for Oslo", thinking=False, schema=CITIES), 3, n=2)
    same = mlx_dg.generate(*demo, "JSON for Oslo", seed=3, n=2, schema=CITIES)
    assert [reply.answer for reply in replies] == [candidate.answer for candidate in same.candidates]
    assert replies[0].cost.seconds == replies[1].cost.seconds  # they run together
    assert json.loads(replies[0].answer)[0]["city"] == "Oslo"
    messages = ({"role": "user", "content": "What is the weather in Paris?"},)
    [reply] = runner(task(messages, tools=(tasks.tool("get_weather"),)), 0)
    assert (reply.tool_calls, reply.outcome) == ((("get_weather", {"city": "Paris"}),), "delivered")
    [reply] = runner(task("What is 345 + 78?", settings={"max_new_tokens": 8}), 0)
    assert (reply.outcome, reply.cost.answer_tokens, reply.cost.new_tokens) == ("stuck", 0, 8)


@pytest.mark.parametrize(("prompt", "error"), [
    ("caf\udce9", "not valid Unicode"), ("word " * 5000, "tokens"),
], ids=["text", "long"])  # fmt: skip
def test_a_prompt_that_cannot_be_run_is_a_reply(runner: Runner, prompt: str, error: str) -> None:
    replies = runner(task(prompt), 0, n=2)
    assert [reply.outcome for reply in replies] == ["error", "error"]
    assert all(error in str(reply.error) and "\n" not in str(reply.error) for reply in replies)


@pytest.mark.parametrize(("more", "complaint"), [
    ({"settings": {"max_tokens": 9}}, "unknown setting 'max_tokens'"),
    ({"settings": {"entropy_bound": -1}}, "entropy_bound must be"),
    ({"schema": {"type": "nonsense"}}, "schema"),
    ({"schema": CITIES, "tools": (tasks.tool("get_time"),)}, "tools: a call is not what schema"),
])  # fmt: skip
@pytest.mark.parametrize("prompt", ["What is 1 + 1?", "caf\udce9"])
def test_a_suite_that_is_wrong_is_not_hidden(runner: Runner, more: Any, complaint: str, prompt: str) -> None:
    with pytest.raises(InputError, match=complaint):
        runner(task(prompt, **more), 0)


def test_a_model_of_nan_is_a_reply(demo: Any) -> None:
    model, tokenizer = mlx_dg.load("demo")
    broken = Native.of(model, tokenizer)
    model.update(tree_map(lambda array: array * mx.nan, model.parameters()))
    replies = broken(task("What is 1 + 1?"), 0, n=2)
    assert [reply.outcome for reply in replies] == ["error", "error"]
    assert "NaN" in str(replies[0].error)


def test_the_first_call_loads_and_warms_up(monkeypatch: pytest.MonkeyPatch) -> None:
    prompts: list[Any] = []

    def spy(model: Any, tokenizer: Any, prompt: Any, **options: Any) -> Any:
        prompts.append(prompt)
        return mlx_dg.generate(model, tokenizer, prompt, **options)

    monkeypatch.setattr(native, "generate", spy)
    monkeypatch.setattr(native, "load", lambda directory: prompts.append("load") or mlx_dg.load(directory))
    fresh = choose("mlx_dg", "demo", None)
    fresh.identity()
    assert prompts == []
    for _ in range(2):
        fresh(task("1 + 1"), 0)
    asked = [{"role": "user", "content": "1 + 1"}]
    assert prompts == ["load", "Hello", asked, asked]


# --- identity ---------------------------------------------------------------------------------------------


def test_identity_has_all_that_decides_answers(runner: Runner, demo: Any) -> None:
    identity, loaded = runner.identity(), Native.of(*demo).identity()
    for each in (identity, loaded):
        assert json.loads(json.dumps(each)) == each
        assert each["versions"]["mlx-diffusiongemma"] == mlx_dg.__version__
        assert each["dtype"] == ("bfloat16" if mx.default_device() == mx.Device(mx.gpu) else "float32")
    assert identity["model"] == "demo"
    assert identity["checkpoint"] == checkpoint.fingerprint(DEMO)
    assert checkpoint.stored_dtype(DEMO) == "bfloat16"


def test_the_fingerprint_of_a_model_is_of_its_weights(demo: Any) -> None:
    first, (second, _) = checkpoint.fingerprint_of(demo[0]), mlx_dg.load("demo")
    assert checkpoint.fingerprint_of(second) == first
    second.decoder.norm.weight = mx.concatenate([second.decoder.norm.weight[:-1], mx.array([7.0])])
    assert checkpoint.fingerprint_of(second) != first


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    return Path(shutil.copytree(DEMO, tmp_path / "copy"))


@pytest.mark.parametrize(
    "name",
    ["config.json", "generation_config.json", "tokenizer.json", "chat_template.jinja", "model.safetensors"],
)
def test_the_fingerprint_of_a_directory_is_of_each_file(copy: Path, name: str) -> None:
    file, prints = copy / name, {checkpoint.fingerprint(copy)}
    assert prints == {checkpoint.fingerprint(DEMO)}
    (copy / "README.md").write_text("another card")
    assert checkpoint.fingerprint(copy) in prints
    content = bytearray(file.read_bytes())
    for place in (-1, len(content) // 5):
        content[place] ^= 1
        file.write_bytes(content)
        prints.add(checkpoint.fingerprint(copy))
    file.write_bytes(content + b" ")
    prints.add(checkpoint.fingerprint(copy))
    assert len(prints) == 4


# --- choosing ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "model", "endpoint", "complaint"), [
    ("mlx_dg", None, None, "no --model given"), ("mlx-vlm", "", None, "no --model given"),
    ("endpoint", None, "http://host", "no --model given"),
    ("mlx_dg", "demo", "http://user:pw@host/v1", "--endpoint URL belong together"),
    ("endpoint", "m", None, "--endpoint URL belong together"),
    ("mlx_dg", "./nowhere", None, "no such directory"),
])  # fmt: skip
def test_choices_that_make_no_sense(name: str, model: Any, endpoint: Any, complaint: str) -> None:
    with pytest.raises(InputError, match=complaint) as caught:
        choose(name, model, endpoint)
    assert "pw" not in str(caught.value)


def test_mlx_vlm_may_be_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "mlx_vlm"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "mlx_vlm", None)
    with pytest.raises(InputError, match=r"mlx-vlm cannot be imported .*; pip install mlx-vlm==0\.7\.10"):
        choose("mlx-vlm", "demo", None)
