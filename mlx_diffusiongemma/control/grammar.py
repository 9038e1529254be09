"""What an answer is held to: a JSON Schema, a regular expression, a Lark grammar or a list of choices.

`llguidance` compiles all four and follows them token by token. This module checks what the caller gave,
refuses what could not be kept, and proves before any denoising that something matches.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import product
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
from llguidance import LLMatcher, LLTokenizer

from ..errors import InputError, TokenizerError
from ..prompts import one_line
from ..tokenizer import Tokenizer
from .completion import shortest_completion
from .examples import example
from .schema import checked_schema

# White space after a comma and a colon only, and at most one: a model in doubt could otherwise write blanks
# for ever. `{"a": 1, "b": 2}` and `{"a":1,"b":2}` both fit.
_JSON = {"whitespace_flexible": False, "item_separator": ", ?", "key_separator": ": ?"}

# What a grammar may take at the least; nobody waits for more canvases than that.
_MOST_TOKENS = 16_384


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """The tokens as grammars see them; one per tokenizer, size and stop ids.

    size: of the model's vocabulary, which may exceed the tokenizer's. text: bool `[size]`, the ids that spell
    text. stop_ids: allowed where a grammar is complete. stop: the one that is written there.
    """

    backend: LLTokenizer
    size: int
    text: np.ndarray
    stop_ids: frozenset[int]
    stop: int

    def spelling(self, ids: Sequence[int]) -> bytes:
        """What `ids` spell."""
        return bytes(self.backend.decode_bytes(list(ids)))

    def spell(self, text: bytes) -> list[int]:
        """Ids that spell `text`, as the tokenizer would."""
        return [int(token) for token in self.backend.tokenize_bytes(text)]

    @cached_property
    def letters(self) -> np.ndarray:
        """int `[n]`: the tokens of single small letters."""
        return self.singles(bytes([byte]) for byte in range(ord("a"), ord("z") + 1))

    @cached_property
    def few(self) -> np.ndarray:
        """int `[n]`: tokens that reach the end of most texts: closing marks, other marks, some letters."""
        closing = [
            "".join(marks).encode() for count in (1, 2, 3, 4) for marks in product('"]})', repeat=count)
        ]
        spelled = [text for text in closing if text.count(b'"') < 2]
        spelled += [b" " * 2**count for count in range(4, -1, -1)]
        spelled += [bytes([byte]) for byte in range(32, 127) if not chr(byte).isalnum()]
        return self.singles([*spelled, b"\n", b"a", b"A", b"0", b"1"])

    @cached_property
    def single_bytes(self) -> np.ndarray:
        """int `[n]`: the tokens of single bytes."""
        return self.singles(bytes([byte]) for byte in range(256))

    def singles(self, spelled: Iterable[bytes]) -> np.ndarray:
        """int `[n]`: those of the spellings that one token has."""
        ids: dict[int, None] = {}
        for data in spelled:
            found = self.backend.greedy_tokenize(data.decode()) if data.isascii() else self.spell(data)
            if len(found) == 1 and self.are_text(found):
                ids[int(found[0])] = None
        return np.array(list(ids), dtype=np.int64)

    def are_text(self, ids: Sequence[int]) -> bool:
        """Whether all of `ids` spell text; llguidance knows nothing of which tokens are hidden."""
        return all(token < self.size and self.text[token] for token in ids)


@dataclass(frozen=True, eq=False)
class Grammar:
    """A compiled grammar, to be shared by all rows that are held to it.

    hints: literal stretches of its source, as ids, to try where nearly anything is allowed.
    shortest: ids that satisfy it, ending with the stop id; few, though perhaps not the fewest.
    """

    vocabulary: Vocabulary
    begin: LLMatcher
    hints: tuple[tuple[int, ...], ...] = ()
    shortest: tuple[int, ...] = field(default=())

    def matcher(self) -> LLMatcher:
        """A matcher at the start."""
        return self.begin.deep_copy()

    def allowed(self, matcher: LLMatcher) -> np.ndarray:
        """bool `[V]`: what may come next; a stop id only where the grammar is complete."""
        vocabulary = self.vocabulary
        mask = np.frombuffer(matcher.compute_bitmask(), np.uint8)
        allowed = np.zeros(vocabulary.size, dtype=bool)
        bits = np.unpackbits(mask, bitorder="little", count=min(vocabulary.size, mask.size * 8)).view(bool)
        np.logical_and(bits, vocabulary.text[: bits.size], out=allowed[: bits.size])
        if matcher.is_accepting():
            allowed[list(vocabulary.stop_ids)] = True
        return allowed


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
    """What the answer is held to; None when nothing is given.

    schema: a JSON Schema (dict) or a pydantic model class. regex: the whole answer matches it. grammar: in
    Lark's syntax. choices: texts, of which the answer is one. vocab_size: of the model.
    Raises InputError when more than one is given, and for what cannot be kept, compiled or matched.
    """
    given = {"schema": schema, "regex": regex, "grammar": grammar, "choices": choices}
    names = [name for name, value in given.items() if value is not None]
    if len(names) > 1:
        raise InputError(f"{' and '.join(names)}: an answer is held to one of these; leave the others out")
    if not names:
        return None
    name = names[0]
    if name == "schema":
        plain, sources = checked_schema(schema)
        source = LLMatcher.grammar_from_json_schema(json.dumps({**plain, "x-guidance": _JSON}))
    elif name == "choices":
        source, sources = LLMatcher.grammar_from_lark(_any_of(choices)), []
    else:
        text = _checked_text(name, given[name])
        if not text:
            raise InputError(f"{name}: empty; an answer is never empty")
        compiler = LLMatcher.grammar_from_regex if name == "regex" else LLMatcher.grammar_from_lark
        source, sources = compiler(text), [text]

    vocabulary = _vocabulary(tokenizer, vocab_size, stop_ids)
    begin = LLMatcher(vocabulary.backend, source, log_level=0)
    if begin.is_error():
        raise InputError(f"{name}: {_condensed(begin.get_error())}")
    compiled = Grammar(vocabulary, begin, _hints(vocabulary, sources))
    shortest = shortest_completion(begin, compiled, _MOST_TOKENS)
    if shortest is None:
        raise InputError(f"{name}: found nothing short that matches it; does it contradict itself? loosen it")
    return Grammar(vocabulary, begin, compiled.hints, tuple(shortest))


def _any_of(choices: Any) -> str:
    """Choices as a Lark grammar."""
    if isinstance(choices, str | bytes) or not isinstance(choices, Sequence):
        raise InputError(f"choices: found {type(choices).__name__}; give a list of texts")
    if not choices:
        raise InputError("choices: empty; give at least one text")
    for index, choice in enumerate(choices):
        if not isinstance(choice, str):
            raise InputError(f"choices: item {index} is {type(choice).__name__}; every choice is a text")
        if not choice:
            raise InputError(f"choices: item {index} is empty; an answer is never empty")
        if choice in choices[:index]:
            raise InputError(
                f"choices: {one_line(ValueError(choice))[:40]!r} is there twice; keep one of them"
            )
        _checked_text(f"choices: item {index}", choice)
    return "start: " + " | ".join(json.dumps(choice) for choice in choices)


def _checked_text(name: str, text: Any) -> str:
    if not isinstance(text, str):
        raise InputError(f"{name}: found {type(text).__name__}; give a string")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(f"{name}: not valid Unicode ({error.reason}); decode it as UTF-8") from None
    return text


def _condensed(error: str) -> str:
    """The compiler's report on one line: what is wrong and where, without the drawing below it."""
    lines = [line.strip() for line in error.splitlines() if line.strip()]
    reasons = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    first = re.sub(r"^(?:at )?(\d+)\((\d+)\): ", r"line \1, column \2: ", lines[0] if lines else "not usable")
    first = first.removesuffix(" regex parse error:").removesuffix("regex parse error:").rstrip(" :")
    text = ": ".join(part for part in (first[:120], *reasons) if part)
    return f"{text[:200]}; correct it"


