"""Images of every form: what becomes of them, and what is said about those that cannot be read."""

from __future__ import annotations

import base64
import io
import os
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mlx_diffusiongemma.errors import InputError
from mlx_diffusiongemma.vision.patches import BUDGETS, cut, fitted_size
from mlx_diffusiongemma.vision.reading import read_image

PIXELS = np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8)


def encoded(image: Image.Image, kind: str = "PNG", **more: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **more)
    return stream.getvalue()


def test_every_source_gives_the_same_pixels(tmp_path: Path) -> None:
    picture = Image.fromarray(PIXELS)
    data = encoded(picture)
    (tmp_path / "a.png").write_bytes(data)
    url = "data:image/png;base64," + base64.b64encode(data).decode()
    for source in (tmp_path / "a.png", str(tmp_path / "a.png"), picture, data, bytearray(data), PIXELS, url):
        assert np.array_equal(np.asarray(read_image(source)), PIXELS)


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (Image.new("RGBA", (2, 2), (255, 0, 0, 0)), (255, 255, 255)),
        (Image.new("RGBA", (2, 2), (255, 0, 0, 255)), (255, 0, 0)),
        (Image.new("LA", (2, 2), (0, 0)), (255, 255, 255)),
        (Image.new("L", (2, 2), 7), (7, 7, 7)),
        (Image.new("1", (2, 2), 1), (255, 255, 255)),
        (Image.fromarray(np.full((2, 2), 65535, np.uint16)), (255, 255, 255)),
        (Image.fromarray(np.full((2, 2), 257 * 9, np.uint16)), (9, 9, 9)),
    ],
)
def test_modes_become_rgb(image: Image.Image, expected: tuple[int, ...]) -> None:
    for source in (image, encoded(image)):
        assert read_image(source).getpixel((0, 0)) == expected


def test_a_palette_with_a_transparent_colour_is_on_white() -> None:
    image = Image.new("P", (2, 2), 0)
    image.putpalette([255, 0, 0, 0, 0, 255])
    assert read_image(encoded(image, transparency=0)).getpixel((0, 0)) == (255, 255, 255)
    assert read_image(encoded(image, "GIF")).getpixel((0, 0)) == (255, 0, 0)


def test_orientation_is_applied_and_of_an_animation_the_first_frame_taken() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    assert read_image(encoded(Image.fromarray(PIXELS), "JPEG", exif=exif)).size == (6, 9)
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    animation = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert read_image(animation).getpixel((0, 0)) == (255, 0, 0)


def header(width: int, height: int) -> bytes:
    """A PNG that declares a size and has no pixels."""
    size = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", size), (b"IDAT", b""), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("missing.png", r"'missing.png' cannot be read \(No such file or directory\); give a path, a PIL"),
        ("http://host/a.png", "is not downloaded; download it, or give a data URL"),
        (b"", "image: no bytes"),
        (b"not an image", "image is not an image that Pillow can read; convert it to PNG or JPEG"),
        (encoded(Image.fromarray(PIXELS))[:-30], "image (is damaged|cannot be read)"),
        (header(60_000, 60_000), "image: Image size .* exceeds limit .*; make it smaller"),
        (
            header(11_000, 9_500),
            "image: Image size .* exceeds limit .*; make it smaller|more than 100 million",
        ),
        ("data:image/png,abc", "a data URL without ;base64, before its content"),
        ("data:image/png;base64,?", "a data URL whose content is not base64"),
        (PIXELS.astype(np.float32), r"found an array float32 \[6, 9, 3\]; give uint8"),
        (PIXELS[:, :0], r"found an array uint8 \[6, 0, 3\]"),
        (Image.new("F", (2, 2)), "has floating-point pixels; scale them"),
        (Image.fromarray(np.full((2, 2), 70_000, np.int32)), "has pixels from 70000 to 70000"),
        (3, "found int; give a path"),
        (None, "found NoneType; give a path"),
        ("a\x00b", "is damaged|cannot be read"),
    ],
    ids=range(16),
)
def test_bad_images_are_one_line(source: Any, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        read_image(source)
    assert str(caught.value).isprintable()


def test_directories_pipes_and_heic(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for name in (".", "pipe"):
        with pytest.raises(InputError, match="is not a file; give a path"):
            read_image(tmp_path / name)
    (tmp_path / "a.heic").write_bytes(b"\x00\x00\x00\x18ftypheic")
    with pytest.raises(InputError, match=r"install pip install 'mlx-diffusiongemma\[heic\]' for HEIC"):
        read_image(tmp_path / "a.heic")


@pytest.mark.parametrize(
    ("size", "fitted", "tokens"),
    [  # height x width, as the processor's tests have it
        ((480, 640), (672, 912), 266), ((1080, 1920), (576, 1056), 264), ((512, 512), (768, 768), 256),
        ((672, 960), (672, 960), 280), ((100, 3000), (144, 4368), 273), ((3, 900), (48, 13440), 280),
        ((49, 13440), (48, 13296), 277), ((1170, 2532), (528, 1152), 264), ((1, 1), (768, 768), 256),
    ],
)  # fmt: skip
def test_sizes_that_fill_the_budget(size: tuple[int, int], fitted: tuple[int, int], tokens: int) -> None:
    assert fitted_size(size[1], size[0], 280) == (fitted[1], fitted[0])
    assert fitted[0] * fitted[1] // 48**2 == tokens


def test_patches_by_hand() -> None:
    """One soft token: 3 x 3 patches, row by row, each with rows, columns and channels."""
    picture = Image.fromarray(np.arange(48 * 48 * 3, dtype=np.uint32).astype(np.uint8).reshape(48, 48, 3))
    strip = Image.new("RGB", (48 * 280, 48))
    strip.paste(picture, (0, 0))
    found = cut(strip, 280)
    assert found.soft_tokens == 280
    assert found.positions[:4].tolist() == [[0, 0], [1, 0], [2, 0], [3, 0]]
    expected = np.asarray(picture)[:16, 16:32].reshape(-1).astype(np.float32) / np.float32(255)
    assert np.array_equal(found.values[1], expected)
    assert cut(strip, 280).digest == found.digest
    strip.putpixel((0, 0), (1, 1, 1))
    assert cut(strip, 280).digest != found.digest


@pytest.mark.parametrize("budget", [0, 256, 281, True, "280", None])
def test_budgets_that_the_model_does_not_know(budget: Any) -> None:
    assert 280 in BUDGETS
    with pytest.raises(InputError, match="soft_tokens must be one of 70, 140, 280, 560, 1120, found"):
        cut(Image.new("RGB", (48, 48)), budget)


def test_formats_that_run_another_program_are_not_opened(tmp_path: Path) -> None:
    """Pillow reads EPS through Ghostscript."""
    (tmp_path / "a.png").write_bytes(
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n%%EOF\n"
    )
    with pytest.raises(InputError, match="is not an image that Pillow can read"):
        read_image(tmp_path / "a.png")
