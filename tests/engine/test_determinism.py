"""Same shapes, device and version of MLX: the same tokens for a seed, however they come about."""

from __future__ import annotations

from typing import Any

import pytest

from mlx_diffusiongemma.engine.prompt_cache import PromptCache
from mlx_diffusiongemma.generation import Generation, generate, generate_batch

pytestmark = pytest.mark.slow

PROMPTS = ("What is 99 + 88?", "Count to 54.", "Tell me something about the sea, 12 + 7 and Rome in JSON")


def tokens(generation: Generation) -> tuple[list[int], list[int]]:
    return generation.token_ids, [block.denoising_steps for block in generation]


@pytest.mark.parametrize(
    ("prompt", "thinking"), [(prompt, index % 2 == 0) for index, prompt in enumerate(PROMPTS)]
)
def test_a_seed_decides_the_tokens_and_nothing_else_does(demo: Any, prompt: str, thinking: bool) -> None:
    asked: dict[str, Any] = {"thinking": thinking, "seed": 11, "max_new_tokens": 192}
    expected = tokens(generate(*demo, prompt, **asked))

    def watch(step: Any) -> None:
        pass

    def run(**more: Any) -> tuple[list[int], list[int]]:
        return tokens(generate(*demo, prompt, **asked, **more))

    assert run() == expected
    assert run(on_step=watch) == expected
    for chunk in (1, 7):
        assert run(prefill_step_size=chunk) == expected
    assert run(n=2) == expected
    assert run(prompt_cache=PromptCache(demo[0])) == expected
    assert run(guard_empty=False, guard_unconverged=False) == expected
    assert run(thinking_budget=192, answer_reserve=1) == expected
    batch = generate_batch(*demo, [*PROMPTS, prompt, "Hello"], **asked)
    assert tokens(batch[len(PROMPTS)]) == expected


def test_another_seed_is_other_noise(demo: Any) -> None:
    canvases = []
    for seed in (1, 1, 2):
        steps: list[Any] = []
        str(generate(*demo, PROMPTS[0], seed=seed, on_step=steps.append))
        canvases.append([step.canvas_ids.tobytes() for step in steps])
    assert canvases[0] == canvases[1]
    assert canvases[0] != canvases[2]
