"""mlx-vlm as a runner: what goes into it, what comes out, and that the demo answers as it does here."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx_vlm  # the parity tests fail without mlx-vlm; they never skip
import pytest
from mlx_vlm.generate import diffusion
from oracle import tiny
from support.spies import spied

from mlx_diffusiongemma.checkpoint.loading import resolve
from mlx_diffusiongemma.config.generation import GenerationConfig
from mlx_diffusiongemma.converter import convert
from mlx_diffusiongemma.demo import tasks
from mlx_diffusiongemma.errors import InputError
from mlx_diffusiongemma.evaluation.runners import Runner, choose
from mlx_diffusiongemma.evaluation.task import Grade, Reply, Task
from mlx_diffusiongemma.text.tokenizer import Tokenizer

CANVAS = 64


def task(prompt: Any, **more: Any) -> Task:
    return Task("a-task", prompt, lambda reply: Grade(True, True), **more)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(convert("demo", tmp_path_factory.mktemp("demo") / "float32", dtype="float32"))


@pytest.fixture(scope="module")
def theirs(directory: str) -> Runner:
    return choose("mlx-vlm", directory, None)


@pytest.fixture(scope="module")
def ours(directory: str) -> Runner:
    return choose("mlx_dg", directory, None)


def one(replies: list[Reply]) -> Reply:
    [reply] = replies
    return reply


def test_held_out_items_are_answered_as_they_are_here(theirs: Runner, ours: Runner) -> None:
    rng = random.Random(0)
    items = [
        tasks.draw(rng, family, held_out=True, thinking=thinking)
        for family in tasks.FAMILIES
        for thinking in (True, True, False, False)
    ]
    right = {theirs.name: 0, ours.name: 0}
    for index, item in enumerate(items):
        asked = task(item.messages, thinking=item.thinking, tools=tuple(item.declarations or ()))
        for runner in (theirs, ours):
            reply = one(runner(asked, index))
            right[runner.name] += (
                reply.outcome == "delivered"
                and tasks.is_right(item, reply.answer, list(reply.tool_calls))
                and bool(reply.thought.strip()) == item.thinking
            )
            check_cost(reply)
    # Each is right about nearly all; sampling differs, so a few may differ.
    assert min(right.values()) >= len(items) - 2, right


def check_cost(reply: Reply) -> None:
    cost = reply.cost
    assert cost.new_tokens is not None
    assert cost.answer_tokens is not None
    assert cost.denoising_steps is not None
    assert cost.blocks == len(reply.blocks) == -(-cost.new_tokens // CANVAS)
    assert cost.blocks <= cost.denoising_steps <= 48 * cost.blocks * 2  # twice where ours denoises again
    assert 0 < cost.answer_tokens < cost.new_tokens
    assert "".join(reply.blocks) == reply.answer
    assert 0 < cost.seconds < 60


def test_the_same_text_costs_the_same_tokens(theirs: Runner, ours: Runner) -> None:
    """Over two canvases, with a thought and with a tool call."""
    tools = (tasks.tool("get_weather"),)
    for asked in (task("Count to 37."), task("What is the weather in Paris?", tools=tools)):
        their, our = one(theirs(asked, 0)), one(ours(asked, 0))
        for name in ("answer", "thought", "tool_calls", "blocks", "finish_reason"):
            assert getattr(their, name) == getattr(our, name)
        assert their.cost.new_tokens == our.cost.new_tokens
        assert their.cost.answer_tokens == our.cost.answer_tokens
        assert our.finish_reason == "stop"


@pytest.mark.parametrize("thinking", [True, False])
def test_the_same_ids_go_in(
    theirs: Runner, directory: str, monkeypatch: pytest.MonkeyPatch, thinking: bool
) -> None:
    theirs(task("1 + 1"), 0)  # warmed up
    seen = spied(monkeypatch, diffusion, "stream_diffusion_generate")
    messages = ({"role": "system", "content": "Be brief."}, {"role": "user", "content": "Weather in Oslo?"})
    tool = tasks.tool("get_weather")
    theirs(task(messages, thinking=thinking, tools=(tool,)), 0)
    [(args, options, _)] = seen
    expected = Tokenizer.load(directory).prompt_ids(list(messages), thinking=thinking, tools=[tool])
    assert args[3].tolist() == [expected]
    assert options["diffusion_sampler"] == "entropy-bound"
    assert options["diffusion_full_canvas"] is True
    assert options["temperature"] == 1.0
    assert options["prefill_step_size"] == 2048


def test_settings_reach_mlx_vlm_and_do_not_stay(
    theirs: Runner, directory: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs(task("1 + 1"), 0)
    generated = spied(monkeypatch, diffusion, "stream_diffusion_generate")
    bounds = spied(monkeypatch, diffusion, "_diffusion_entropy_transfer_mask")
    schedules = spied(monkeypatch, diffusion, "_diffusion_linear_temperature")
    stops = spied(monkeypatch, diffusion, "_diffusion_stable_and_confident")

    def used() -> dict[str, Any]:
        [(_, options, _)] = generated
        schedule, stop = schedules[0].args, stops[0].args[3]
        values = {
            "max_new_tokens": options["max_tokens"],
            "max_denoising_steps": options["max_denoising_steps"],
            "prefill_step_size": options["prefill_step_size"],
            "entropy_bound": bounds[0].args[1],
            **schedule[2],
            **stop,
        }
        for seen in (generated, bounds, schedules, stops):
            seen.clear()
        return values

    changed = {"max_new_tokens": 70, "max_denoising_steps": 7, "prefill_step_size": 5, "entropy_bound": 0.3}
    changed |= {"t_min": 0.3, "t_max": 0.6, "stability_threshold": 2, "confidence_threshold": 0.001}
    theirs(task("Count to 54.", settings=changed), 0)
    assert used() == changed
    theirs(task("Count to 54.", settings=dict.fromkeys(changed)), 0)  # None: the checkpoint's
    stored = GenerationConfig.load(directory)
    assert used() == {name: getattr(stored, name) for name in changed} | {"max_new_tokens": 2048}


@pytest.mark.parametrize("most", [1, 63, 64, 65])
def test_max_new_tokens_cuts(theirs: Runner, most: int) -> None:
    reply = one(theirs(task("Count to 54.", thinking=False, settings={"max_new_tokens": most}), 0))
    assert (reply.finish_reason, reply.outcome) == ("length", "cut")
    assert reply.cost.new_tokens == most
    assert reply.cost.blocks == len(reply.blocks) == (2 if most == 65 else 1)
    whole = " ".join(str(number) for number in range(1, 55))
    assert whole.startswith(reply.answer)


def test_the_step_cap_is_counted(theirs: Runner) -> None:
    settings = {"max_denoising_steps": 1, "max_new_tokens": 128}
    cost = one(theirs(task("Count to 54.", thinking=False, settings=settings), 0)).cost
    assert cost.denoising_steps == cost.blocks


def test_a_thought_without_end_is_stuck(theirs: Runner) -> None:
    reply = one(theirs(task("What is 345 + 78?", settings={"max_new_tokens": 8}), 0))
    assert (reply.outcome, reply.answer, reply.cost.answer_tokens) == ("stuck", "", 0)
    assert reply.thought.startswith("ones")


def test_a_seed_decides(theirs: Runner) -> None:
    settings = {"max_denoising_steps": 2, "t_min": 1.0, "t_max": 1.0}
    unsure = task("Tell me 7 of 12 + and Rome backwards", settings=settings)
    texts = [(reply.answer, reply.thought) for seed in (1, 1, 2) for reply in theirs(unsure, seed)]
    assert texts[0] == texts[1]
    assert texts[0] != texts[2]


def test_one_untimed_warm_up_comes_first(directory: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = spied(monkeypatch, diffusion, "stream_diffusion_generate")
    runner = choose("mlx-vlm", directory, None)
    assert seen == []
    for seed in (0, 1):
        runner(task("1 + 1"), seed)
    tokenizer = Tokenizer.load(directory)
    prompts = [call.args[3].tolist()[0] for call in seen]
    asked = tokenizer.prompt_ids("1 + 1", thinking=True)
    assert prompts == [tokenizer.prompt_ids("Hello"), asked, asked]
    assert (seen[0].kwargs["max_tokens"], seen[0].kwargs["max_denoising_steps"]) == (1, 2)


def test_identity(theirs: Runner, ours: Runner, directory: str) -> None:
    identity = theirs.identity()
    assert json.loads(json.dumps(identity)) == identity
    assert (identity["runner"], identity["model"], identity["dtype"]) == ("mlx-vlm", directory, "float32")
    assert identity["checkpoint"] == ours.identity()["checkpoint"]
    assert identity["versions"]["mlx-vlm"] == mlx_vlm.__version__


# --- what it cannot do ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("more", "objection"), [
    ({"schema": {"type": "object"}}, "mlx-vlm cannot hold an answer to a schema"),
    ({"settings": {"thinking_budget": 5}}, "mlx-vlm has no setting thinking_budget"),
    (
        {"settings": {"guard_empty": True, "answer_reserve": 5, "max_new_tokens": 9}},
        "mlx-vlm has no setting answer_reserve, guard_empty",
    ),
    ({"settings": {"thinking_budget": None, "entropy_bound": 0.2}}, None),
])  # fmt: skip
def test_objections(theirs: Runner, more: dict[str, Any], objection: str | None) -> None:
    asked = task("1 + 1", **more)
    assert theirs.objection(asked) == objection
    if objection is None:
        assert one(theirs(asked, 0)).outcome == "delivered"
    else:
        with pytest.raises(InputError, match=f"^a-task: {objection}; choose another"):
            theirs(asked, 0)


def test_bad_prompts_are_replies_and_bad_tasks_are_not(theirs: Runner) -> None:
    reply = one(theirs(task("caf\udce9"), 0))
    assert reply.outcome == "error"
    assert "not valid Unicode" in str(reply.error)
    with pytest.raises(InputError, match="entropy_bound must be"):
        theirs(task("1 + 1", settings={"entropy_bound": -1}), 0)
    with pytest.raises(InputError, match="tool"):
        theirs(task("caf\udce9", tools=("nonsense",)), 0)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="n 2: runner mlx-vlm makes one candidate at a time"):
        theirs(task("1 + 1"), 0, n=2)


def test_weights_that_the_cpu_is_slow_with(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mx, "default_device", lambda: mx.Device(mx.cpu))
    with pytest.raises(
        InputError, match=r"demo has weights in bfloat16.* mlx_dg convert demo --dtype float32"
    ):
        choose("mlx-vlm", "demo", None)
    monkeypatch.setattr(mx, "default_device", lambda: mx.Device(mx.gpu))
    assert choose("mlx-vlm", "demo", None).identity()["dtype"] == "bfloat16"


def test_what_mlx_vlm_cannot_load(tmp_path: Path) -> None:
    """It knows one of the two dialects of config.json."""
    tiny.build(tiny.ROUGH, tmp_path, "transformers", vocab=704)
    for pattern in ("tokenizer*", "chat_template*"):
        for file in resolve("demo").glob(pattern):
            shutil.copy(file, tmp_path)
    runner = choose("mlx-vlm", str(tmp_path), None)
    with pytest.raises(
        InputError, match=r"mlx-vlm cannot load it \(.*shape.*\); try --runner mlx_dg"
    ) as caught:
        runner(task("1 + 1"), 0)
    assert "\n" not in str(caught.value)
