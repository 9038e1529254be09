"""Regular expressions between the dialects of JSON Schema, the grammar compiler and Python."""

from __future__ import annotations

import json
import re
import string

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.grammars import accepts, compiled, refusal, shortest

from mlx_diffusiongemma.control.patterns import example, has_control, has_look_around, rust_pattern

FAR = (
    r".*a.*a", r".+-.+-.+", r"(.*\n){3}", r".*</b>", r"(.|\n)*</done>", r"(\d+\. .+\n){10}",
    r"(.+, ){4}and .+", r"(.+)-(.+)-(.+)", r"[^@]+@[^@]+\.[a-z]{2,}", r"[^\w\s]{3}é?", r"(ab|c)+?d{2,3}",
    r"\D\S\W[^a-z]", r"x{3}|yy", r".*[]-]{2}.*[^]a]", r"[a\]]{2}.*\[",
)  # fmt: skip


@pytest.mark.parametrize("pattern", FAR)
def test_patterns_whose_end_no_mask_shows_are_found_out(pattern: str) -> None:
    assert re.fullmatch(pattern, shortest(compiled(regex=pattern)))
    schema = {"type": "string", "pattern": f"^(?:{pattern})$"}
    assert re.fullmatch(pattern, json.loads(shortest(compiled(schema=schema))))


# What each POSIX class holds, by Python's own functions.
POSIX = {
    "alnum": str.isalnum, "alpha": str.isalpha, "ascii": str.isascii, "digit": str.isdigit,
    "lower": str.islower, "upper": str.isupper, "print": str.isprintable, "space": str.isspace,
    "blank": lambda text: text in " \t", "cntrl": lambda text: not text.isprintable(),
    "graph": lambda text: text.isprintable() and text != " ",
    "punct": lambda text: text in string.punctuation,
    "word": lambda text: text.isalnum() or text == "_", "xdigit": lambda text: text in string.hexdigits,
}  # fmt: skip


@pytest.mark.parametrize("name", POSIX)
def test_posix_classes(name: str) -> None:
    """No warning either: warnings are errors here. Separators 28 to 31 are space to Python alone."""
    grammar = compiled(regex=f".*[[:{name}:]]é")
    for character in map(chr, range(128)):
        if not 28 <= ord(character) <= 31 and character != "\n":
            assert accepts(grammar, f"{character}é") == POSIX[name](character), character
    assert POSIX[name](shortest(grammar)[-2])


@pytest.mark.parametrize(("pattern", "fits", "differs"), [
    ("[[:alpha:][:digit:]_]{3}", "a1_", "a-b"), ("[^[:space:]]+", "ab", "a b"),
    ("[[:^alpha:]]", "1", "a"), ("[a-z--[aeiou]]", "b", "a"), ("[a-z&&[^x]]", "a", "x"),
    ("[a-c~~b-d]", "d", "b"), ("[a||b]", "|", "c"), ("[a[bc]]", "c", "d"),
    ("[a&b]", "&", "c"), ("[a-]", "-", "b"), ("[+--]", "+", "-"), (r"[\[a]", "[", "b"),
    ("(?i)ab", "AB", "x"), ("[]a]", "]", "b"), ("[^]a]", "b", "]"), (r"[\]]", "]", "a"),
    ("[&&a]", "", "b"), ("a(?i)b", "aB", "Ab"), ("[[a-c]&&[b-d]]x", "bx", "ax"),
])  # fmt: skip
def test_class_operators_are_the_compilers(pattern: str, fits: str, differs: str) -> None:
    if not fits:
        refusal(regex=pattern)
        return
    grammar = compiled(regex=pattern)
    assert accepts(grammar, fits)
    assert not accepts(grammar, differs)


@pytest.mark.parametrize(("pattern", "fits", "differs"), [
    ("^[[(][0-9]+[)\\]]$", "[1]", "{1}"), ("^[^[]+$", "ab", "a["),
    ("^[a&&b]$", "&", "c"), ("^[+--]$", ",", "."), ("^[a~~b]$", "~", "c"), ("^[a||b]$", "|", "c"),
    (r"^[\[\]&~-]$", "&", "a"), ("^[a-z[]$", "[", "A"), (r"^\[a&&b\]$", "[a&&b]", "a"),
    ("^a$|^b$", "b", "c"), ("^(a$|b)", "bx", "ax"), (r"^\/\-\.$", "/-.", "a"), (r"^A$", "A", "a"),
])  # fmt: skip
def test_a_schemas_pattern_is_that_of_ecmascript(pattern: str, fits: str, differs: str) -> None:
    """In a class, the compiler's operators are characters. Python agrees, with a warning."""
    schema = {"type": "string", "pattern": pattern}
    grammar = compiled(schema=schema)
    assert accepts(grammar, json.dumps(fits))
    assert not accepts(grammar, json.dumps(differs))
    keys = compiled(schema={"patternProperties": {pattern: {}}, "additionalProperties": False})
    assert accepts(keys, json.dumps({fits: 1}))
    assert not accepts(keys, json.dumps({differs: 1}))


