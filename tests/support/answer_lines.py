"""Makes a line of an evaluation's file, for tests of tables and comparisons."""

from __future__ import annotations

from typing import Any


def line(task: str = "t", run: int = 0, **changes: Any) -> dict[str, Any]:
    """Return the line of a right answer with 20 answer tokens and 40 new tokens, apart from `changes`."""
    return {
        "task": task, "group": task, "run": run, "candidate": 0, "outcome": "delivered",
        "strict": True, "lenient": True, "reason": "", "details": {}, "answer": "\u2028 \ud800 \n",
        "seconds": 2.0, "new_tokens": 40, "answer_tokens": 20, "blocks": 2, "denoising_steps": 10,
        **changes,
    }  # fmt: skip