def _hints(vocabulary: Vocabulary, sources: Sequence[str]) -> tuple[tuple[int, ...], ...]:
    """Literals of patterns: the masks of `.*end` do not say that an "e" gets closer to its end."""
    words: dict[str, None] = {}
    for source in sources:
        whole = example(source)
        if whole:  # as it is, and as it stands in JSON
            words |= {whole: None, json.dumps(whole, ensure_ascii=False)[1:-1]: None}
        # What parts the literals of a pattern: sets, repetitions, classes, assertions, operators.
        parted = re.sub(r"(?<!\\)(\[[^]]*\]|\{[\d,]*\})|\\[A-Za-z]", "\0", source)
        parted = re.sub(r'(?<!\\)[.^$*+?()|/"]', "\0", parted).replace("\\", "")
        literals = [part for part in parted.split("\0") if part]
        words |= dict.fromkeys([*literals[:24], *re.findall(r"\w\w+", parted)[:24]])
    spelled = (tuple(vocabulary.spell(word.encode())) for word in list(words)[:64])
    return tuple(ids for ids in spelled if vocabulary.are_text(ids))


# Building one takes long where there are many tokens.
_vocabularies: WeakKeyDictionary[Tokenizer, dict[tuple[int, ...], Vocabulary]] = WeakKeyDictionary()


def _vocabulary(tokenizer: Tokenizer, vocab_size: int, stop_ids: Sequence[int]) -> Vocabulary:
    known = _vocabularies.setdefault(tokenizer, {})
    key = (vocab_size, *stop_ids)
    if key not in known:
        try:
            backend = LLTokenizer(
                tokenizer.to_json(), n_vocab=max(vocab_size, tokenizer.vocab_size), eos_token=list(stop_ids)
            )
        except ValueError as error:
            raise TokenizerError(f"tokenizer: llguidance cannot use it ({one_line(error)})") from error
        text = np.arange(vocab_size) < tokenizer.vocab_size
        # What the tokenizer hides would be missing in the text of the answer.
        hidden = [token for token in (*tokenizer.hidden_ids, *stop_ids) if token < vocab_size]
        text[hidden] = False
        turn_close = tokenizer.special.turn_close
        stop = turn_close if turn_close is not None and turn_close in stop_ids else stop_ids[0]
        known[key] = Vocabulary(backend, vocab_size, text, frozenset(stop_ids), stop)
    return known[key]
