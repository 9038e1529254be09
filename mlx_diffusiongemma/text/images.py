"""Reads the images of messages, and puts soft tokens for them among the ids of a prompt."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..config.ranges import integer
from ..errors import InputError, TokenizerError
from ..prompt import ImageSpan, Prompt
from ..vision.patches import BUDGETS, Patches, check_budget, cut
from ..vision.reading import read_image
from .chat_template import read_object

_MOST = {"patch": 32, "kernel": 4}


@dataclass(frozen=True)
class ImageProcessor:
    """Settings of a checkpoint's image processor.

    soft_tokens: maximum number of soft tokens of an image, unless the caller gives one.
    patch: side of a patch in pixels.
    kernel: side of a soft token in patches.
    """

    soft_tokens: int = 280
    patch: int = 16
    kernel: int = 3

    @classmethod
    def load(cls, directory: Path) -> "ImageProcessor":
        """Read processor_config.json or preprocessor_config.json. Without them, return the defaults.

        Raises:
            TokenizerError: a value is out of range.
        """
        found = read_object(directory / "processor_config.json").get("image_processor")
        values = found if isinstance(found, dict) else read_object(directory / "preprocessor_config.json")
        names = {"soft_tokens": "max_soft_tokens", "patch": "patch_size", "kernel": "pooling_kernel_size"}
        given = {field: values[name] for field, name in names.items() if values.get(name) is not None}
        if given.get("soft_tokens", 280) not in BUDGETS or any(
            integer(value, 1, _MOST[field]) is None for field, value in given.items() if field in _MOST
        ):
            raise TokenizerError(f"{directory}: its image processor has {given}; copy the original file")
        return cls(**given)

    def patches(self, sources: Sequence[Any], soft_tokens: int | None = None) -> list[Patches]:
        """Read images and cut them into patches. Errors name the image by its number."""
        budget = self.soft_tokens if soft_tokens is None else check_budget(soft_tokens)
        return [
            cut(read_image(source, f"image {number}"), budget, self.patch, self.kernel)
            for number, source in enumerate(sources, start=1)
        ]


def taken_images(messages: Sequence[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[Any]]:
    """Return the messages with image parts reduced to `{"type": "image"}`, and the sources of the images."""
    bare, sources = [], []
    for message in messages:
        content = message.get("content")
        if isinstance(content, list):
            sources += [part.get("image") for part in content if part["type"] == "image"]
            parts = [{"type": "image"} if part["type"] == "image" else part for part in content]
            message = {**message, "content": parts}
        bare.append(message)
    return bare, sources


def with_soft_tokens(ids: Sequence[int], images: Sequence[Patches], special: Any) -> Prompt:
    """Return the prompt in which the soft tokens of an image, in brackets, replace each `<|image|>`.

    special: the tokenizer's `SpecialTokens`.

    Raises:
        InputError: `ids` do not have one `<|image|>` for each image.
    """
    places = [place for place, token in enumerate(ids) if token == special.image]
    if len(places) != len(images) or None in (special.image, special.image_open, special.image_close):
        raise InputError(
            f"the chat template wrote {len(places)} places for {len(images)} images; use a checkpoint whose "
            "template and tokenizer take images"
        )
    prompt, done = Prompt(()), 0
    for place, patches in zip(places, images, strict=True):
        prompt += [*ids[done:place], special.image_open]
        span = ImageSpan(0, patches.soft_tokens, patches.digest, patches)
        prompt += Prompt([special.image] * patches.soft_tokens, [span])
        prompt += [special.image_close]
        done = place + 1
    return prompt + list(ids[done:])
