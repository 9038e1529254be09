"""`Generation`: an answer that is written while the caller iterates it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from dataclasses import asdict
from types import SimpleNamespace
from typing import Any, Literal, NamedTuple

from .answer import Answer, Block
from .console.messages import count
from .engine.row import FinishReason
from .engine.settings import Settings
from .engine.state import Step
from .engine.stats import Stats
from .engine.trace import Trace
from .errors import GenerationError, InputError
from .text.channels import ToolCall
from .text.tokenizer import Tokenizer
from .writer import Writer


class Preview(NamedTuple):
    """Text of the committed blocks and of the current draft that follows them, without special tokens."""

    thought: str
    answer: str


class Generation:
    """An answer that is written while you iterate. Each `Block` arrives when its canvas is committed.

    `thought`, `answer`, `tool_calls`, `parsed`, `finish_reason`, `token_ids`, `to_dict()` and `str()` first
    run the generation to its end. `blocks`, `warnings`, `stats`, `trace`, `seed`, `candidate`, `prompt_ids`,
    `settings` and `tokenizer` return at once. Iterating again replays the blocks. `async for` also works, and
    runs steps in another thread.

    `close()` ends the generation with the blocks so far. The end of a `with` block does the same. An ended
    generation can be pickled. The copy has no tokenizer and no other candidates.

    A notebook runs the generation to its end and displays channels, statistics and, with a trace, canvases.
    For a failed generation it displays the blocks and the reason.

    candidates: generations that are denoised in the same steps, including this one. Running one runs all.
        Two `Generation` objects for the same answer are equal.
    warnings: problems that a reader should know about, in single blocks and in the whole answer.
    trace: the denoising steps, or None without `trace=True`.
    """

    def __init__(self, writer: Writer | None, answer: Answer, schema: Any = None):
        self._writer, self._answer, self._schema = writer, answer, schema

    @property
    def candidates(self) -> list[Generation]:
        # Created on each call: a stored list would be a reference cycle that keeps the model alive.
        answers = [self._answer] if self._writer is None else self._writer.answers
        return [
            self if answer is self._answer else Generation(self._writer, answer, self._schema)
            for answer in answers
        ]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Generation) and other._answer is self._answer

    def __hash__(self) -> int:
        return id(self._answer)

    @property
    def settings(self) -> Settings:
        return self._answer.row.settings

    @property
    def prompt_ids(self) -> list[int]:
        return list(self._answer.row.prompt.ids)

    @property
    def seed(self) -> int:
        return self._answer.row.key.seed

    @property
    def candidate(self) -> int:
        return self._answer.row.key.candidate

    @property
    def blocks(self) -> list[Block]:
        return self._answer.blocks

    @property
    def warnings(self) -> list[str]:
        return self._answer.warnings

    @property
    def stats(self) -> Stats:
        return self._answer.stats

    @property
    def trace(self) -> Trace | None:
        return self._answer.trace

    @property
    def tokenizer(self) -> Tokenizer | None:
        """The tokenizer, or None after unpickling."""
        return self._answer.tokenizer

    @property
    def state(self) -> Literal["not started", "running", "ended", "closed", "failed"]:
        """Progress of the generation. "closed" means that `close()` or an interrupt ended it early."""
        if self._answer.finish_reason is not None:
            return "ended"
        if self._writer is None:
            return "failed" if getattr(self._answer, "failed", False) else "closed"
        if self._writer.failure is not None:
            return "failed"
        if self._answer.row.closed:
            return "closed"
        if not self._writer.started:
            return "not started"
        return "closed" if self._writer.is_over else "running"

    def close(self) -> None:
        """End the generation with the blocks so far. Its other candidates continue.

        May be called from any thread. A canvas that is being denoised stops after its current step. A prompt
        cache keeps the encoded prompt, so the next generation for it needs no prefill.
        """
        if self._answer.finish_reason is None:
            self._answer.row.closed = True
        if self._writer is not None:
            self._writer.close()

    def __enter__(self) -> Generation:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __iter__(self) -> Iterator[Block]:
        index = 0
        while True:
            if index == len(self.blocks) and self.state not in ("ended", "closed"):
                if self._writer is None:
                    raise GenerationError(
                        "this generation failed before it was pickled; its blocks are in .blocks"
                    )
                self._writer.advance()
            if index == len(self.blocks):
                return
            yield self.blocks[index]
            index += 1

    async def __aiter__(self) -> AsyncIterator[Block]:
        blocks = iter(self)
        while True:
            try:
                block = await asyncio.to_thread(next, blocks, None)
            except asyncio.CancelledError:
                self.close()
                raise
            if block is None:
                return
            yield block

    @property
    def thought(self) -> str:
        return "".join(block.thought for block in self)

    @property
    def answer(self) -> str:
        return "".join(block.answer for block in self)

    @property
    def tool_calls(self) -> list[ToolCall]:
        return [call for block in self for call in block.tool_calls]

    @property
    def token_ids(self) -> list[int]:
        return [token for block in self for token in block.token_ids]

    @property
    def parsed(self) -> Any:
        """The answer as an object of the type passed as `schema`, or as plain values for a JSON Schema.

        Raises:
            InputError: the generation has no schema.
            GenerationError: the answer is incomplete, or the type's own validators reject it.
        """
        from .control.schema_types import parser_of

        if self._schema is None:
            raise InputError("parsed: the generation has no schema; pass schema= to generate")
        answer = self.answer
        if self.state != "ended":
            raise GenerationError(f"parsed: the generation is {self.state}, so its answer is not complete")
        return parser_of(self._schema)(answer)

    @property
    def finish_reason(self) -> FinishReason | None:
        """Reason for the end: "stop" (a stop id), "length" (max_new_tokens or timeout), None if closed."""
        list(self)
        return self._answer.finish_reason

    def preview(self, step: Step) -> Preview:
        """Return thought and answer as if the canvas of `step` were committed now.

        Use it to show text in `on_step`. The text ends before the stop id, and each step may change it.
        """
        number = self.candidates.index(self)
        if self._writer is None or number not in step.rows:  # its canvas is accepted and waits for other rows
            blocks = self.blocks
            return Preview("".join(b.thought for b in blocks), "".join(b.answer for b in blocks))
        delta = self._answer.preview(step.draft_ids[step.rows.index(number)])
        return Preview(delta.thought, delta.answer)

    def to_dict(self) -> dict[str, Any]:
        """Return texts, tool calls, ids, finish reason, seed, warnings and statistics, ready for JSON."""
        return {
            "answer": self.answer,
            "thought": self.thought,
            "tool_calls": [asdict(call) for call in self.tool_calls],
            "finish_reason": self.finish_reason,
            "seed": self.seed,
            "candidate": self.candidate,
            "warnings": list(self.warnings),
            "token_ids": self.token_ids,
            "stats": self.stats.to_dict(),
        }

    def to_json(self) -> str:
        """Return `to_dict()` as one line of JSON."""
        return json.dumps(self.to_dict(), ensure_ascii=False)

    def __reduce__(self) -> tuple[Any, ...]:
        if self.state in ("not started", "running"):
            raise GenerationError(
                f"a generation that is {self.state} cannot be pickled; run it to its end or close it first"
            )
        answer, row = self._answer, self._answer.row
        fields = {
            name: getattr(answer, name) for name in ("blocks", "warnings", "stats", "trace", "finish_reason")
        }
        written = {name: getattr(row, name) for name in ("settings", "prompt", "key", "closed")}
        failed = self.state == "failed"
        return _unpickled, (SimpleNamespace(**fields, tokenizer=None, failed=failed), written, self._schema)

    def __str__(self) -> str:
        return self.answer

    def __repr__(self) -> str:
        state, blocks = self.state, len(self.blocks)
        ended = f"ended ({self._answer.finish_reason})" if state == "ended" else state
        written = f"{count(blocks, 'block')}, {self.stats.new_tokens} tokens"
        return f"<Generation: {ended}, {written}, seed {self.seed}>"

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        """Return what a notebook displays. IPython itself applies `include` and `exclude`."""
        from .display.notebook import page, plain_text

        return {"text/plain": plain_text(self), "text/html": page(self)}


def _unpickled(answer: Any, written: dict[str, Any], schema: Any) -> Generation:
    answer.row = SimpleNamespace(**written)
    return Generation(None, answer, schema)
