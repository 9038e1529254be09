"""Rules of the source that no linter knows."""

from __future__ import annotations

import ast
from collections.abc import Iterator

import pytest
from test_rooms import modules


def literals_unpacked(source: str) -> Iterator[int]:
    """Lines that unpack a literal tuple, list or dict in place: it hides the names of arguments."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Starred) and isinstance(node.value, ast.Tuple | ast.List):
            yield node.lineno
        if isinstance(node, ast.Call):
            for keyword in node.keywords:
                value = keyword.value
                if keyword.arg is None and isinstance(value, ast.Dict) and None not in value.keys:
                    yield value.lineno


def test_no_literal_is_unpacked_in_place() -> None:
    wrong = [f"{path}:{line}" for path in modules().values() for line in literals_unpacked(path.read_text())]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("line", ["f(*(a, b))", "f(*[a, b])", "f(**{'a': 1})", "x = (*(1, 2), 3)"])
def test_a_planted_one_is_found(line: str) -> None:
    assert list(literals_unpacked(line)) == [1]


@pytest.mark.parametrize(
    "line", ["f(*a)", "f(**a)", "x = [*a, b]", "f(*(each for each in a))", "f(**{'a': 1, **b})"]
)
def test_others_are_allowed(line: str) -> None:
    assert not list(literals_unpacked(line))
