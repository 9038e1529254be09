"""Writes answers that follow a grammar, without a model."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from mlx_diffusiongemma.control.completion import shortest_completion
from mlx_diffusiongemma.control.grammar import Grammar
from mlx_diffusiongemma.control.structure import Structure
from mlx_diffusiongemma.engine.constraint import Canvas, CanvasSpec, Redo
from support.grammars import STOPS, TOKENIZER, V

# From a position and a mask of the ids allowed there to the best of these ids.
Best = Callable[[int, np.ndarray], int]


class Held:
    """Calls a `Structure` as a row does: passes a review's plan to the next review and to the commit."""

    def __init__(self, grammar: Grammar):
        self.structure, self.plan = Structure(grammar), None
        self.walks = self.repairs = 0

    @property
    def finished(self) -> bool:
        return self.structure.finished

    def review(self, ids: list[int], start: int, remaining: int, best: Best) -> list[int] | None:
        verdict = self.structure.review_from(self._canvas(ids, remaining), start, best)
        self.plan = verdict.plan
        self.walks += 1
        self.repairs += isinstance(verdict, Redo)
        return verdict.prefix if isinstance(verdict, Redo) else None

    def commit(self, ids: list[int], start: int) -> None:
        self.structure.commit_from(self._canvas(ids, len(ids)), ids, start)
        self.plan = None

    def _canvas(self, ids: list[int], remaining: int) -> Canvas:
        spec = CanvasSpec(len(ids), V, tuple(STOPS), 0)
        return Canvas([], ids, remaining, spec, mean_entropy=0.0, capped=False, plan=self.plan)


class Untrained:
    """Stands in for a model. It writes random tokens, of which a share `sense` is plausible in JSON."""

    def __init__(self, seed: int, sense: float = 0.5):
        self.random, self.sense = np.random.default_rng(seed), sense

    def canvas(self, length: int) -> list[int]:
        ids = self.random.integers(0, V, length)
        plausible = self.random.choice(TOKENIZER.encode('", "a": 1}]\\[{"'), length)
        return np.where(self.random.random(length) < self.sense, plausible, ids).tolist()

    def best(self, position: int, allowed: np.ndarray) -> int:
        assert allowed.shape == (V,)
        assert allowed.dtype == bool
        return int(self.random.choice(np.flatnonzero(allowed)))


def written(grammar: Grammar, model: Untrained, most: int, length: int, thought: int = 0) -> list[int]:
    """Return the ids of an answer, written canvas by canvas as a caller of `Structure` does.

    most: most ids of the answer. length: canvas length. thought: number of tokens of a thought before it.
    """
    structure = Held(grammar)
    answer: list[int] = []
    remaining, start = thought + most, thought
    while remaining > 0:
        pinned: list[int] = []
        ids = model.canvas(length)
        here = min(start, length)
        for _ in range(length + 1):
            prefix = structure.review(ids, here, remaining, model.best)
            if prefix is None:
                break
            done = any(token in STOPS for token in prefix[here:])
            assert prefix[:here] == ids[:here]
            assert len(prefix) > len(pinned) or done
            assert len(prefix) <= length
            pinned = prefix
            ids = prefix + model.canvas(length)[len(prefix) :]
            if done or len(prefix) == length:
                break
        else:
            pytest.fail("the same canvas was objected to again and again")
        ids = ids[:remaining]
        stop = next((at for at, token in enumerate(ids) if at >= here and token in STOPS), None)
        ids = ids if stop is None else ids[: stop + 1]
        structure.commit(ids, here)
        answer += ids[here:]
        remaining -= len(ids)
        start -= here
        if stop is not None:
            assert structure.finished
            assert structure.walks >= structure.repairs
            return answer
    pytest.fail(f"no stop id within {most} tokens: {TOKENIZER.decode(answer)}")


def random_answer(grammar: Grammar, seed: int, most: int) -> str:
    """Return an answer of up to `most` random allowed tokens, followed by the shortest completion."""
    random, matcher, ids = np.random.default_rng(seed), grammar.matcher(), []
    for _ in range(most):
        allowed = np.flatnonzero(grammar.allowed(matcher))
        if not allowed.size:
            break
        token = int(random.choice(allowed))
        if token in STOPS:
            return TOKENIZER.decode(ids)
        assert matcher.consume_token(token)
        ids.append(token)
    end = shortest_completion(matcher, grammar, 4000)
    assert end is not None, TOKENIZER.decode(ids)
    return text_of(ids + end)


def text_of(ids: list[int]) -> str:
    assert ids[-1] in STOPS
    assert not set(ids[:-1]) & TOKENIZER.hidden_ids
    return TOKENIZER.decode(ids[:-1])
