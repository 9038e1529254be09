"""A task, what came back for it, and what that is worth: what suites, runners and graders share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

OUTCOMES = ("delivered", "stuck", "cut", "empty", "error")


@dataclass(frozen=True)
class Cost:
    """What a reply took; None: its runner does not tell.

    seconds: from the prompt to the last token, prefill included. new_tokens: thought, answer and stop id.
    answer_tokens: those that reached the reader as answer or tool call. blocks: committed canvases.
    denoising_steps: decoder passes.
    """

    seconds: float
    new_tokens: int | None = None
    answer_tokens: int | None = None
    blocks: int | None = None
    denoising_steps: int | None = None


@dataclass(frozen=True)
class Reply:
    """What a model made of a task's prompt.

    finish_reason: "stop" when it ended by itself, "length" when max_new_tokens ended it. tool_calls: (name,
    arguments). blocks: what each canvas added to the answer; empty when the runner knows of no canvases.
    settings: what it ran with, instead of or beyond what the task asks for. error: why there is nothing to
    grade, such as a prompt beyond the context.
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
        """One of OUTCOMES: delivered; stuck, ended inside the thought; cut, inside the answer; empty, said
        nothing; error."""
        if self.error is not None:
            return "error"
        if self.answer.strip() or self.tool_calls:
            return "delivered" if self.finish_reason == "stop" else "cut"
        return "stuck" if self.thought.strip() and self.finish_reason != "stop" else "empty"


@dataclass(frozen=True)
class Grade:
    """strict: right to the letter of the task. lenient: right, but wrapped in what was not asked for, such as
    a fence or a sentence (what is strictly right is leniently right, too). reason: what is wrong, in a few
    words; empty when nothing is. details: measurements of the answer, ready for JSON."""

    strict: bool
    lenient: bool
    reason: str = ""
    details: dict[str, Any] = field(default_factory=dict)


Grader = Callable[[Reply], Grade]


@dataclass(frozen=True)
class Task:
    """One prompt of a suite and its grader.

    name: unique in its suite. prompt: a question, or chat messages. group: its line in the table (its own by
    default). settings: of the generation, such as max_new_tokens. schema: the answer is held to it.
    executes: the grader runs generated code, so the sandbox has to hold.
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
