"""Filling the holes of a template: its literals are pinned, its holes are denoised together.

How long a hole is whose length is open shows in what the model makes of the literal behind it: shifted by a
token too many or too few, it surprises. So each length is looked at for one step; the best are denoised to
the end, and the shortest of those whose literals surprise least is taken.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np

from ..cache import PrefixCache
from ..config.generation import GenerationConfig
from ..engine.denoise import CanvasInit, DenoisedCanvas, Step, denoise
from ..engine.memory import check_fits, wired_limit
from ..engine.noise import NoiseKey, SeededDraws, checked_seed
from ..engine.stats import Stats
from ..errors import InputError
from ..habits import takes_settings
from ..model import DiffusionGemma
from ..ops import FREE, processed_logits
from ..text.channels import ChannelParser
from ..text.prompts import checked_messages
from ..text.tokenizer import Tokenizer
from .slots import Slot, Slots
from .template import Hole, parse_template

_ROWS = 4  # lengths that are denoised together, and how many of them are denoised to the end
_SEARCH_STEPS = 16  # at most, for each of those; most that need more have the wrong length
_CLOSE = 0.2  # nats a token: mean surprises that differ by less say nothing
_LOOKAHEAD = 8  # tokens behind an open hole that its canvas should have room for
_UNFIT = 1e6
_ROUNDS = 3  # how often a hole that took a structural token is denoised again


@dataclass(frozen=True)
class Filling:
    """text: the template with the holes' texts in place. pieces: name -> text of the named holes.

    holes: the texts of all holes, in order. token_ids: up to and including the stop id. repairs: how many
    tokens of holes had to be replaced, because they were structure and no text.
    """

    text: str
    pieces: dict[str, str]
    holes: list[str]
    token_ids: list[int]
    seed: int
    repairs: int
    stats: Stats


@takes_settings
def fill(
    model: DiffusionGemma,
    tokenizer: Tokenizer,
    template: str,
    *,
    prompt: Any = None,
    system: str | None = None,
    seed: int | None = None,
    on_step: Callable[[Step], None] | None = None,
    **settings: Any,
) -> Filling:
    """Fills the holes of a text, and keeps the rest of it to the letter.

    template: `[[12]]` is a hole of exactly 12 tokens, `[[..40]]` of 1 to 40, `[[city]]` has a name and 1 to
    16 tokens, `[[city:12]]` and `[[city:..40]]` have both; `\\[[` is a literal `[[`. A space before a
    hole may become part of its first token, as words are written; the hole's text starts behind it.
    prompt: what the text answers, as in `generate`; without one the model just writes. system: a system
    message. seed: same seed, same text; None chooses one. on_step: called with a `Step` after every step of
    the canvases that are committed. settings: as in `generate`, though nothing thinks and no
    guard rolls again; the text must fit in `max_new_tokens`.

    A hole of open length costs a step for each length that it may have and up to 16 for each of 4 canvases,
    and must fit in one canvas. `stats.denoising_steps` counts all of them, a step of each canvas as one.
    Raises `InputError`, before anything is denoised, for a template that cannot be filled, or for a prompt,
    a setting or a size that cannot be used.
    """
    parts = parse_template(template)
    for name in ("thinking_budget", "answer_reserve"):
        if settings.get(name) is not None:
            raise InputError(f"{name}: a filled text has no thought; leave it out")
    config = model.generation_config.override(**settings)
    filler = _Filler(model, tokenizer, parts, config, checked_seed(seed), on_step)
    filler.check(prompt_ids := _context(tokenizer, prompt, system))
    with wired_limit():
        return filler.run(prompt_ids)


def _context(tokenizer: Tokenizer, prompt: Any, system: str | None) -> list[int]:
    if prompt is not None:
        return tokenizer.prompt_ids(prompt, system=system)
    messages = checked_messages([], system)
    if messages:
        return tokenizer.apply_chat_template(messages)
    special = tokenizer.special  # a template has nothing to say about a chat without messages
    opening = [token for token in (special.bos, special.turn_open) if token is not None]
    return opening + tokenizer.encode("model\n")


class _Filler:
    def __init__(
        self,
        model: DiffusionGemma,
        tokenizer: Tokenizer,
        parts: Sequence[str | Hole],
        settings: GenerationConfig,
        seed: int,
        on_step: Callable[[Step], None] | None,
    ):
        self.model, self.parts, self.settings = model, parts, settings
        self.seed, self.on_step, self.length = seed, on_step, model.config.canvas_length
        self.slots = Slots(tokenizer, parts, settings.eos_token_id, model.config.text.vocab_size)
        self.pad_id = tokenizer.special.pad or 0
        self.written: list[list[int]] = [[] for _ in parts]  # committed ids of each part
        self.repairs = 0

    def check(self, prompt_ids: list[int]) -> None:
        """Raises `InputError` for sizes beyond what there is."""
        settings, text = self.settings, self.model.config.text
        for part in self.parts:
            if isinstance(part, Hole) and part.length >= settings.max_new_tokens:
                raise InputError(
                    f"template: a hole of {part.length} tokens and the stop id do not fit in max_new_tokens "
                    f"{settings.max_new_tokens}; make it smaller or raise max_new_tokens"
                )
            if isinstance(part, Hole) and not part.exact and part.length >= self.length:
                raise InputError(
                    f"template: a hole of up to {part.length} tokens must fit in one canvas of {self.length} "
                    "with a token behind it; make it smaller or give its exact length"
                )
        most = sum(len(options[-1]) for options in self.slots.options) + 1
        if most > settings.max_new_tokens:
            raise InputError(
                f"template: up to {most} tokens, the stop id included, but max_new_tokens is "
                f"{settings.max_new_tokens}; shorten it or raise max_new_tokens"
            )
        pins = [slot.pin for options in self.slots.options for slot in options[-1]]
        highest = max(*prompt_ids, *pins)
        if highest >= text.vocab_size:  # MLX would read beyond the embedding table without a word
            raise InputError(
                f"the prompt or the template has token id {highest}, but the model's ids end at "
                f"{text.vocab_size - 1}"
            )
        if ChannelParser(self.slots.tokenizer, prompt_ids).in_thought:
            raise InputError(
                "fill: the prompt ends inside a thought, and a filled text is an answer; close it"
            )
        positions = len(prompt_ids) + most + self.length  # a canvas may end before it is full
        if positions > text.max_position_embeddings:
            raise InputError(
                f"the prompt has {len(prompt_ids)} tokens, the template up to {most}: with a last canvas "
                f"{positions} positions, but the context holds {text.max_position_embeddings}; shorten one"
            )
        is_searched = any(len(options) > 1 for options in self.slots.options)
        sizes = (len(prompt_ids), most + self.length, settings.prefill_step_size)
        check_fits(self.model, *sizes, batch=_ROWS if is_searched else 1)

    def run(self, prompt_ids: list[int]) -> Filling:
        self.stats = stats = Stats(self.length, len(prompt_ids))
        mx.reset_peak_memory()
        clock = time.perf_counter()
        self.cache = self.model.make_cache()
        self._encode(prompt_ids)
        stats.prefill_seconds = time.perf_counter() - clock

        window: list[Slot] = []  # what is resolved of the text and not committed yet
        for index, options in enumerate(self.slots.options):
            if (
                len(options) > 1 and len(options[-1]) < self.length
            ):  # else an exact hole, whose space goes in it
                behind = self.slots.behind(index)
                room = self.length - len(options[-1]) - min(len(behind), _LOOKAHEAD)
                if window and len(window) > room:
                    self._commit(window)
                    window = []
                window += self._chosen(window, options, behind)
            else:
                window += options[0]
            while len(window) > self.length:
                self._commit(window[: self.length])
                window = window[self.length :]
        if len(window) == self.length:  # nothing would be left to denoise beside the stop id
            self._commit(window, is_end=True)
            self._write([self.slots.stop], [self.slots.stop.pin])
        else:
            self._commit([*window, self.slots.stop], is_end=True)
        stats.seconds = time.perf_counter() - clock
        stats.peak_memory_gb = mx.get_peak_memory() / 1e9
        return self._filling()

    def _row(self, slots: Sequence[Slot]) -> list[int]:
        """Pins of a canvas that begins with `slots`: behind the stop id pads, else nothing."""
        slots = slots[: self.length]
        rest = self.pad_id if slots[-1] == self.slots.stop else FREE
        return [slot.pin for slot in slots] + [rest] * (self.length - len(slots))

    def _chosen(self, window: list[Slot], options: list[list[Slot]], behind: list[Slot]) -> list[Slot]:
        """The option whose literals surprise least; the shortest of those that are close."""
        # What stands behind may come again in a longer hole, and surprise as little there. An end may not,
        # and a model finds nearly any end plausible once it is there.
        ends = [slot for slot in behind if slot.pin != FREE] == [self.slots.stop]
        close = 0.0 if ends else _CLOSE
        order = list(range(len(options)))
        if len(order) > _ROWS:
            groups = [order[start : start + _ROWS] for start in order[::_ROWS]]
            looks = [self._surprises(window, [options[i] for i in group], behind, 1) for group in groups]
            order = sorted(_ranked([value for look in looks for value in look], close)[:_ROWS])
        values = self._surprises(window, [options[i] for i in order], behind, _SEARCH_STEPS)
        return options[order[_ranked(values, close)[0]]]

    def _surprises(
        self,
        window: list[Slot],
        options: list[list[Slot]],
        behind: list[Slot],
        steps: int,
    ) -> list[float]:
        """For each option, the mean -log p (nats) of the literals behind the hole, after at most `steps`.

        After more than one, a hole that would have to be repaired is worse than all that need not.
        """
        rows = np.array([self._row([*window, *option, *behind]) for option in options])
        canvas = self._denoise(rows, self.cache.take([0] * len(rows)), steps=steps)
        assert canvas.logits is not None
        logits = canvas.logits.reshape(*rows.shape, -1)
        values = []
        for row, (option, ids) in enumerate(zip(options, np.array(canvas.ids), strict=True)):
            start, end = len(window), len(window) + len(option)
            seen = behind[: self.length - end]
            places = end + np.flatnonzero(rows[row, end : end + len(seen)] != FREE)
            if not places.size:  # nothing is known behind it: the hole must speak for itself
                places = np.arange(start, end)
            values.append(self._surprise(logits[row, mx.array(places)], ids[places]))
            if steps > 1 and self.slots.unfit(option, ids[start:end].tolist()):
                values[-1] += _UNFIT
        return values

    def _surprise(self, logits: mx.array, ids: np.ndarray) -> float:
        """The mean -log p of `ids [P]` under raw `logits [P, V]`."""
        scores = processed_logits(logits, 1.0, self.model.config.text.final_logit_softcapping)
        own = mx.take_along_axis(scores, mx.array(ids)[:, None], axis=1)[:, 0]
        return float(np.array(mx.logsumexp(scores, axis=1) - own).mean())

    def _commit(self, slots: list[Slot], is_end: bool = False) -> None:
        """Denoises the canvas that begins with `slots`, and keeps what it holds there."""
        pins = self._row(slots)
        for attempt in range(_ROUNDS + 1):
            canvas = self._denoise(np.array([pins]), self.cache, attempt, self.on_step)
            ids: list[int] = np.array(canvas.ids)[0, : len(slots)].tolist()
            places = self.slots.unfit(slots, ids)
            if not places:
                break
            assert canvas.logits is not None
            scores = np.array(canvas.logits[mx.array(places)].astype(mx.float32))
            for place, row in zip(places, scores, strict=True):
                ids[place] = pins[place] = self.slots.best(row, slots[place])
            self.repairs += len(places)
        self.stats.blocks += 1
        self._write(slots, ids)
        if not is_end:
            self._encode(ids)

    def _write(self, slots: Sequence[Slot], ids: Sequence[int]) -> None:
        for slot, token in zip(slots, ids, strict=True):
            self.written[slot.part].append(token)
        self.stats.new_tokens += len(ids)
        self.stats.answer_tokens += sum(slot != self.slots.stop for slot in slots)

    def _denoise(
        self,
        rows: np.ndarray,
        cache: PrefixCache,
        attempt: int = 0,
        on_step: Callable[[Step], None] | None = None,
        steps: int | None = None,
    ) -> DenoisedCanvas:
        """Canvases with pins `rows [B, C]`, all from the same noise; at most `steps`, those with the last
        temperatures.
        """
        if steps is not None:
            steps = min(steps, self.settings.max_denoising_steps)
        keys = [NoiseKey(self.seed, 0, self.stats.blocks, attempt)] * len(rows)
        draws = SeededDraws(keys, self.length, self.model.config.text.vocab_size)
        start = CanvasInit(pins=mx.array(rows.astype(np.int32)), steps=steps)
        started = time.perf_counter()
        canvas = denoise(self.model, cache, self.settings, draws, on_step, start, keep_logits=True)
        self.stats.denoising_seconds += time.perf_counter() - started
        self.stats.denoising_steps += sum(canvas.steps)
        return canvas

    def _encode(self, ids: list[int]) -> None:
        self.model.encode(mx.array([ids], dtype=mx.int32), self.cache, self.settings.prefill_step_size)

    def _filling(self) -> Filling:
        texts = self.slots.texts(self.written)
        holes = [(part, text) for part, text in zip(self.parts, texts, strict=True) if isinstance(part, Hole)]
        return Filling(
            text="".join(texts),
            pieces={part.name: text for part, text in holes if part.name is not None},
            holes=[text for _, text in holes],
            token_ids=[token for ids in self.written for token in ids],
            seed=self.seed,
            repairs=self.repairs,
            stats=self.stats,
        )


def _ranked(values: Sequence[float], close: float) -> list[int]:
    """Indices, the least first; those that are `close` to it come in their own order."""
    bound = min(values) + close
    return sorted(range(len(values)), key=lambda index: (max(values[index], bound), index))
