"""Checks the prose of docstrings, comments, help texts, messages and documents. `make lint` runs it.

It finds first words and idioms that make texts hard to read. See "Prose" in CONTRIBUTING.md.
"""

from __future__ import annotations

import ast
import io
import re
import subprocess
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path

OPENERS = re.compile(r"(What|Of|That|Whether|Which|How many)\b")
IDIOMS = re.compile(
    r"(?<!here )\b((is|are|was) no(?! (longer|more)\b)"
    r"|to[l]d|mende[d]|somebod[y]|so man[y])\b|; els[e]\b"
)
TEXT = re.compile(r"[A-Za-z]{2,} [A-Za-z]{2,}")


def texts(source: str) -> Iterator[tuple[int, str, bool]]:
    """Yield docstrings, comments and strings with words: line, text, and True for a docstring."""
    tree = ast.parse(source)
    docstrings = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and node.body:
            first = node.body[0]
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
                docstrings.add(id(first.value))
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and TEXT.search(node.value):
            yield node.lineno, node.value, id(node) in docstrings
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string, False


def faults(path: Path) -> Iterator[str]:
    """Yield a message for each fault in a file."""
    source = path.read_text()
    if path.suffix == ".py":
        found = texts(source)
    else:
        found = ((number, line, False) for number, line in enumerate(source.splitlines(), 1))
    for line, text, is_docstring in found:
        opener = OPENERS.match(text) if is_docstring else None
        for match in [opener, *IDIOMS.finditer(text)]:
            if match is not None:
                yield f"{path}:{line + text[: match.start()].count(chr(10))}: {match[0]!r}"


def main() -> None:
    listed = subprocess.run(["git", "ls-files", "*.py", "*.md"], capture_output=True, text=True, check=True)
    found = [fault for name in listed.stdout.split() if Path(name).exists() for fault in faults(Path(name))]
    print("\n".join(found) or "prose: fine")
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