MEMBERS = [*"ab1-&~|[:^]", "--", "&&", "~~", "||", "a-c", r"\]", r"\d", r"\[", r"\-", "[:alpha:]"]
CLASSES = st.lists(st.sampled_from(MEMBERS), min_size=1, max_size=6).map(
    lambda parts: "[" + "".join(parts).lstrip("^]") + "]"
)


@settings(max_examples=300, derandomize=True, deadline=None)
@given(CLASSES, st.sampled_from(["", "^x", "+$"]))
@pytest.mark.filterwarnings("ignore:Possible:FutureWarning")
def test_rewritten_classes_match_what_python_matches(members: str, rest: str) -> None:
    pattern = f"^{members}" + rest.replace("^", "")
    try:
        old, new = re.compile(pattern), re.compile(rust_pattern(pattern))
    except re.error:
        return
    for text in ("a", "b", "1", "-", "&", "~", "|", "[", ":", "^", "]", "ax", "c", "\\", "1]", "-]"):
        assert (old.match(text) is None) == (new.match(text) is None), rust_pattern(pattern)


def test_rewriting_changes_nothing_else() -> None:
    plain = (r"^\d{3}-\d{4}$", r"[a-z]+\[\]", "a&&b--c[d]", r"\\[a]", r"[\\]", "[é-ü]", "[a", "[]", "[a\\")
    for pattern in plain:
        assert rust_pattern(pattern) == pattern
        assert rust_pattern(rust_pattern("[[&&]" + pattern)) == rust_pattern("[[&&]" + pattern)


def by_python(atom: str, character: str) -> bool:
    return re.fullmatch(atom, character, re.DOTALL) is not None


@pytest.mark.parametrize("pattern", [
    "(?:(?:a{4000}){4000}){400}", "(a{4000}){4000000000}", "(((((a{99}){99}){99}){99}){99}){99}",
    "(a{4096}b|c{4097}){2}", "(ab?){3000}" * 9, "a" * 5000, "a)", "*", r"[^\s\S]",
])  # fmt: skip
def test_an_example_is_given_up_before_it_gets_long(pattern: str) -> None:
    assert example(pattern, by_python) is None


def test_an_example_is_the_shortest_of_the_alternatives() -> None:
    assert example("(aaa|bb|c{4})(?:d|e)[^a-z]{2}", by_python) == "bbdAA"
    assert example("(?:){5000}x", by_python) == "x"


def test_a_pattern_that_ends_within_an_escape_is_refused() -> None:
    """The compiler would take it without its last backslash."""
    assert accepts(compiled(regex=r"a\\"), "a\\")
    assert refusal(regex="a\\").startswith("regex: ends within an escape")
    for schema in ({"pattern": "a\\"}, {"patternProperties": {"\\\\\\": {}}}):
        assert "at /items: a pattern ends within an escape" in refusal(schema={"items": schema})


def test_long_patterns_are_read_in_one_pass() -> None:
    for part in ("[", "[^", "[a\\", "(", "\\", "[[:alpha:]", "[a-", "{1,"):
        pattern = part * (29_999 // len(part))
        assert rust_pattern(pattern)
        assert example(pattern, by_python) is None
        refusal(regex=pattern)


def test_look_around() -> None:
    for pattern in ("(?=a)b", r"\\(?!a)", "a(?<=b)", "(?<!b)"):
        assert has_look_around(pattern)
    for pattern in (r"\(?=a", "(?<n>a)"):
        assert not has_look_around(pattern)


def test_control_characters() -> None:
    """The compiler leaves out one that stands alone, so that `a\\x01` would be "a". A range is followed."""
    for pattern in (
        "a\x00",
        r"\x01",
        r"[\x1F]",
        r"\v",
        r"\\\a",
        r"\u0007",
        r"\u{1f}",
        r"\x{007}",
        r"[\x00-\x07]",
    ):
        assert has_control(pattern), pattern
    for pattern in ("a\t", r"\x09\n\r\f", r"\\v", r"\\x01", r"[^\x00-\x1F]", r"[\u0000-\u001f]", r"\x41"):
        assert not has_control(pattern), pattern
    grammar = compiled(schema={"type": "string", "pattern": r"^a[\x00-\x1f]b$"})
    assert accepts(grammar, r'"a\tb"')
    assert not accepts(grammar, '"ab"')


def test_a_posix_class_in_a_schema_is_refused_with_the_way_out() -> None:
    """JSON Schema takes it literally, which nobody means."""
    for pattern in ("^[[:digit:]]+$", "[[:alpha:]]{2}", "[[:^space:]]"):
        message = refusal(schema={"type": "string", "pattern": pattern})
        assert "reads '[[:" in message
        assert message.endswith("as single characters; write [0-9] or [A-Za-z]")
