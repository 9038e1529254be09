"""Runners: what chooses one, what identifies a checkpoint, and this package as a runner on the demo."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from mlx.utils import tree_map

import mlx_dg
from mlx_diffusiongemma.checkpoint.loading import resolve
from mlx_diffusiongemma.demo import tasks
from mlx_diffusiongemma.errors import CheckpointError, InputError
from mlx_diffusiongemma.evaluation.runners import Runner, checkpoint, choose, native
from mlx_diffusiongemma.evaluation.task import Grade, Reply, Task

DEMO = resolve("demo")
CITIES = {
    "type": "array",
    "items": {
        "type": "object",
        "properties": {"city": {"type": "string"}, "country": {"type": "string"}},
        "required": ["city", "country"],
    },
}

# What the demo does not know, in too few steps: the noise decides.
UNSURE = "Tell me 7 of 12 + and Rome backwards"
HASTY: dict[str, Any] = {"max_denoising_steps": 2, "t_min": 1.0, "t_max": 1.0, "guard_unconverged": False}


def task(prompt: Any, **more: Any) -> Task:
    return Task("a-task", prompt, lambda reply: Grade(True, True), **more)


@pytest.fixture(scope="module")
def runner() -> Runner:
    return choose("mlx_dg", "demo", None)


@pytest.fixture(scope="module")
def demo() -> Any:
    return mlx_dg.load("demo")


def one(replies: list[Reply]) -> Reply:
    [reply] = replies
    return reply


# --- the demo as this package runs it ---------------------------------------------------------------------


@pytest.mark.parametrize("thinking", [True, False])
def test_a_reply_is_what_generate_gives(runner: Runner, demo: Any, thinking: bool) -> None:
    settings = {"max_new_tokens": 192, "entropy_bound": 0.2}
    reply = one(runner(task("Count to 37.", thinking=thinking, settings=settings), 5))
    same = mlx_dg.generate(*demo, "Count to 37.", thinking=thinking, seed=5, **settings)
    assert reply.answer == same.answer == " ".join(map(str, range(1, 38)))
    assert reply.thought == same.thought
    assert bool(reply.thought) == thinking
    assert reply.blocks == tuple(block.answer for block in same)
    assert "".join(reply.blocks) == reply.answer
    assert len(reply.blocks) == 2
    assert (reply.finish_reason, reply.outcome, reply.error) == ("stop", "delivered", None)
    cost, stats = reply.cost, same.stats
    assert cost.blocks == stats.blocks == 2
    assert cost.denoising_steps == stats.denoising_steps == sum(block.denoising_steps for block in same)
    assert cost.new_tokens == stats.new_tokens == len(same.token_ids)
    assert cost.answer_tokens == stats.answer_tokens == 101
    assert 0 < cost.seconds < 60


def test_a_seed_decides_and_another_is_other_noise(runner: Runner) -> None:
    texts = [one(runner(task(UNSURE, settings=HASTY), seed)).thought for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]


def test_candidates(runner: Runner, demo: Any) -> None:
    replies = runner(task(UNSURE, settings=HASTY), 3, n=3)
    same = mlx_dg.generate(*demo, UNSURE, thinking=True, seed=3, n=3, **HASTY)
    assert [reply.answer for reply in replies] == [candidate.answer for candidate in same.candidates]
    assert [reply.thought for reply in replies] == [candidate.thought for candidate in same.candidates]
    assert len({(reply.answer, reply.thought) for reply in replies}) > 1


def test_a_thought_that_takes_everything_is_stuck(runner: Runner) -> None:
    reply = one(runner(task("What is 345 + 78?", settings={"max_new_tokens": 8}), 0))
    assert (reply.outcome, reply.finish_reason, reply.answer) == ("stuck", "length", "")
    assert reply.cost.answer_tokens == 0
    assert reply.cost.new_tokens == 8


def test_schemas_tools_and_messages(runner: Runner) -> None:
    reply = one(runner(task("JSON for Oslo", thinking=False, schema=CITIES), 0))
    assert json.loads(reply.answer) == [{"city": "Oslo", "country": "Norway"}]
    messages = ({"role": "user", "content": "What is the weather in Paris?"},)
    reply = one(runner(task(messages, tools=(tasks.tool("get_weather"),)), 0))
    assert reply.tool_calls == (("get_weather", {"city": "Paris"}),)
    assert (reply.outcome, reply.answer) == ("delivered", "")
    assert "no tool" in one(runner(task(messages), 0)).answer


def test_nothing_is_objected_to(runner: Runner) -> None:
    assert runner.objection(task("a", schema=CITIES, settings={"thinking_budget": 9})) is None


# --- failures ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prompt", "error"),
    [("caf\udce9", "not valid Unicode"), ("word " * 5000, "tokens")],
    ids=["text", "long"],
)
def test_a_prompt_that_cannot_be_run_is_a_reply(runner: Runner, prompt: str, error: str) -> None:
    replies = runner(task(prompt), 0, n=2)
    assert [reply.outcome for reply in replies] == ["error", "error"]
    assert all(error in str(reply.error) and "\n" not in str(reply.error) for reply in replies)


@pytest.mark.parametrize(
    ("more", "complaint"),
    [
        ({"settings": {"max_tokens": 9}}, "unknown setting 'max_tokens'"),
        ({"settings": {"entropy_bound": -1}}, "entropy_bound must be"),
        ({"schema": {"type": "nonsense"}}, "schema"),
        ({"schema": CITIES, "tools": (tasks.tool("get_time"),)}, "tools: a call is not what schema"),
    ],
)
@pytest.mark.parametrize("prompt", ["What is 1 + 1?", "caf\udce9"])
def test_a_suite_that_is_wrong_is_not_hidden(
    runner: Runner, more: dict[str, Any], complaint: str, prompt: str
) -> None:
    with pytest.raises(InputError, match=complaint):
        runner(task(prompt, **more), 0)


def test_a_model_of_nothing_but_nan_is_a_reply(monkeypatch: pytest.MonkeyPatch) -> None:
    broken: Any = choose("mlx_dg", "demo", None)
    model, _ = broken._loaded
    model.update(tree_map(lambda array: array * mx.nan, model.parameters()))
    replies = broken(task("What is 1 + 1?"), 0, n=2)
    assert [reply.outcome for reply in replies] == ["error", "error"]
    assert all("NaN" in str(reply.error) for reply in replies)


@pytest.mark.parametrize("error", [OSError, RuntimeError, KeyboardInterrupt, TypeError])
def test_other_failures_go_through(
    runner: Runner, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    runner(task("Hello"), 0)

    def fail(*_: Any, **__: Any) -> None:
        raise error("it broke")

    monkeypatch.setattr(native, "generate", fail)
    with pytest.raises(error, match="it broke"):
        runner(task("Hello"), 0)


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


def test_identity_is_json_that_tells_what_decides_answers(runner: Runner) -> None:
    identity = runner.identity()
    assert json.loads(json.dumps(identity)) == identity
    assert (identity["runner"], identity["model"]) == ("mlx_dg", "demo")
    assert identity["checkpoint"] == checkpoint.fingerprint(DEMO)
    assert identity["versions"]["mlx-diffusiongemma"] == mlx_dg.__version__
    assert {"mlx", "tokenizers"} < identity["versions"].keys()
    assert identity["device"].startswith(mx.default_device().type.name)
    on_cpu = mx.default_device().type == mx.DeviceType.cpu
    assert identity["dtype"] == ("float32" if on_cpu else "bfloat16")
    assert checkpoint.stored_dtypes(DEMO) == ["bfloat16"]


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    return Path(shutil.copytree(DEMO, tmp_path / "copy"))


def test_a_fingerprint_is_of_contents(copy: Path) -> None:
    same = checkpoint.fingerprint(copy)
    assert same == checkpoint.fingerprint(DEMO)
    assert len(same) == 64
    (copy / "README.md").write_text("another card")
    assert checkpoint.fingerprint(copy) == same


@pytest.mark.parametrize(
    "name",
    [
        *("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"),
        *("chat_template.jinja", "model.safetensors"),
    ],
)
def test_a_fingerprint_sees_each_file(copy: Path, name: str) -> None:
    seen = {checkpoint.fingerprint(copy)}
    file = copy / name
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    seen.add(checkpoint.fingerprint(copy))
    content[len(content) // 5] ^= 1
    file.write_bytes(content)
    seen.add(checkpoint.fingerprint(copy))
    file.write_bytes(content + b" ")
    seen.add(checkpoint.fingerprint(copy))
    if name != "model.safetensors":
        file.unlink()
        seen.add(checkpoint.fingerprint(copy))
        file.write_bytes(b"")
        seen.add(checkpoint.fingerprint(copy))
    assert len(seen) == (4 if name == "model.safetensors" else 6)


def test_a_fingerprint_sees_names_and_lengths(copy: Path) -> None:
    before = checkpoint.fingerprint(copy)
    (copy / "model.safetensors").rename(copy / "model-a.safetensors")
    assert checkpoint.fingerprint(copy) != before
    long = copy / "model-a.safetensors"
    long.write_bytes(b"a" * 2**22)
    whole = checkpoint.fingerprint(copy)
    long.write_bytes(b"a" * (2**22 + 1))  # both ends as before
    assert checkpoint.fingerprint(copy) != whole
    long.write_bytes(b"a" * 2**21 + b"b" + b"a" * (2**21 - 1))  # the price of being quick
    assert checkpoint.fingerprint(copy) == whole


# --- choosing ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "model", "endpoint", "complaint"),
    [
        ("ollama", "m", None, "runner 'ollama': there is none; choose from mlx_dg, mlx-vlm, endpoint"),
        ("mlx_dg", None, None, "no --model given"),
        ("mlx_dg", "", None, "no --model given"),
        ("mlx-vlm", None, None, "no --model given"),
        ("mlx_dg", "demo", "http://user:pw@host/v1", "--endpoint is for the runner endpoint, not for mlx_dg"),
        ("mlx-vlm", "demo", "http://host/v1", "--endpoint is for the runner endpoint, not for mlx-vlm"),
        ("endpoint", "m", None, "runner endpoint: no --endpoint given"),
        ("mlx_dg", "./nowhere", None, "no such directory"),
    ],
)
def test_choices_that_make_no_sense(
    name: str, model: str | None, endpoint: str | None, complaint: str
) -> None:
    with pytest.raises(InputError) as caught:
        choose(name, model, endpoint)
    assert complaint in str(caught.value)
    assert "pw" not in str(caught.value)


def test_a_directory_without_weights(copy: Path) -> None:
    (copy / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=str(copy)):
        choose("mlx_dg", str(copy), None)


def test_mlx_vlm_may_be_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "mlx_vlm"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "mlx_vlm", None)
    with pytest.raises(InputError, match=r"mlx-vlm cannot be imported .*; pip install mlx-vlm==0\.7\.10"):
        choose("mlx-vlm", "demo", None)


def test_choosing_loads_no_more_than_it_needs() -> None:
    program = """
import sys
from mlx_diffusiongemma.evaluation import runners
runners.choose("endpoint", "m", "http://localhost:1")
sys.exit(", ".join({"mlx", "transformers", "mlx_vlm"} & set(sys.modules)) or 0)
"""
    subprocess.run([sys.executable, "-c", program], check=True)
