"""Tasks, replies and grades, which suites, runners and graders share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

INSTALL = "pip install 'mlx-diffusiongemma[eval]'"
OUTCOMES = ("delivered", "stuck", "cut", "empty", "error")


@dataclass(frozen=True)
class Cost:
    """Cost of a reply. A number is None if the runner does not report it. new_tokens: tokens of thought,
    answer and stop id. answer_tokens: tokens of answer or tool call. blocks: number of committed canvases."""

    seconds: float
    new_tokens: int | None = None
    answer_tokens: int | None = None
    blocks: int | None = None
    denoising_steps: int | None = None


@dataclass(frozen=True)
class Reply:
    """A model's reply to the prompt of a task.

    finish_reason: "stop" if the reply ended by itself, "length" if max_new_tokens ended it. blocks: text that
    each canvas added to the answer, empty if the runner has no canvases. settings: settings in effect that
    differ from the task's. error: reason why no reply came, such as a prompt longer than the context.
    """

    answer: str
    thought: str = ""
    finish_reason: str = "stop"
    tool_calls: tuple[tuple[str, dict[str, Any]], ...] = ()
    blocks: tuple[str, ...] = ()
    cost: Cost = Cost(0.0)
    settings: dict[str, Any] = field(default_factory=dict)
    error: str | None = None

    @property
    def outcome(self) -> str:
        """One of OUTCOMES. A "stuck" reply ended inside its thought, a "cut" reply inside its answer."""
        if self.error is not None:
            return "error"
        if self.answer.strip() or self.tool_calls:
            return "delivered" if self.finish_reason == "stop" else "cut"
        return "stuck" if self.thought.strip() and self.finish_reason != "stop" else "empty"


@dataclass(frozen=True)
class Grade:
    """Result of a grader.

    strict: True if the answer is exactly as the task asks. lenient: True if it is right after a code fence
    around it and a full stop after it are removed. A strictly right answer is leniently right, too. reason:
    the mistake in a few words, empty if there is none. details: measurements of the answer, as JSON values.
    """

    strict: bool
    lenient: bool
    reason: str = ""
    details: dict[str, Any] = field(default_factory=dict)


Grader = Callable[[Reply], Grade]


@dataclass(frozen=True)
class Task:
    """One prompt of a suite and its grader.

    name: name that is unique in the suite. prompt: a question, or chat messages. group: name of its line in
    the table. settings: settings of the generation. schema: JSON Schema that constrains the answer. executes:
    True if the grader runs generated code, which needs the sandbox.
    """

    name: str
    prompt: str | tuple[dict[str, Any], ...]
    grade: Grader
    group: str = ""
    thinking: bool = True
    settings: dict[str, Any] = field(default_factory=dict)
    schema: dict[str, Any] | None = None
    tools: tuple[dict[str, Any], ...] = ()
    executes: bool = False

    @property
    def messages(self) -> list[dict[str, Any]]:
        if isinstance(self.prompt, str):
            return [{"role": "user", "content": self.prompt}]
        return list(self.prompt)
