"""The cost of a generation. In-step, gross and net throughput are separate, because they differ widely."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

CONTROL_EVENTS = (
    "empty_rerolls", "unconverged_rerolls", "stalled_stops",
    "forced_thought_ends", "grammar_walks", "grammar_repairs",
)  # fmt: skip


@dataclass
class Stats:
    """Counts and times of one generation so far, and its throughputs, which are 0 before the first block.

    Rows that share steps each count an equal share of the time, so the rows of a batch add up to the total.

    cached_tokens: prompt tokens that came from a prompt cache.
    new_tokens: tokens up to and including the stop id.
    answer_tokens: new tokens in the answer and in tool calls, without thoughts and delimiters.
    blocks: committed canvases.
    denoising_steps: decoder passes, including those of canvases that were denoised again.
    prefill_seconds: time to encode the prompt.
    denoising_seconds: time in denoising steps.
    seconds: total time.
    peak_memory_gb: MLX's peak since the generation started, including weights, in 10^9 bytes.
    empty_rerolls, unconverged_rerolls: canvases that a guard had denoised again with other noise.
    stalled_stops: canvases that the stalled guard ended.
    forced_thought_ends: thoughts that the budget closed.
    grammar_walks: canvases checked against a grammar.
    grammar_repairs: canvases that a grammar changed.
    """

    canvas_length: int
    prompt_tokens: int
    cached_tokens: int = 0
    new_tokens: int = 0
    answer_tokens: int = 0
    blocks: int = 0
    denoising_steps: int = 0
    prefill_seconds: float = 0.0
    denoising_seconds: float = 0.0
    seconds: float = 0.0
    peak_memory_gb: float = 0.0
    empty_rerolls: int = 0
    unconverged_rerolls: int = 0
    stalled_stops: int = 0
    forced_thought_ends: int = 0
    grammar_walks: int = 0
    grammar_repairs: int = 0

    @property
    def steps_per_block(self) -> float:
        return _ratio(self.denoising_steps, self.blocks)

    @property
    def tokens_per_forward(self) -> float:
        """New tokens per denoising step. The reference also counts tokens beyond max_new_tokens."""
        return _ratio(self.new_tokens, self.denoising_steps)

    @property
    def in_step_tokens_per_second(self) -> float:
        """Canvas length over seconds per step: the speed if each canvas took one step."""
        return _ratio(self.canvas_length * self.denoising_steps, self.denoising_seconds)

    @property
    def gross_tokens_per_second(self) -> float:
        """Committed canvas positions over total time, including padding after the stop id."""
        return _ratio(self.canvas_length * self.blocks, self.seconds)

    @property
    def net_tokens_per_second(self) -> float:
        """Answer tokens over total time: the speed that a reader experiences."""
        return _ratio(self.answer_tokens, self.seconds)

    @property
    def prefill_tokens_per_second(self) -> float:
        """Encoded prompt tokens, without cached ones, over the time to encode them."""
        return _ratio(self.prompt_tokens - self.cached_tokens, self.prefill_seconds)

    def to_dict(self) -> dict[str, Any]:
        """Return counts, times and throughputs, ready for JSON."""
        names = (
            "steps_per_block tokens_per_forward in_step_tokens_per_second gross_tokens_per_second "
            "net_tokens_per_second prefill_tokens_per_second"
        )
        return asdict(self) | {name: getattr(self, name) for name in names.split()}

    def __str__(self) -> str:
        return self.table()

    def table(self) -> str:
        """Return a few lines for people to read."""
        if not self.blocks:
            return "no block yet; iterate the generation or ask for its answer"
        events = {name.replace("_", " "): getattr(self, name) for name in CONTROL_EVENTS}
        controls = ", ".join(f"{count} {name}" for name, count in events.items() if count)
        cached = f", {self.cached_tokens} of them cached" if self.cached_tokens else ""
        return "\n".join(
            [
                f"prompt       {self.prompt_tokens} tokens{cached}, "
                f"{self.prefill_tokens_per_second:.1f} tokens/s",
                f"new tokens   {self.new_tokens}, {self.answer_tokens} in answer, {self.seconds:.2f} s",
                f"denoising    {self.blocks} blocks, {self.steps_per_block:.1f} steps per block, "
                f"{self.tokens_per_forward:.1f} tokens per forward",
                f"throughput   in-step {self.in_step_tokens_per_second:.1f}, "
                f"gross {self.gross_tokens_per_second:.1f}, net {self.net_tokens_per_second:.1f} tokens/s",
                f"peak memory  {self.peak_memory_gb:.3f} GB",
                *([f"controls     {controls}"] if controls else []),
            ]
        )


def _ratio(amount: float, per: float) -> float:
    return amount / per if per else 0.0
