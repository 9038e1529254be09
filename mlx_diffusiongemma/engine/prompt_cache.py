"""A prefix cache that outlives a generation, so that a chat's next turn encodes only its new tokens."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

from ..cache import PrefixCache, Windows
from ..errors import GenerationError
from ..prompt import Prompt, chunk_end

if TYPE_CHECKING:
    from ..model.network import Network

# Once an answer follows, a template may write the last few tokens of the prompt differently (the header of
# the model's turn, an empty thought). The snapshot is taken this many tokens before the prompt's end.
_REWRITTEN = 32


class _Snapshot(NamedTuple):
    offset: int
    windows: Windows


class PromptCache:
    """The prefix cache of a conversation. Pass it to every `generate` as `prompt_cache=`.

    A prompt that continues the encoded `token_ids` is encoded from their end. For a prompt that differs, the
    cache goes back to the first difference. Layers with full attention drop what follows it. The window of a
    sliding layer cannot go back once it has lost tokens, so it is restored from a snapshot near the end of
    the last prompt. The snapshot takes as much memory as the windows. If the difference is before the
    snapshot, everything is encoded again.

    Only one generation at a time may use a prompt cache.
    """

    prompt: Prompt
    prefix: PrefixCache
    _snapshot: _Snapshot | None

    def __init__(self, model: Network):
        self.model = model
        self.clear()

    def clear(self) -> None:
        """Forget everything. A generation that uses the cache cannot continue."""
        self._user: object = None
        self._reset()

    @property
    def token_ids(self) -> list[int]:
        return list(self.prompt.ids)

    @property
    def nbytes(self) -> int:
        """Bytes of keys and values, including the snapshot."""
        windows = self._snapshot.windows if self._snapshot is not None else []
        return self.prefix.nbytes + sum(array.nbytes for pair in windows for array in pair)

    def acquire(self) -> object:
        """Return a ticket that makes the caller the only user, until the next call of `acquire`."""
        self._user = object()
        return self._user

    def check(self, ticket: object) -> None:
        """Raise `GenerationError` unless `ticket` comes from the last `acquire`."""
        if self._user is not ticket:
            raise GenerationError(
                "this generation's prompt_cache was cleared or taken by another generation; "
                "let one end before the next, or give each its own"
            )

    def go_to(self, prompt: Prompt, positions: int = 0) -> int:
        """Go back to the beginning that the cache shares with `prompt`, or to a snapshot before its end.

        Return the number of positions that remain encoded.

        positions: number of positions that the generation will need, including its last canvas.
        """
        with self._changing():
            self._go_back(self.prompt.common_length(prompt))
            self.prefix.reserved = positions
        return self.prefix.offset

    def encode_prompt(self, prompt: Prompt, chunk_size: int, positions: int = 0) -> int:
        """Encode `prompt`, and return the number of its positions that the cache already had."""
        reused = self.go_to(prompt, positions)
        for _ in self.encode_rest(prompt, chunk_size):
            pass
        return reused

    def encode_rest(self, prompt: Prompt, chunk_size: int) -> Iterator[int]:
        """Encode the rest of `prompt`, after the beginning that is encoded already.

        Yields the number of encoded positions after each chunk. Closing the generator between two chunks
        keeps what is encoded. Neither a chunk nor a snapshot cuts an image.
        """
        wanted = max(0, len(prompt) - _REWRITTEN)
        # An image is not written differently later, so the snapshot may be taken right after it.
        cut = next((end for start, end in prompt.spans if start < wanted < end < len(prompt)), wanted)
        snapshot_at = prompt.border(cut)
        while (start := self.prefix.offset) < len(prompt):
            end = snapshot_at if start < snapshot_at else len(prompt)
            end = chunk_end(start, end, chunk_size, prompt.spans)
            self.encode(prompt.part(start, end), chunk_size)
            if end == snapshot_at:
                self._snapshot = _Snapshot(end, self.prefix.windows)
            yield end

    def encode(self, prompt: Prompt, chunk_size: int) -> None:
        """Encode `prompt` after the tokens that are encoded already."""
        with self._changing():
            self.model.encode(prompt, self.prefix, chunk_size)
            self.prompt += prompt

    @contextmanager
    def _changing(self) -> Iterator[None]:
        try:
            yield
        except BaseException:  # after an interrupt, for example, layers may differ in length
            self._reset()
            raise

    def _reset(self) -> None:
        self.prefix, self.prompt, self._snapshot = self.model.make_cache(), Prompt(()), None

    def _go_back(self, length: int) -> None:
        """Keep the first `length` tokens, or fewer if the cache cannot go back to exactly `length`."""
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
