"""Reads images of every form that callers have into one: RGB, upright, at most 50 megapixels."""

from __future__ import annotations

import base64
import binascii
import io
import os
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..console.messages import one_line
from ..errors import InputError

if TYPE_CHECKING:
    from PIL.Image import Image

# Formats whose readers run no other program, as that of EPS does.
_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF", "HEIF")
_MOST_PIXELS = 50_000_000
_MOST_BYTES = 200_000_000
_WAY_OUT = "give a path, a PIL image, bytes, a uint8 array [H, W, 3] or a data URL"


def read_image(source: Any, name: str = "image") -> Image:
    """Return an image as RGB.

    The orientation in its EXIF data is applied. Transparent parts become white. 16-bit grey is scaled to 8
    bits. Of an animation the first frame is taken.

    Args:
        source: a path, a PIL image, the bytes of a file, an array `[H, W]`, `[H, W, 3]` or `[H, W, 4]` of
            uint8, or a data URL.
        name: of the image in error messages.

    Raises:
        InputError: it is missing, damaged, larger than 50 megapixels, or of another kind.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    label = f"{name}: {_quoted(source)}" if isinstance(source, str | os.PathLike) else name
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = source if isinstance(source, Image.Image) else _opened(source, name)
            if image.width * image.height > _MOST_PIXELS:
                raise InputError(
                    f"{label} has {image.width} x {image.height} pixels, more than "
                    f"{_MOST_PIXELS // 10**6} million; make it smaller"
                )
            image.load()
            image = ImageOps.exif_transpose(image)
            return _rgb(image, label)
    except InputError:
        raise
    except UnidentifiedImageError:
        raise InputError(f"{label} is not an image that Pillow can read; {_heic(source)}") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise InputError(f"{label}: {one_line(error, 120)}; make it smaller") from None
    except OSError as error:
        reason = error.strerror or one_line(error, 120)
        raise InputError(f"{label} cannot be read ({reason}); {_WAY_OUT}") from None
    except (ValueError, SyntaxError, EOFError, MemoryError, OverflowError) as error:  # of damaged files
        raise InputError(f"{label} is damaged ({one_line(error, 120)}); {_WAY_OUT}") from None


def _opened(source: Any, name: str) -> Image:
    from PIL import Image

    if isinstance(source, np.ndarray) or (hasattr(source, "__array__") and not isinstance(source, bytes)):
        return _of_array(np.asarray(source), name)
    if isinstance(source, str) and source.startswith("data:"):
        source = _decoded(source, name)
    if isinstance(source, bytes | bytearray | memoryview):
        if not source:
            raise InputError(f"{name}: no bytes; {_WAY_OUT}")
        return Image.open(io.BytesIO(source), formats=_formats())
    if not isinstance(source, str | os.PathLike):
        raise InputError(f"{name}: found {type(source).__name__}; {_WAY_OUT}")
    if str(source).startswith(("http:", "https:")):
        raise InputError(f"{name}: {_quoted(source)} is not downloaded; download it, or give a data URL")
    path = Path(source).expanduser()
    if path.exists() and not path.is_file():
        raise InputError(f"{name}: {_quoted(path)} is not a file; {_WAY_OUT}")
    if path.is_file() and path.stat().st_size > _MOST_BYTES:
        raise InputError(f"{name}: {_quoted(path)} has more than {_MOST_BYTES // 10**6} MB; make it smaller")
    return Image.open(path, formats=_formats())


def _formats() -> list[str]:
    from PIL import Image

    Image.init()  # HEIF is there if a plug-in for it is
    return [name for name in _FORMATS if name in Image.OPEN]


def _quoted(source: Any) -> str:
    """Return a path or URL for a message. Its end tells most."""
    return f"'{one_line(source, 80, keep_end=True)}'"


def _of_array(array: np.ndarray, name: str) -> Image:
    from PIL import Image

    fits = array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (3, 4))
    if array.dtype != np.uint8 or not fits or 0 in array.shape:
        raise InputError(
            f"{name}: found an array {array.dtype} {list(array.shape)}; "
            "give uint8 [H, W], [H, W, 3] or [H, W, 4]"
        )
    return Image.fromarray(np.ascontiguousarray(array))


def _decoded(url: str, name: str) -> bytes:
    """Return the bytes of a data URL in base64."""
    header, comma, content = url.partition(",")
    if not comma or not header.endswith(";base64"):
        raise InputError(f"{name}: a data URL without ;base64, before its content; {_WAY_OUT}")
    if len(content) > _MOST_BYTES * 4 // 3:
        raise InputError(f"{name}: a data URL of more than {_MOST_BYTES // 10**6} MB; make it smaller")
    try:
        return base64.b64decode(content, validate=True)
    except (binascii.Error, ValueError):
        raise InputError(f"{name}: a data URL whose content is not base64; encode it again") from None


def _rgb(image: Image, label: str) -> Image:
    """Return an image as RGB, on white where it is transparent."""
    from PIL import Image

    if image.mode == "F":
        raise InputError(f"{label} has floating-point pixels; scale them to 8 bits first")
    if image.mode.startswith("I"):  # 16-bit grey, which Pillow would clip at 255
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 65535:
            raise InputError(
                f"{label} has pixels from {values.min()} to {values.max()}; scale them to 8 bits"
            )
        return Image.fromarray(((values.astype(np.uint32) + 128) // 257).astype(np.uint8)).convert("RGB")
    if "transparency" in image.info or image.mode in ("RGBA", "LA", "PA", "RGBa", "La"):
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


def _heic(source: Any) -> str:
    if isinstance(source, str | os.PathLike) and str(source).lower().endswith((".heic", ".heif")):
        return "install pip install 'mlx-diffusiongemma[heic]' for HEIC, or convert it to JPEG"
    return "convert it to PNG or JPEG"
