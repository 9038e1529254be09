"""Sorts token ids into thought, answer and tool calls, as blocks of ids arrive.

The model writes `<|channel>thought\\n...<channel|>answer<turn|>`, and tool calls between `<|tool_call>`
and `<tool_call|>`. The delimiters are single tokens, and the parser looks at ids. A delimiter at the edge of
a block, or text that only spells one, therefore needs no special care. Structure that the model writes by
mistake (an empty thought, a second `<|turn>model\\n`, a `<channel|>` without an open channel) does not appear
in the text.
"""

import codecs
import copy
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Literal

from .tokenizer import Tokenizer
from .tool_calls import ToolCall, parse_tool_calls

__all__ = ["ChannelDelta", "ChannelParser", "TextStream", "ToolCall"]

# The header after `<|channel>` or `<|turn>`: a name alone on its line. It is matched anew with each id, so
# its length is bounded.
_HEADER = re.compile(r"[ \t]{0,64}([\w.-]{0,32})[ \t]{0,64}\n", re.ASCII)
_HEADER_SO_FAR = re.compile(r"[ \t]{0,64}[\w.-]{0,32}[ \t]{0,64}", re.ASCII)

Channel = Literal["thought", "answer"]


@dataclass(frozen=True)
class ChannelDelta:
    """Text and tool calls that one `feed` adds to each channel. `a + b` joins two deltas in their order.

    answer_tokens: number of ids in the answer and in tool calls, without delimiters and headers.
    thought_tokens: number of ids in the thought, without delimiters and headers.
    """

    thought: str = ""
    answer: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    answer_tokens: int = 0
    thought_tokens: int = 0

    def __add__(self, other: "ChannelDelta") -> "ChannelDelta":
        return ChannelDelta(
            self.thought + other.thought,
            self.answer + other.answer,
            self.tool_calls + other.tool_calls,
            self.answer_tokens + other.answer_tokens,
            self.thought_tokens + other.thought_tokens,
        )


