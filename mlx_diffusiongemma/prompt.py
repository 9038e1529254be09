"""The engine's prompt: token ids, and the positions of images among them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from .errors import InputError

Span = tuple[int, int]  # first position, and the position after the last


@dataclass(frozen=True)
class ImageSpan:
    """One image in a prompt: `length` soft tokens from position `start`. They are encoded in one chunk.

    digest: hash of everything that decides the soft tokens: pixels, budget, preprocessing. Two images of the
        same size have the same ids, so only the digest tells their keys and values apart.
    pixels: input of the vision tower. `==` ignores it.
    """

    start: int
    length: int
    digest: str
    pixels: Any = field(default=None, compare=False, repr=False)

    @property
    def end(self) -> int:
        return self.start + self.length


@dataclass(frozen=True)
class Prompt:
    """Token ids and the images among them, in order.

    Args:
        ids: with the image id once for each soft token.
        images: spans; or the images themselves, as `mlx_dg.generate` takes them, or their patches and
            positions as NumPy arrays. `model.encode` and `generate` find the places of such images.

    Raises `InputError` if spans overlap, are out of order or lie outside of the ids.
    """

    ids: tuple[int, ...]
    images: tuple[ImageSpan, ...] = ()
    unplaced: tuple[Any, ...] = field(default=(), compare=False, repr=False)

    def __init__(self, ids: Iterable[int], images: Iterable[Any] = ()):
        images = tuple(images)
        placed = all(isinstance(image, ImageSpan) for image in images)
        object.__setattr__(self, "ids", tuple(ids))
        object.__setattr__(self, "images", images if placed else ())
        object.__setattr__(self, "unplaced", () if placed else images)
        end = 0
        for image in self.images:
            if image.start < end or image.length < 1 or image.end > len(self.ids):
                raise InputError(
                    f"an image at positions {image.start} to {image.end} of {len(self.ids)} token ids, "
                    f"after one that ends at {end}; give images in order, each with its own positions"
                )
            end = image.end

    def __len__(self) -> int:
        return len(self.ids)

    def __add__(self, other: Prompt | Sequence[int]) -> Prompt:
        """Return this prompt followed by another prompt or by token ids."""
        if not isinstance(other, Prompt):
            return Prompt((*self.ids, *other), self.images)
        moved = (replace(image, start=len(self) + image.start) for image in other.images)
        return Prompt(self.ids + other.ids, (*self.images, *moved))

    @property
    def spans(self) -> tuple[Span, ...]:
        """Start and end of each image."""
        return tuple((image.start, image.end) for image in self.images)

    def part(self, start: int, end: int | None = None) -> Prompt:
        """Return the positions from `start` up to `end`, with their images.

        Raises `InputError` if this would cut an image.
        """
        end = len(self) if end is None else min(end, len(self))
        for border in (start, end):
            if self.border(border) != border:
                raise InputError(f"position {border} of the prompt lies inside an image; cut before it")
        images = (image for image in self.images if start <= image.start and image.end <= end)
        return Prompt(self.ids[start:end], (replace(image, start=image.start - start) for image in images))

    def border(self, position: int) -> int:
        """Return `position`, but if a cut there would divide an image, return the start of the image."""
        return next((start for start, end in self.spans if start < position < end), position)

    def common_length(self, other: Prompt) -> int:
        """Return the length of the beginning that both prompts share. It never cuts an image."""
        length = common_length(self.ids, other.ids)
        shared = set(self.images) & set(other.images)
        # The prompts differ from the start of the first image that only one of them has.
        for image in (*self.images, *other.images):
            if image.start < length and (image not in shared or image.end > length):
                length = image.start
        return length


def common_length(one: Sequence[int], other: Sequence[int]) -> int:
    """Return the length of the beginning that two lists of ids share."""
    pairs = zip(one, other, strict=False)
    return next((index for index, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))


def merge_spans(spans: Iterable[Span]) -> list[Span]:
    """Return `spans` sorted, with overlapping spans merged. They may come from several rows of a batch."""
    merged: list[Span] = []
    for start, end in sorted(spans):
        if merged and start < merged[-1][1]:
            start, end = merged[-1][0], max(merged.pop()[1], end)
        merged.append((start, end))
    return merged


def chunk_end(start: int, end: int, size: int, spans: Iterable[Span]) -> int:
    """Return the end of the chunk that begins at `start`: `size` positions later, but at most `end`.

    The chunk ends before a span that it would cut, or after a span that begins at `start` and is longer than
    `size`.

    Args:
        spans: spans that do not overlap (see `merge_spans`). `start` may be the first position of a span, but
            not a later one.
    """
    stop = min(start + size, end)
    for first, last in spans:
        if first < stop < last:
            return first if first > start else min(last, end)
    return stop
