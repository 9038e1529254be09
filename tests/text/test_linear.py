"""Parsers are linear in the length of their text. The characters that patterns look at are counted."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
from support.fixtures_tokenizer import write_tokenizer

from mlx_diffusiongemma.text import channels, tool_calls
from mlx_diffusiongemma.text.channels import ChannelParser
from mlx_diffusiongemma.text.tokenizer import Tokenizer

REACH = re.compile(r"[\s,;]*(?:call\s*:\s*)?[\w.:/-]*")  # as far as a failed match may have looked


class Counting:
    """A pattern that adds the characters it looks at to `seen`."""

    seen = 0

    def __init__(self, pattern: re.Pattern[str]):
        self._pattern = pattern

    def _count(self, text: str, at: int, match: re.Match[str] | None) -> Any:
        reach = match or REACH.match(text, at)
        assert reach is not None
        Counting.seen += reach.end() - at + 1
        return match

    def match(self, text: str, at: int = 0) -> Any:
        return self._count(text, at, self._pattern.match(text, at))

    def fullmatch(self, text: str) -> Any:
        return self._count(text, 0, self._pattern.fullmatch(text))

    def finditer(self, text: str, at: int = 0) -> Any:
        for match in self._pattern.finditer(text, at):
            yield self._count(text, at, match)
            at = match.end()
        Counting.seen += len(text) - at


@pytest.fixture(autouse=True)
def counted(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (channels, tool_calls):
        for name, value in list(vars(module).items()):
            if isinstance(value, re.Pattern):
                monkeypatch.setattr(module, name, Counting(value))


def work(task: Callable[[int], object], size: int) -> int:
    Counting.seen = 0
    task(size)
    return Counting.seen


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer.load(write_tokenizer(tmp_path_factory.mktemp("tokenizer")))


@pytest.mark.parametrize("text", [" ", "a", "\n"])
@pytest.mark.parametrize("opening", ["<|channel>", "<|turn>"])
def test_channels(text: str, opening: str, tokenizer: Tokenizer) -> None:
    def task(size: int) -> None:
        parser = ChannelParser(tokenizer)
        for token in [*tokenizer.encode(opening), *tokenizer.encode(text) * size]:
            parser.feed([token])
        parser.finish()

    assert work(task, 1000) <= 2.1 * work(task, 500) + 100


@pytest.mark.parametrize(("before", "repeated"), [
    ('f{a:"', '\\"'), ("", '\\"'), ("", '""'), ("", "'"), ("", "{"), ("", "}"), ("f{", ","), ("f{}", " "),
    ("f{}", "a."), ("f{}", " call"), ("", "call:f{}"), ("f{}", "call:"), ("f{a:[", "1 "), ("f{a:", "{a:"),
    ("f{}", ";"), ("f{}", "} call "), ("f", '<|"|>'), ("f{a:[", '"x" '), ("", "}a"),
])  # fmt: skip
def test_tool_calls(before: str, repeated: str) -> None:
    def task(size: int) -> None:
        tool_calls.parse_tool_calls(before + repeated * size)

    assert work(task, 1000) <= 2.1 * work(task, 500) + 100
