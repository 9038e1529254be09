"""Loads tokenizer.json or tokenizer.model, which are untrusted files, into a tokenizer of Transformers."""

import json
import math
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

from ..config.files import check_values, read_text
from ..console.messages import one_line, shown
from ..errors import TokenizerError

_MOST_BYTES = 128 * 10**6  # the released file has 32 MB
_MOST_GROWTH = 32  # largest factor for a text's length; the released tokenizer makes 3 bytes of a space
_MOST_NODES, _MOST_VALUES = 1000, 5_000_000  # the released file has 1.5 million values
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
    """Turn a panic or plain `Exception` of the Rust library into a `TokenizerError`."""
    try:
        yield
    except BaseException as error:
        if type(error) is not Exception and type(error).__name__ != "PanicException":
            raise
        raise TokenizerError(f"{source}: the tokenizer failed ({one_line(error, 100)}); {_REMEDY}") from None


def _check(file: Path) -> None:
    """Raise `TokenizerError` for parts that may take for ever. This model's own tokenizers lack them.

    Some regular expressions backtrack, and some normalizers and decoders make a text many times longer.
    """
    try:
        text = read_text(file, _MOST_BYTES)
        check_values(text, _MOST_VALUES)
        content = json.loads(text)
    except (OSError, ValueError, RecursionError) as error:
        raise TokenizerError(f"{file}: not a usable tokenizer ({one_line(error)}); {_REMEDY}") from None
    if not isinstance(content, dict):
        return
    model = content.get("model")
    if isinstance(model, dict):
        if model.get("type", "BPE") != "BPE":
            raise TokenizerError(f"{file}: its model is {shown(model['type'])}, not BPE; {_REMEDY}")
        affixes = (model.get(name) for name in ("continuing_subword_prefix", "end_of_word_suffix"))
        if any(len(str(affix)) > _MOST_GROWTH for affix in affixes):
            raise TokenizerError(f"{file}: its model has a long prefix or suffix of words; {_REMEDY}")
    for name in ("normalizer", "pre_tokenizer", "post_processor", "decoder"):
        part = content.get(name)
        nodes = [*_nodes(part)]
        if len(nodes) > _MOST_NODES:
            raise TokenizerError(f"{file}: its {name} has {len(nodes)} parts; {_REMEDY}")
        if any("precompiled_charsmap" in node or _backtracks(str(node.get("Regex", ""))) for node in nodes):
            raise TokenizerError(
                f"{file}: its {name} has a pattern or table that may take for ever; {_REMEDY}"
            )
        growth = math.prod(map(_growth, nodes)) if name in ("normalizer", "decoder") else 1
        if growth > _MOST_GROWTH:
            raise TokenizerError(f"{file}: its {name} makes a text {growth:.3g} times as long; {_REMEDY}")


def _backtracks(pattern: str) -> bool:
    """Return True for a regular expression with a repetition inside a group, or with a backreference.

    The time for these may double with each character of a text. For all other expressions it grows at most
    with the square of the text's length.
    """
    if re.search(r"\\[1-9kg]", pattern):
        return True
    plain = re.sub(r"\\.|\[\^?\]?(?:\\.|[^\]\\])*\]", "x", pattern, flags=re.DOTALL)
    depth = 0
    for place, character in enumerate(plain):
        depth += (character == "(") - (character == ")")
        if depth > 0 and character in "*+{" and plain[place - 1] != "(":
            return True
    return False


def _nodes(value: Any) -> Iterator[dict[str, Any]]:
    """Yield all objects in a JSON value, including nested ones."""
    if isinstance(value, dict):
        yield value
    if isinstance(value, dict | list):
        for each in value.values() if isinstance(value, dict) else value:
            yield from _nodes(each)


def _growth(node: dict[str, Any]) -> float:
    """Return the largest factor by which one part of a normalizer or decoder lengthens a text."""
    if "prepend" in node:
        return max(1.0, len(str(node["prepend"])))
    if "pattern" not in node or "content" not in node:  # the type may be in any letter case
        return 1.0
    pattern, content = node.get("pattern"), str(node.get("content"))
    found = str(pattern.get("String") or "") if isinstance(pattern, dict) else ""
    return max(1.0, len(content) / len(found)) if found else 1.0 + len(content)
