"""Loads tokenizer.json or tokenizer.model, which may come from anybody, into a tokenizer of Transformers."""

import json
import math
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

from ..config.files import read_text
from ..console.messages import one_line
from ..errors import TokenizerError

_MOST_BYTES = 128 * 10**6  # the released file has 32 MB
_MOST_GROWTH = 32  # of a text in normalizer or decoder; the released ones write 3 bytes for a space
_REMEDY = "copy it from the original checkpoint"


def load_transformers(path: Path) -> Any:
    """Return the fast tokenizer of the directory `path`. Raise `TokenizerError` if it has no usable one."""
    file = path / "tokenizer.json"
    if not file.is_file():
        file = path / "tokenizer.model"
    if not file.is_file():
        raise TokenizerError(f"{path}: no tokenizer.json found; {_REMEDY}")
    try:
        str(file).encode()
    except UnicodeEncodeError:
        raise TokenizerError(f"{path}: the name is not UTF-8, which tokenizers needs; rename it") from None
    if file.stat().st_size > _MOST_BYTES:
        raise TokenizerError(f"{file}: larger than {_MOST_BYTES // 10**6} MB; {_REMEDY}")
    if file.suffix == ".json":
        _check(file)
    try:
        # On first import, Transformers advises to install PyTorch, which a tokenizer does not need.
        with patch.dict(os.environ, TRANSFORMERS_NO_ADVISORY_WARNINGS="1"):
            from transformers import PreTrainedTokenizerFast
        with panics_refused(str(file)):
            if file.suffix == ".json":
                return PreTrainedTokenizerFast(tokenizer_file=str(file))
            with TemporaryDirectory() as alone:  # without configuration files, which Transformers would read
                shutil.copy(file, alone)
                return PreTrainedTokenizerFast.from_pretrained(alone, local_files_only=True)
    except ImportError as error:
        raise TokenizerError(f"{file}: not loadable ({one_line(error)}); install what is missing") from error
    except TokenizerError:
        raise
    except Exception as error:  # `tokenizers` raises a plain Exception for a broken file
        raise TokenizerError(f"{file}: not a usable tokenizer ({one_line(error)}); {_REMEDY}") from error


@contextmanager
def panics_refused(source: str) -> Iterator[None]:
    """Turn a panic of the Rust library, which is not an `Exception`, into a `TokenizerError`."""
    try:
        yield
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        raise TokenizerError(f"{source}: the tokenizer failed ({one_line(error, 100)}); {_REMEDY}") from None


def _check(file: Path) -> None:
    """Raise `TokenizerError` if the file's normalizer or decoder can make a text many times longer."""
    try:
        content = json.loads(read_text(file, _MOST_BYTES))
    except (OSError, ValueError, RecursionError) as error:
        raise TokenizerError(f"{file}: not a usable tokenizer ({one_line(error)}); {_REMEDY}") from None
    for part in ("normalizer", "decoder"):
        growth = _growth(content.get(part)) if isinstance(content, dict) else 1.0
        if growth > _MOST_GROWTH:
            raise TokenizerError(f"{file}: its {part} makes a text {growth:.3g} times as long; {_REMEDY}")


def _growth(node: Any) -> float:
    """Return an upper bound of the growth of a text in a normalizer or decoder, which are often sequences."""
    if isinstance(node, list):
        return math.prod(map(_growth, node))
    if not isinstance(node, dict):
        return 1.0
    content = node.get("content")
    if node.get("type") == "Prepend":
        return max(1.0, len(str(node.get("prepend"))))
    if node.get("type") == "Replace" and isinstance(content, str):
        pattern = node.get("pattern")
        text = pattern.get("String") if isinstance(pattern, dict) else None
        # A regular expression may match the empty text before each character.
        found = len(text) if isinstance(text, str) and text else None
        return max(1.0, len(content) / found) if found else 1.0 + len(content)
    return math.prod(_growth(value) for value in node.values() if isinstance(value, list))
