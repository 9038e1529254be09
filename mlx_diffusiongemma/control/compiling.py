"""Compile the grammar of an answer: a JSON Schema, a regular expression, Lark, or a list of choices.

`llguidance` compiles all four and follows them token by token. Before any denoising, this module finds an
answer that matches, or raises an error.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from llguidance import LLMatcher

from ..console.messages import one_line
from ..errors import InputError
from ..text.tokenizer import Tokenizer
from .completion import shortest_completion
from .grammar import Grammar
from .patterns import ends_in_escape, example
from .schema import checked_schema, lark_of
from .vocabulary import Vocabulary, vocabulary_of

_Spelled = tuple[tuple[int, ...], ...]  # ids of several texts

_MOST_CHOICES, _MOST_TEXT = 20_000, {"regex": 10_000, "grammar": 200_000, "choices": 1_000_000}
_PARTED = 10_000  # literals are looked for in this many characters of a pattern
_MOST_TOKENS = 16_384  # maximum length of a grammar's shortest answer; more would take too long

# Reports of the compiler that a caller would not understand -> plainer words.
_REASONS = {
    "Failed to generate regex for": "minimum or maximum is above 9e17, which cannot be enforced; lower it",
    "min/maxProperties only supported": "minProperties and maxProperties cannot be enforced beside optional "
    "properties; make them required, or take the limits out",
    "circular references with sibling keys": "a $ref that leads back to itself has other keywords beside it; "
    "move them to where it leads",
    "recursion limit exceeded": "nested too deeply, or a long chain of references; make it flatter",
    "stack level exceeded": "nested too deeply, or a long chain of references; make it flatter",
}


@dataclass(frozen=True)
class _Source:
    """A grammar before it is compiled.

    lark: the grammar in Lark's syntax.
    literal: the source, which contains all literals of the grammar.
    patterns: regular expressions in the source.
    texts: all texts that match, if they are known.
    values: texts that an answer may have as JSON strings. Empty for sources other than a schema.
    warnings: parts of the source that are not enforced, one line each.
    explain: function from a report of the compiler to an error message. None for `_in_short`.
    """

    lark: str
    literal: str
    patterns: Sequence[str] = ()
    texts: Sequence[str] = ()
    values: Sequence[str] = ()
    warnings: tuple[str, ...] = ()
    explain: Callable[[str], str] | None = None

    def matcher(self, vocabulary: Vocabulary) -> LLMatcher:
        """Compile the grammar. Return a matcher at its start, which may be in an error state.

        Where only one text can follow, the compiler usually allows only the ids into which the tokenizer
        encodes it. If a text has the name of a special token, these ids do not spell it. Then all ids that
        spell the text are allowed.
        """
        plain = self.literal.replace("\\", "")
        forced = all(vocabulary.spells(text) for text in {self.literal, plain})
        header = "" if forced else '%llguidance {"no_forcing": true}\n'
        return LLMatcher(vocabulary.backend, header + self.lark, log_level=0)


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
    """Compile the grammar that the answer must match. Return None if no grammar is given.

    Args:
        vocab_size: vocabulary size of the model.
        schema: a JSON Schema (a dict, True or False), or a type that pydantic describes.
        regex: a pattern for the whole answer.
        grammar: a grammar in Lark's syntax.
        choices: texts, of which the answer is one.

    Raises:
        InputError: more than one grammar is given, the grammar cannot be compiled or enforced, or no answer
            that matches it was found.
    """
    given = {"schema": schema, "regex": regex, "grammar": grammar, "choices": choices}
    names = [name for name, value in given.items() if value is not None]
    if len(names) > 1:
        raise InputError(f"{' and '.join(names)}: an answer is held to one of these; leave the others out")
    if not names:
        return None
    name = names[0]
    vocabulary = vocabulary_of(tokenizer, vocab_size, stop_ids)
    if name == "schema":
        source = _schema(schema)
    else:
        source = _choices(choices) if name == "choices" else _text(name, given[name])
    begin = source.matcher(vocabulary)
    if begin.is_error():
        raise InputError(f"{name}: {(source.explain or _in_short)(begin.get_error())}")
    hints, values = _hints(vocabulary, source)
    compiled = Grammar(vocabulary, begin, hints, values, warnings=source.warnings)
    shortest = _shortest_text(compiled, source.texts) or shortest_completion(begin, compiled, _MOST_TOKENS)
    if shortest is None:
        if _is_crowded(compiled):
            raise InputError(f"{name}: allows too many things in one place (2000 at most); leave some out")
        raise InputError(f"{name}: found nothing short that matches it; does it contradict itself? loosen it")
    matcher = compiled.matcher()
    compiled.allowed(matcher)
    if not matcher.consume_tokens(shortest[:-1]):  # the compiler reads a grammar lazily, and may give up
        report = matcher.get_error().partition("\n")[0]
        raise InputError(f"{name}: too complex to follow ({one_line(report, 80)}); repeat less, or loosen it")
    return replace(compiled, shortest=tuple(shortest))


def _schema(value: Any) -> _Source:
    schema = checked_schema(value)

    def explain(report: str) -> str:
        place, report = schema.located(report)
        known = next((words for start, words in _REASONS.items() if start in report), None)
        reason = known or _in_short(report.partition("failed to compile JSON schema: ")[2] or report)
        return f"{place}: {reason}"

    return _Source(
        lark_of(schema.plain),
        json.dumps(schema.plain, ensure_ascii=False),
        schema.patterns,
        values=["", *schema.examples],
        warnings=schema.warnings,
        explain=explain,
    )


def _text(name: str, value: Any) -> _Source:
    text = _checked_text(name, value)
    if not text:
        raise InputError(f"{name}: empty; an answer is never empty")
    if len(text) > _MOST_TEXT[name]:
        raise InputError(f"{name}: {len(text)} characters, more than {_MOST_TEXT[name]}; make it shorter")
    if name == "grammar":
        return _Source(text, text, [text])
    if ends_in_escape(text):
        raise InputError("regex: ends within an escape; write two backslashes for one")
    (compiled,) = json.loads(LLMatcher.grammar_from_regex(text))["grammars"]
    # A place in the compiled Lark text would not help a caller.
    return _Source(compiled["lark_grammar"], text, [text], explain=partial(_in_short, place=False))


def _choices(choices: Any) -> _Source:
    if isinstance(choices, str | bytes) or not isinstance(choices, Sequence):
        raise InputError(f"choices: found {type(choices).__name__}; give a list of texts")
    if not choices:
        raise InputError("choices: empty; give at least one text")
    if len(choices) > _MOST_CHOICES:
        raise InputError(f"choices: found {len(choices)}, more than {_MOST_CHOICES}; give fewer")
    if sum(len(choice) for choice in choices if isinstance(choice, str)) > _MOST_TEXT["choices"]:
        raise InputError(f"choices: more than {_MOST_TEXT['choices']} characters together; make them shorter")
    known: set[str] = set()
    for index, choice in enumerate(choices):
        if not isinstance(choice, str):
            raise InputError(f"choices: item {index} is {type(choice).__name__}; every choice is a text")
        if not choice:
            raise InputError(f"choices: item {index} is empty; an answer is never empty")
        if choice in known:
            raise InputError(f"choices: '{one_line(choice, 40)}' is there twice; keep one of them")
        known.add(_checked_text(f"choices: item {index}", choice))
    # One terminal, because the compiler allows only 2000 rules in one place, and follows each of them.
    return _Source(
        "start: TEXT\nTEXT: " + " | ".join(map(json.dumps, choices)), "\n".join(choices), texts=list(choices)
    )


def _checked_text(name: str, text: Any) -> str:
    if not isinstance(text, str):
        raise InputError(f"{name}: found {type(text).__name__}; give a string")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(f"{name}: not valid Unicode ({error.reason}); decode it as UTF-8") from None
    return text


def _in_short(report: str, place: bool = True) -> str:
    """Return the problem in a report of the compiler as one line. place: also give its place."""
    lines = [line.strip() for line in report.splitlines() if line.strip()]
    reasons = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    first = re.sub(r"^(?:at )?(\d+)\((\d+)\): ", r"line \1, column \2: ", lines[0] if lines else "not usable")
    first = first.removesuffix(" regex parse error:").removesuffix("regex parse error:").rstrip(" :")
    where = [first[:120]] if place or not reasons else []
    text = ": ".join(part for part in (*where, *reasons) if part)
    return f"{text[:200]}; correct it"


def _is_crowded(grammar: Grammar) -> bool:
    """Return True if an answer can begin in more ways than the compiler can follow."""
    matcher = grammar.matcher()
    tokens = matcher.compute_ff_tokens() or np.flatnonzero(grammar.allowed(matcher))[:1].tolist()
    return not matcher.consume_tokens(tokens) and "Current row has" in matcher.get_error()


def _shortest_text(grammar: Grammar, texts: Sequence[str]) -> list[int] | None:
    """Return ids of the shortest of `texts` and a stop id. None without texts or if the ids do not match."""
    if not texts:
        return None
    ids, matcher = grammar.vocabulary.spell(min(texts, key=len).encode()), grammar.matcher()
    fits = grammar.vocabulary.are_text(ids) and matcher.consume_tokens(ids) and matcher.is_accepting()
    return [*ids, grammar.vocabulary.stop] if fits else None


def _hints(vocabulary: Vocabulary, source: _Source) -> tuple[_Spelled, _Spelled]:
    """Return ids of texts that may bring an answer closer to its end, for `shortest_completion`.

    The first tuple has literals and examples of patterns, the second JSON strings. The grammar itself may not
    show these texts. For example, `.*end` allows any token, and does not say that "end" leads to the end.
    """
    compiled: dict[str, LLMatcher] = {}

    def matches(atom: str, character: str) -> bool:
        if atom not in compiled:
            compiled[atom] = LLMatcher(vocabulary.backend, LLMatcher.grammar_from_regex(atom), log_level=0)
        ids = vocabulary.spell(character.encode())
        return not compiled[atom].is_error() and compiled[atom].validate_tokens(ids) == len(ids)

    words, texts = dict[str, None](), list(source.values)
    for pattern in source.patterns[:64]:
        whole = example(pattern, matches)
        if whole:  # as plain text, and as in a JSON string
            words |= {whole: None, json.dumps(whole, ensure_ascii=False)[1:-1]: None}
            texts += [whole] if source.values else []
        # Literals of a pattern are separated by sets, repetitions, classes, assertions and operators.
        parted = re.sub(r"(?<!\\)(\[[^]]*\]|\{[\d,]*\})|\\[A-Za-z]", "\0", pattern[:_PARTED])
        parted = re.sub(r'(?<!\\)[.^$*+?()|/"]', "\0", parted).replace("\\", "")
        literals = [part for part in parted.split("\0") if part]
        words |= dict.fromkeys([*literals[:24], *re.findall(r"\w\w+", parted)[:24]])
    texts = [
        json.dumps(text, ensure_ascii=False) for text in sorted(texts, key=lambda text: (len(text), text))
    ]
    values = [*texts, *(text[1:] for text in texts if len(text) > 2)]  # also without the first quote
    return _spelled(vocabulary, list(words)), _spelled(vocabulary, values)


def _spelled(vocabulary: Vocabulary, texts: Sequence[str]) -> _Spelled:
    """Return the ids of the first 64 of `texts`. Texts that become special tokens are left out."""
    spelled = (tuple(vocabulary.spell(text.encode())) for text in texts[:64])
    return tuple(ids for ids in spelled if vocabulary.are_text(ids))
