"""Compile the grammar of an answer: a JSON Schema, a regular expression, Lark, or a list of choices.

`llguidance` compiles all four and follows them token by token. This module proves before any denoising that
something matches.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ..errors import InputError
from ..text.tokenizer import Tokenizer
from .completion import shortest_completion
from .examples import example
from .grammar import Grammar
from .sources import source_of
from .vocabulary import Vocabulary, vocabulary_of

# Characters of a pattern in which literals are looked for.
_PARTED = 10_000

# What a grammar may take at the least; nobody waits for more canvases than that.
_MOST_TOKENS = 16_384


def compile_grammar(
    tokenizer: Tokenizer,
    vocab_size: int,
    stop_ids: Sequence[int],
    *,
    schema: Any = None,
    regex: str | None = None,
    grammar: str | None = None,
    choices: Sequence[str] | None = None,
) -> Grammar | None:
    """Compile what the answer is held to; None when nothing is given.

    schema: a JSON Schema (a dict, True or False), or a type that pydantic describes. regex: the whole answer
    matches it. grammar: in Lark's syntax. choices: texts, of which the answer is one. vocab_size: of the
    model.
    Raises InputError when more than one is given, and for what cannot be enforced, compiled or matched.
    """
    given = {"schema": schema, "regex": regex, "grammar": grammar, "choices": choices}
    names = [name for name, value in given.items() if value is not None]
    if len(names) > 1:
        raise InputError(f"{' and '.join(names)}: an answer is held to one of these; leave the others out")
    if not names:
        return None
    name = names[0]
    vocabulary = vocabulary_of(tokenizer, vocab_size, stop_ids)
    source = source_of(name, given[name], vocabulary)
    begin = source.matcher(vocabulary)
    if begin.is_error():
        raise InputError(f"{name}: {source.explain(begin.get_error())}")
    hints, values = _hints(vocabulary, source.patterns), _spelled(vocabulary, source.values)
    compiled = Grammar(vocabulary, begin, hints, values, warnings=source.warnings)
    shortest = _shortest_text(compiled, source.texts) or shortest_completion(begin, compiled, _MOST_TOKENS)
    if shortest is None:
        if _is_crowded(compiled):
            raise InputError(f"{name}: allows too many things in one place (2000 at most); leave some out")
        raise InputError(f"{name}: found nothing short that matches it; does it contradict itself? loosen it")
    return replace(compiled, shortest=tuple(shortest))


def _is_crowded(grammar: Grammar) -> bool:
    """True if the compiler gives up at the beginning of an answer for the number of its alternatives."""
    matcher = grammar.matcher()
    tokens = matcher.compute_ff_tokens() or np.flatnonzero(grammar.allowed(matcher))[:1].tolist()
    return not matcher.consume_tokens(tokens) and "Current row has" in matcher.get_error()


def _shortest_text(grammar: Grammar, texts: Sequence[str]) -> list[int] | None:
    """Ids of the shortest of `texts` and a stop id; None where the tokenizer does not spell it."""
    if not texts:
        return None
    ids, matcher = grammar.vocabulary.spell(min(texts, key=len).encode()), grammar.matcher()
    fits = grammar.vocabulary.are_text(ids) and matcher.consume_tokens(ids) and matcher.is_accepting()
    return [*ids, grammar.vocabulary.stop] if fits else None


def _hints(vocabulary: Vocabulary, sources: Sequence[str]) -> tuple[tuple[int, ...], ...]:
    """Literals of patterns: the masks of `.*end` do not say that an "e" gets closer to its end."""
    words: dict[str, None] = {}
    for source in sources:
        whole = example(source)
        if whole:  # as it is, and as it stands in JSON
            words |= {whole: None, json.dumps(whole, ensure_ascii=False)[1:-1]: None}
        # What parts the literals of a pattern: sets, repetitions, classes, assertions, operators.
        parted = re.sub(r"(?<!\\)(\[[^]]*\]|\{[\d,]*\})|\\[A-Za-z]", "\0", source[:_PARTED])
        parted = re.sub(r'(?<!\\)[.^$*+?()|/"]', "\0", parted).replace("\\", "")
        literals = [part for part in parted.split("\0") if part]
        words |= dict.fromkeys([*literals[:24], *re.findall(r"\w\w+", parted)[:24]])
    return _spelled(vocabulary, list(words))


def _spelled(vocabulary: Vocabulary, texts: Sequence[str]) -> tuple[tuple[int, ...], ...]:
    """The ids of some of `texts`, without those that the tokenizer does not spell."""
    spelled = (tuple(vocabulary.spell(text.encode())) for text in texts[:64])
    return tuple(ids for ids in spelled if vocabulary.are_text(ids))