class TextStream:
    """Decodes the ids of one text piece by piece. Joined, the pieces are the decoding of all ids at once.

    A character that several byte tokens spell is held back until it is complete, also across feeds. Invalid
    bytes become U+FFFD, as in `bytes.decode(errors="replace")`. The time is linear in the number of ids,
    however many pieces they come in.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        # The last id so far, if any. Decoders treat the beginning of a text differently.
        self._context: list[int] = []

    def feed(self, ids: Iterable[int]) -> str:
        """Return the new text after `ids`, without a character at its end that is still incomplete."""
        byte_values = self._tokenizer.byte_values
        parts: list[str] = []
        for are_bytes, group in groupby(ids, key=byte_values.__contains__):
            run = list(group)
            if are_bytes:
                parts.append(self._utf8.decode(bytes(byte_values[token] for token in run)))
            else:
                known = len(self._tokenizer.decode(self._context))
                parts += [self.finish(), self._tokenizer.decode(self._context + run)[known:]]
            self._context = run[-1:]
        return "".join(parts)

    def finish(self) -> str:
        """Return U+FFFD for a character that is still incomplete, otherwise ""."""
        return self._utf8.decode(b"", final=True)

    def restart(self) -> None:
        """Decode the next ids as the beginning of a text, unless they complete a character."""
        if not self._utf8.getstate()[0]:
            self._context = []


class _Section:
    """A section of one channel. If `headed`, it begins with a header line that names the channel."""

    def __init__(self, tokenizer: Tokenizer, channel: Channel, *, headed: bool = False) -> None:
        self.channel = channel
        self._stream = TextStream(tokenizer)
        self.in_header = headed
        self.header = ""  # text of the header so far
        self._prompted = 0  # number of the header's characters that are in the prompt
        self._header_ids = 0
        self._has_text = False
        self._blank: list[str] = []  # white space at the beginning of a thought

    def feed(self, ids: list[int]) -> tuple[str, int]:
        """Return the new text after `ids`, and the number of new ids that are text, not header."""
        text, count = self._text_of(ids)
        return self._unless_blank(text), count

    def _text_of(self, ids: list[int]) -> tuple[str, int]:
        text, used = "", 0
        while self.in_header and used < len(ids):  # one by one, to find where the header ends
            self._header_ids += 1
            text = self._after_header(self._stream.feed(ids[used : used + 1]))
            used += 1
        if self.in_header:
            return "", 0
        count, self._header_ids = self._header_ids, 0  # not 0 if the supposed header was text
        rest = ids[used:]
        return text + self._stream.feed(rest), count + len(rest)

    def finish(self) -> str:
        """Return the rest of the text. Drop an incomplete header, and a thought of only white space."""
        return self._unless_blank(self._after_header(self._stream.finish()))

    def restart(self) -> None:
        """From now on, count and return only text that comes after this call."""
        self._prompted, self._header_ids = len(self.header), 0
        if not self.in_header:
            self._stream.restart()

    def _unless_blank(self, text: str) -> str:
        """Return `text`. White space at the beginning of a thought is held back until other text follows."""
        if self.channel != "thought" or self._has_text:
            return text
        self._blank.append(text)
        self._has_text = bool(text.strip())
        return "".join(self._blank) if self._has_text else ""

    def _after_header(self, text: str) -> str:
        if not self.in_header:
            return text
        self.header += text
        header = _HEADER.match(self.header)
        if header is None and _HEADER_SO_FAR.fullmatch(self.header):
            return ""
        self.in_header = False
        if header is None:  # a channel without a header: everything is text
            return self.header[self._prompted :]
        if header[1] not in ("", "thought"):
            self.channel = "answer"
        self._header_ids = 0
        return self.header[header.end() :]


class ChannelParser:
    """Sorts the ids of one answer into channels.

    `feed` takes the ids in any pieces. The text of a channel does not depend on how they are divided. Special
    tokens never appear in the text, so a stop id or padding is harmless. Everything after the end of the turn
    (`<turn|>`, `<eos>`) or after `<|tool_response>`, which the model must not write, is ignored.

    prompt_ids: ids that the answer continues. The parser starts in the state after them: this may be inside a
        thought that a template opened, inside its header, or inside a tool call. Their text is not returned.
    """

    def __init__(self, tokenizer: Tokenizer, prompt_ids: Sequence[int] = ()) -> None:
        self._tokenizer = tokenizer
        self._special = tokenizer.special
        special = self._special
        # Each of these ends an open tool call. Others are ignored, except the quote inside a tool call.
        self._structure = {
            special.channel_open,
            special.channel_close,
            special.tool_call_open,
            special.tool_call_close,
            special.tool_response_open,
            special.tool_response_close,
            special.turn_open,
            special.turn_close,
            special.eos,
        }
        self._ends = {special.turn_close, special.eos, special.tool_response_open}
        self._answer = _Section(tokenizer, "answer")
        self._section = self._answer
        self._call: list[int] | None = None  # ids of the tool call that is open
        self._texts: dict[Channel, list[str]] = {"thought": [], "answer": []}
        self._calls: list[ToolCall] = []
        self._answer_tokens = 0
        self._thought_tokens = 0
        self._ended = False
        self._read_prompt(prompt_ids)

    def _read_prompt(self, ids: Sequence[int]) -> None:
        """Enter the state at the end of `ids`."""
        special = self._special
        before = {special.turn_close, special.eos, special.tool_response_open, special.tool_response_close}
        last = next((at for at in reversed(range(len(ids))) if int(ids[at]) in self._structure), None)
        if last is None:
            return
        # A turn begins with the answer, and a tool's response is followed by the answer.
        resets = before | {special.turn_open}
        start = next((at for at in range(last, -1, -1) if int(ids[at]) in resets), 0)
        self.feed(ids[start + (int(ids[start]) in before) :])
        self._section.restart()
        self._answer.restart()

    def copy(self) -> "ChannelParser":
        """Return an independent parser in the same state."""
        return copy.deepcopy(self, {id(self._tokenizer): self._tokenizer})

    @property
    def in_header(self) -> bool:
        """True inside the header of a channel."""
        return self._section.in_header

    @property
    def header(self) -> str:
        """Text of the header so far."""
        return self._section.header

    @property
    def in_call(self) -> bool:
        """True inside a tool call."""
        return self._call is not None

    @property
    def in_thought(self) -> bool:
        """True if the next ids belong to the thought or its header."""
        return self._section.channel == "thought"

    def feed(self, ids: Iterable[int]) -> ChannelDelta:
        """Return the text and calls that `ids` add to each channel."""
        for is_special, group in groupby(map(int, ids), key=self._tokenizer.hidden_ids.__contains__):
            if is_special:
                for token in group:
                    self._control(token)
            else:
                self._text(list(group))
        return self._take()

    def finish(self) -> ChannelDelta:
        """Return what is left: incomplete characters as U+FFFD, and a tool call that was not closed."""
        self._end_call(closed=False)
        for section in (self._section, self._answer):
            self._add(section, section.finish())
        return self._take()

    def _text(self, ids: list[int]) -> None:
        if self._ended:
            return
        if self._call is not None:
            self._call += ids
            self._answer_tokens += len(ids)
            return
        text, count = self._section.feed(ids)
        self._add(self._section, text)
        if self._section.channel == "answer":
            self._answer_tokens += count
        else:
            self._thought_tokens += count

    def _control(self, token: int) -> None:
        if token == self._special.quote and self._call is not None:
            self._call.append(token)
        if token not in self._structure or self._ended:
            return
        self._end_call(closed=token == self._special.tool_call_close)
        self._ended = token in self._ends
        if token == self._special.tool_call_open:
            self._call = []
        elif token == self._special.channel_open:
            self._enter(_Section(self._tokenizer, "thought", headed=True))
        elif token == self._special.channel_close:
            self._enter(self._answer)
        elif token == self._special.turn_open:
            self._enter(self._answer)
            self._add(self._answer, self._answer.finish())
            self._section = self._answer = _Section(self._tokenizer, "answer", headed=True)

    def _enter(self, section: _Section) -> None:
        """Continue in `section`. The answer may be entered again, so only other sections end here."""
        if self._section is not self._answer:
            self._add(self._section, self._section.finish())
        self._section = section

    def _end_call(self, *, closed: bool) -> None:
        if self._call is not None:
            stream = TextStream(self._tokenizer)
            self._calls += parse_tool_calls(stream.feed(self._call) + stream.finish(), closed=closed)
            self._call = None

    def _add(self, section: _Section, text: str) -> None:
        self._texts[section.channel].append(text)

    def _take(self) -> ChannelDelta:
        """Return the collected delta, and start a new one."""
        texts, calls = self._texts, tuple(self._calls)
        tokens = self._answer_tokens, self._thought_tokens
        self._texts, self._calls = {"thought": [], "answer": []}, []
        self._answer_tokens = self._thought_tokens = 0
        return ChannelDelta("".join(texts["thought"]), "".join(texts["answer"]), calls, *tokens)
