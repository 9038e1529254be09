"""Structural tokens of the model, by their spellings."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any


def _spelled(text: str) -> Any:
    return field(default=None, metadata={"spelling": text})


@dataclass(frozen=True)
class SpecialTokens:
    """Ids of structural tokens, which have these spellings. None if the vocabulary lacks the token."""

    bos: int | None = _spelled("<bos>")
    eos: int | None = _spelled("<eos>")  # the configured eos_token may differ: it may end a turn
    pad: int | None = _spelled("<pad>")
    unk: int | None = _spelled("<unk>")
    mask: int | None = _spelled("<mask>")
    turn_open: int | None = _spelled("<|turn>")
    turn_close: int | None = _spelled("<turn|>")
    channel_open: int | None = _spelled("<|channel>")
    channel_close: int | None = _spelled("<channel|>")
    think: int | None = _spelled("<|think|>")
    tool_open: int | None = _spelled("<|tool>")
    tool_close: int | None = _spelled("<tool|>")
    tool_call_open: int | None = _spelled("<|tool_call>")
    tool_call_close: int | None = _spelled("<tool_call|>")
    tool_response_open: int | None = _spelled("<|tool_response>")
    tool_response_close: int | None = _spelled("<tool_response|>")
    quote: int | None = _spelled('<|"|>')
    image_open: int | None = _spelled("<|image>")
    image: int | None = _spelled("<|image|>")
    image_close: int | None = _spelled("<image|>")

    @classmethod
    def in_vocabulary(cls, vocabulary: Mapping[str, int]) -> "SpecialTokens":
        return cls(**{token.name: vocabulary.get(token.metadata["spelling"]) for token in fields(cls)})

    def ids(self) -> set[int]:
        """Return all ids that are not None."""
        return {getattr(self, token.name) for token in fields(self)} - {None}
