"""Prompts with images: what is equal, and where one may be cut."""

from __future__ import annotations

import random

import pytest

from mlx_diffusiongemma.errors import InputError
from mlx_diffusiongemma.prompt import ImageSpan, Prompt, chunk_end, merge_spans

IMAGE = 90


def prompt(*parts: int | tuple[int, str]) -> Prompt:
    """Build a prompt: a number is a token id, a pair is the length and the digest of an image."""
    ids: list[int] = []
    images = []
    for part in parts:
        if isinstance(part, tuple):
            images.append(ImageSpan(len(ids), *part))
            ids += [IMAGE] * part[0]
        else:
            ids.append(part)
    return Prompt(ids, images)


@pytest.mark.parametrize(("one", "other", "length"), [
    (prompt(), prompt(1), 0),
    (prompt(1, 2, 3), prompt(1, 2, 4), 2),
    (prompt(1, 2), prompt(1, 2, 3), 2),
    (prompt(1, (3, "a"), 2), prompt(1, (3, "a"), 2, 3), 5),
    # The ids are the same, the picture is another one.
    (prompt(1, (3, "a"), 2), prompt(1, (3, "b"), 2), 1),
    (prompt(1, (3, "a"), 2, (2, "b"), 3), prompt(1, (3, "a"), 2, (2, "c"), 3), 5),
    # The common ids end inside of an image.
    (prompt(1, (3, "a")), prompt(1, (5, "a")), 1),
    (prompt(1, (3, "a"), 2), prompt(1, IMAGE, IMAGE), 1),
    (prompt((2, "a"), (2, "b")), prompt((4, "a")), 0),
    # One image, but ids that differ inside of it.
    (Prompt([1, 8, 9], [ImageSpan(1, 2, "a")]), Prompt([1, 8, 8], [ImageSpan(1, 2, "a")]), 1),
    # Ids that look like an image's are not an image.
    (prompt(1, (2, "a"), 2), prompt(1, IMAGE, IMAGE, 2), 1),
    (prompt(1, (2, "a"), 2), prompt(1, (2, "a"), 7, (2, "a")), 3),
    # Pixels are not compared.
    (Prompt([1], [ImageSpan(0, 1, "a", [1])]), Prompt([1], [ImageSpan(0, 1, "a", [2])]), 1),
])  # fmt: skip
def test_common_length(one: Prompt, other: Prompt, length: int) -> None:
    assert one.common_length(other) == length
    assert other.common_length(one) == length


def test_parts_put_together_are_the_whole() -> None:
    whole = prompt(1, (3, "a"), 2, 3, (2, "b"), (2, "c"))
    assert whole.spans == ((1, 4), (6, 8), (8, 10))
    for at in (0, 1, 4, 5, 6, 8, 10):
        assert whole.border(at) == at
        assert whole.part(0, at) + whole.part(at) == whole
    for at, before in ((2, 1), (3, 1), (7, 6), (9, 8)):
        assert whole.border(at) == before
        with pytest.raises(InputError, match=f"position {at} of the prompt lies inside an image; cut before"):
            whole.part(0, at)
    assert whole.part(4, 8) == prompt(2, 3, (2, "b"))
    canvas = [1, 2]
    assert prompt((1, "a")) + canvas == prompt((1, "a"), 1, 2)


@pytest.mark.parametrize("images", [[(1, 2), (2, 2)], [(3, 1), (0, 1)], [(0, 0)], [(3, 3)], [(-1, 2)]])
def test_images_that_cannot_be_there(images: list[tuple[int, int]]) -> None:
    with pytest.raises(InputError, match="give images in order, each with its own positions"):
        Prompt(range(5), [ImageSpan(start, length, "a") for start, length in images])


def test_chunks_cut_no_span() -> None:
    """Each is as long as it may be: to its size, to the next span, or to the end of a long one."""
    generator = random.Random(0)
    for _ in range(300):
        total, size = generator.randint(1, 60), generator.randint(1, 12)
        starts = [generator.randrange(total) for _ in range(generator.randint(0, 4))]
        spans = merge_spans((start, min(total, start + generator.randint(1, 15))) for start in starts)
        allowed = [at for at in range(total + 1) if not any(first < at < last for first, last in spans)]
        start = 0
        while start < total:
            end = chunk_end(start, total, size, spans)
            within = [at for at in allowed if start < at <= start + size]
            assert end == (within[-1] if within else next(at for at in allowed if at > start))
            start = end


def test_spans_of_several_rows_are_merged() -> None:
    assert merge_spans([(8, 9), (0, 3), (2, 5), (5, 6), (0, 1)]) == [(0, 5), (5, 6), (8, 9)]
