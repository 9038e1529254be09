"""Keeps what was encoded from one generation to the next: a chat's next turn encodes only what is new."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

from ..cache import PrefixCache, Windows
from ..errors import GenerationError
from ..prompt import Prompt, chunk_end

if TYPE_CHECKING:
    from ..model.network import Network

# A template may write the last few tokens of a prompt (the model's turn, an empty thought) otherwise once the
# answer follows. The windows of sliding layers are remembered that many tokens before a prompt's end.
_REWRITTEN = 32


class _Snapshot(NamedTuple):
    offset: int
    windows: Windows


class PromptCache:
    """The prefix cache of a conversation; give it to every `generate` as `prompt_cache=`.

    `token_ids` are those that are encoded. A prompt that goes on from them is encoded from there. One that
    differs at some token makes the cache go back to before it: full-attention layers forget the rest;
    windows of sliding layers cannot go back once tokens have left them, so they are restored from a
    snapshot near the end of the last prompt (it holds as much memory as the windows do), or else all is
    encoded again. One generation at a time may use it.
    """

    prompt: Prompt
    prefix: PrefixCache
    _snapshot: _Snapshot | None

    def __init__(self, model: Network):
        self.model = model
        self.clear()

    def clear(self) -> None:
        """Forgets everything; a generation that uses it cannot go on."""
        self._user: object = None
        self._reset()

    @property
    def token_ids(self) -> list[int]:
        return list(self.prompt.ids)

    @property
    def nbytes(self) -> int:
        """Bytes of keys and values held, the snapshot included."""
        windows = self._snapshot.windows if self._snapshot is not None else []
        return self.prefix.nbytes + sum(array.nbytes for pair in windows for array in pair)

    def acquire(self) -> object:
        """Makes the caller the only one who may use it, until the next one asks; returns a ticket."""
        self._user = object()
        return self._user

    def check(self, ticket: object) -> None:
        """Raises `GenerationError` unless `ticket` is that of the last `acquire`."""
        if self._user is not ticket:
            raise GenerationError(
                "this generation's prompt_cache was cleared or taken by another generation; "
                "let one end before the next, or give each its own"
            )

    def go_to(self, prompt: Prompt, positions: int = 0) -> int:
        """Go back to the common beginning with `prompt`, in ids and images. Return its length.

        positions: number of positions in the end, including the last canvas.
        """
        with self._changing():
            self._go_back(self.prompt.common_length(prompt))
            self.prefix.reserved = positions
        return self.prefix.offset

    def encode_prompt(self, prompt: Prompt, chunk_size: int, positions: int = 0) -> int:
        """Encode `prompt` in place of what differs from it. Return how much of it was encoded before."""
        reused = self.go_to(prompt, positions)
        for _ in self.encode_rest(prompt, chunk_size):
            pass
        return reused

    def encode_rest(self, prompt: Prompt, chunk_size: int) -> Iterator[int]:
        """Encode the rest of `prompt`, which begins with what is encoded.

        Yields the number of positions done after each chunk. Ending it between two chunks keeps them. No
        chunk and no snapshot cuts an image.
        """
        snapshot_at = prompt.border(max(0, len(prompt) - _REWRITTEN))
        while (start := self.prefix.offset) < len(prompt):
            end = snapshot_at if start < snapshot_at else len(prompt)
            end = chunk_end(start, end, chunk_size, prompt.spans)
            self.encode(prompt.part(start, end), chunk_size)
            if end == snapshot_at:
                self._snapshot = _Snapshot(end, self.prefix.windows)
            yield end

    def encode(self, prompt: Prompt, chunk_size: int) -> None:
        """Append `prompt` to what is encoded."""
        with self._changing():
            self.model.encode(prompt, self.prefix, chunk_size)
            self.prompt += prompt

    @contextmanager
    def _changing(self) -> Iterator[None]:
        try:
            yield
        except BaseException:  # an interrupt, say: nobody knows which layers hold what
            self._reset()
            raise

    def _reset(self) -> None:
        self.prefix, self.prompt, self._snapshot = self.model.make_cache(), Prompt(()), None

    def _go_back(self, length: int) -> None:
        """Keeps at most the first `length` tokens."""
        if self._snapshot is not None and self._snapshot.offset > length:
            self._snapshot = None
        if length == self.prefix.offset:
            return
        if self.prefix.is_trimmable():
            self.prefix.trim(self.prefix.offset - length)
        elif self._snapshot is not None:
            self.prefix.restore(*self._snapshot)
        else:
            self._reset()
        self.prompt = self.prompt.part(0, self.prefix.offset)
