"""Templates: where the holes are, and what is text."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.fixtures_tokenizer import one_line
from support.parsing import property_test

from mlx_diffusiongemma.errors import InputError
from mlx_diffusiongemma.filling.template import NAMED_LENGTH, Hole, parse_template

A = Hole(NAMED_LENGTH, exact=False, name="a")


@pytest.mark.parametrize(("text", "parts"), [
    ("[[12]]", [Hole(12, True)]),
    ("[[..40]]", [Hole(40, False)]),
    ("[[city]]", [Hole(16, False, "city")]),
    ("[[city:12]]", [Hole(12, True, "city")]),
    ("[[city:..40]]", [Hole(40, False, "city")]),
    ("[[..12]][[012]]", [Hole(12, False), Hole(12, True)]),
    ("[[_x1]] [[Straße]]", [Hole(16, False, "_x1"), " ", Hole(16, False, "Straße")]),
    ("Dear [[a]],\n", ["Dear ", A, ",\n"]),
    ("[[[1]]]", ["[", Hole(1, True), "]"]),  # the innermost brackets are the hole's
    ("[[1,2],[3,4]] [[a]]", ["[[1,2],[3,4]] ", A]),
    ("[[1, 2]] [[a]]", ["[[1, 2]] ", A]),
    ('[["a"]] [[ [[a]]', ['[["a"]] [[ ', A]),
    ("[[1\n]] ]] [[a]]", ["[[1\n]] ]] ", A]),
    ("[1] [a] [[a]]", ["[1] [a] ", A]),
    (r"\[[1]] [[a]]", ["[[1]] ", A]),
    (r"\[[\[[[[a]]", ["[[[[", A]),
    (r"\\[[a]]", ["\\", A]),
    (r"\\\[[1]][[a]]", [r"\\", Hole(1, True), A]),
    (r"\n \d \\ \[ [[a]] \[", [r"\n \d \\ \[ ", A, r" \["]),
])  # fmt: skip
def test_parts(text: str, parts: list[Any]) -> None:
    assert parse_template(text) == parts


@pytest.mark.parametrize(("text", "message"), [
    (None, "template: found NoneType; give a text"),
    (["[[a]]"], "template: found list; give a text"),
    ("", "template: empty"),
    (" \n", "template: empty"),
    ("no hole [a] [[1, 2]]", "template: no hole found"),
    (r"\[[a]]", "template: no hole found"),
    ("[[0]]", "the hole [[0]] has no tokens"),
    ("[[..0]]", "the hole [[..0]] has no tokens"),
    ("[[city:00]]", "the hole [[city:00]] has no tokens"),
    ("[[a]] [[b]] [[a:3]]", "the hole [[a]] occurs twice"),
    ("[[]]", "[[]] is not a hole"),
    ("[[ a]]", "[[ a]] is not a hole"),
    ("[[my city]]", "[[my city]] is not a hole"),
    ("[[-3]]", "[[-3]] is not a hole"),
    ("[[1.5]]", "[[1.5]] is not a hole"),
    ("[[12..]]", "[[12..]] is not a hole"),
    ("[[5..10]]", "[[5..10]] is not a hole"),
    ("[[..]]", "[[..]] is not a hole"),
    ("[[...4]]", "[[...4]] is not a hole"),
    ("[[city:]]", "[[city:]] is not a hole"),
    ("[[:12]]", "[[:12]] is not a hole"),
    ("[[city..12]]", "[[city..12]] is not a hole"),
    ("[[a:b]]", "[[a:b]] is not a hole"),
    ("[[1a]]", "[[1a]] is not a hole"),
    ("[[٣]]", "[[٣]] is not a hole"),
    ("[[" + "9" * 5000 + "]]", "9...]] is not a hole"),
])  # fmt: skip
def test_refused_templates(text: Any, message: str) -> None:
    with pytest.raises(InputError) as error:
        parse_template(text)
    assert message in one_line(error)
    assert len(one_line(error)) < 200


@given(
    literals=st.lists(st.text(st.sampled_from("[]a1 ,.:é\n"), max_size=6), min_size=2, max_size=5),
    lengths=st.data(),
)
@property_test
def test_literals_come_back_to_the_letter(literals: list[str], lengths: st.DataObject) -> None:
    """Escaped text, whatever it holds, is text; the holes between are all found."""
    text, expected = "", list[Any]()
    for index, literal in enumerate(literals):
        if index:
            hole = Hole(lengths.draw(st.integers(1, 99)), lengths.draw(st.booleans()))
            text += f"[[{'' if hole.exact else '..'}{hole.length}]]"
            expected.append(hole)
        # A hole's brackets may not run into the text's own.
        safe = literal.strip("[]")
        text += safe.replace("[[", r"\[[")
        expected += [safe] if safe else []
    assert parse_template(text) == expected
