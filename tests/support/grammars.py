"""Compiles grammars over the demo's tokens and tries texts on them."""

from __future__ import annotations

from typing import Any

import pytest

from mlx_diffusiongemma.checkpoint.loading import resolve
from mlx_diffusiongemma.control.compiling import compile_grammar
from mlx_diffusiongemma.control.grammar import Grammar
from mlx_diffusiongemma.errors import InputError
from mlx_diffusiongemma.text.tokenizer import Tokenizer

TOKENIZER = Tokenizer.load(resolve("demo"))
V, STOPS = 704, (1, 106, 50)
BYTES = {value: token for token, value in TOKENIZER.byte_values.items()}


def compiled(**what: Any) -> Grammar:
    """Return the grammar of the given keyword: schema, regex, grammar or choices."""
    grammar = compile_grammar(TOKENIZER, V, STOPS, **what)
    assert grammar is not None
    return grammar


def accepts(grammar: Grammar, text: str) -> bool:
    """True if `grammar` accepts `text` as a complete answer."""
    matcher, vocabulary = grammar.matcher(), grammar.vocabulary
    ids = (
        vocabulary.spell(text.encode())
        if vocabulary.spells(text)
        else [BYTES[byte] for byte in text.encode()]
    )
    return matcher.validate_tokens(ids) == len(ids) and matcher.consume_tokens(ids) and matcher.is_accepting()


def shortest(grammar: Grammar) -> str:
    """Return the text of `grammar.shortest`, the shortest answer that was found."""
    assert grammar.shortest[-1] == grammar.vocabulary.stop
    assert grammar.vocabulary.are_text(grammar.shortest[:-1])
    return TOKENIZER.decode(grammar.shortest[:-1])


def refusal(**what: Any) -> str:
    """Return the error message for a keyword that cannot be compiled. Assert that it is one short line."""
    with pytest.raises(InputError) as caught:
        compile_grammar(TOKENIZER, V, STOPS, **what)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 260
    assert "coerce" not in message  # an option of the compiler
    assert "$defs/0" not in message  # a name that this package made up
    assert message.startswith(next(iter(what)))
    return message
