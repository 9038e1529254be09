"""Helpers for tests of channels and tool calls, which feed ids to a parser at once or in pieces."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import settings

from mlx_diffusiongemma.text.channels import ChannelDelta, ChannelParser, ToolCall
from mlx_diffusiongemma.text.tokenizer import Tokenizer

settings.register_profile("channels", deadline=None, database=None, derandomize=True, max_examples=100)
property_test = settings.get_profile("channels")

THOUGHT = "<|channel>thought\n"


def parse(tokenizer: Tokenizer, ids: list[int], cuts: list[int] | None = None) -> ChannelDelta:
    """Feed `ids` to a parser in pieces that are separated at `cuts`. Return the sum of all deltas."""
    parser = ChannelParser(tokenizer)
    bounds = [0, *sorted(cuts or []), len(ids)]
    deltas = [parser.feed(ids[start:end]) for start, end in pairwise(bounds)] + [parser.finish()]
    assert parser.finish() == ChannelDelta()
    return sum(deltas, start=ChannelDelta())


def parse_all_ways(tokenizer: Tokenizer, ids: list[int]) -> ChannelDelta:
    """Feed ids at once, one by one and in pairs. Assert equal results, and return the delta."""
    whole = parse(tokenizer, ids)
    assert parse(tokenizer, ids, list(range(len(ids)))) == whole
    assert parse(tokenizer, ids, list(range(1, len(ids), 2))) == whole
    return whole


def contents(delta: ChannelDelta) -> tuple[str, str, list[ToolCall]]:
    return delta.thought, delta.answer, list(delta.tool_calls)
