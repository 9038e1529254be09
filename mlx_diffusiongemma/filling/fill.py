"""`fill`: complete a template. Its literals stay unchanged, and its holes are denoised together."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import mlx.core as mx

from ..engine.batch import Batch, Prefill
from ..engine.denoise import Stepped
from ..engine.ids import check_ids
from ..engine.memory import check_fits
from ..engine.noise import checked_seed
from ..engine.row import Row, RowKey
from ..engine.settings import Settings, SettingsDict
from ..engine.state import Step
from ..engine.stats import Stats
from ..errors import InputError
from ..habits import takes_settings
from ..model import DiffusionGemma
from ..ops import FREE
from ..prompt import Prompt
from ..request import canvas_spec, check_loaded
from ..text.channels import ChannelParser
from ..text.prompts import checked_messages
from ..text.tokenizer import Tokenizer
from .holes import ROWS, Holes
from .slots import Slots
from .template import Hole, parse_template

if TYPE_CHECKING:
    from typing_extensions import Unpack


@dataclass(frozen=True)
class Filling:
    """A filled template.

    text: the template with texts in place of its holes.
    pieces: name -> text, for holes with a name.
    holes: texts of all holes, in order.
    token_ids: ids of the text, up to and including the stop id.
    repairs: number of tokens in holes that were replaced because they were not text.
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
    **settings: Unpack[SettingsDict],
) -> Filling:
    """Fill the holes of a template, and leave the rest of it unchanged.

    A hole without an exact length must fit in one canvas. Finding its length takes at most one step per
    possible length, and 16 more for each of the 4 best lengths. `stats.denoising_steps` includes these steps.

    Args:
        template: `[[12]]` is a hole of exactly 12 tokens, `[[..40]]` one of 1 to 40. `[[city]]` has a name
            and 1 to 16 tokens. `[[city:12]]` and `[[city:..40]]` have a name and a length. `\\[[` is a
            literal `[[`. A space before a hole may become part of its first token, as in ordinary text. It
            is not part of the hole's text.
        prompt: the prompt that the text answers, as in `generate`. None for a text without a prompt.
        system: a system message.
        seed: the same seed gives the same text. None chooses one.
        on_step: called with a `Step` after every denoising step, except those that find a length.
        settings: as in `generate`, but without thoughts and guards. The text must fit in
            `max_new_tokens`.

    Raises:
        InputError: the template cannot be filled, or the prompt, a setting or a size cannot be used. Raised
            before denoising.
    """
    check_loaded(model, tokenizer)
    parts = parse_template(template)
    for name in ("thinking_budget", "answer_reserve"):
        if settings.get(name) is not None:
            raise InputError(f"{name}: a filled text has no thought; leave it out")
    config = Settings.of(model.generation_config, **settings)
    spec = canvas_spec(model, tokenizer, config)
    _check_holes([part for part in parts if isinstance(part, Hole)], config, spec.length)
    slots = Slots(tokenizer, parts, spec.stop_ids, spec.vocab_size)
    most = sum(len(options[-1]) for options in slots.options) + 1  # ids, including the stop id
    prompt_ids = _context(tokenizer, prompt, system)
    _check(model, slots, config, prompt_ids, most)
    holes = Holes(slots, spec, model.config.text.final_logit_softcapping)
    key = RowKey(checked_seed(seed))
    row = Row(Prompt(prompt_ids), config.override(max_new_tokens=most), spec, key, [holes])
    stats = _run(model, row, holes, on_step)
    texts = slots.texts(holes.written)
    hole_texts = [(part, text) for part, text in zip(parts, texts, strict=True) if isinstance(part, Hole)]
    return Filling(
        text="".join(texts),
        pieces={part.name: text for part, text in hole_texts if part.name is not None},
        holes=[text for _, text in hole_texts],
        token_ids=[token for ids in holes.written for token in ids],
        seed=key.seed,
        repairs=holes.repairs,
        stats=stats,
    )


def _run(model: DiffusionGemma, row: Row, holes: Holes, on_step: Callable[[Step], None] | None) -> Stats:
    """Write the row to its end. Return its statistics."""
    mx.reset_peak_memory()
    stats = Stats(row.spec.length, len(row.prompt))
    with closing(Batch(model, [row], watched=on_step is not None).run()) as events:
        for event in events:
            if isinstance(event, Prefill):
                stats.prefill_seconds = stats.seconds = event.seconds
            elif isinstance(event, Stepped):
                if on_step is not None and event.step is not None:
                    on_step(event.step)
            else:
                (committed,) = event.committed
                stats.blocks += 1
                stats.seconds += event.seconds
                stats.denoising_steps += committed.tries.steps
                stats.denoising_seconds += committed.tries.seconds
                if holes.only_stop_is_missing:
                    holes.write_stop()
                    row.closed = True
    stats.denoising_steps += holes.look_steps
    stats.denoising_seconds += holes.look_seconds
    stats.new_tokens = sum(map(len, holes.written))
    stats.answer_tokens = stats.new_tokens - 1  # all but the stop id
    stats.peak_memory_gb = mx.get_peak_memory() / 1e9
    return stats


def _check_holes(holes: list[Hole], settings: Settings, length: int) -> None:
    """Raise `InputError` if the holes alone are too large, before their slots are made."""
    for hole in holes:
        if hole.length >= settings.max_new_tokens:
            raise InputError(
                f"template: a hole of {hole.length} tokens and the stop id do not fit in max_new_tokens "
                f"{settings.max_new_tokens}; make it smaller or raise max_new_tokens"
            )
        if not hole.exact and hole.length >= length:
            raise InputError(
                f"template: a hole of up to {hole.length} tokens must fit in one canvas of {length} "
                "with a token after it; make it smaller or give its exact length"
            )
    _check_total(sum(hole.length for hole in holes) + 1, settings)


def _check_total(most: int, settings: Settings) -> None:
    if most > settings.max_new_tokens:
        raise InputError(
            f"template: up to {most} tokens including the stop id, but max_new_tokens is "
            f"{settings.max_new_tokens}; shorten it or raise max_new_tokens"
        )


def _check(model: DiffusionGemma, slots: Slots, settings: Settings, prompt_ids: list[int], most: int) -> None:
    """Raise `InputError` if the text does not fit in max_new_tokens, the context or memory."""
    text, length = model.config.text, model.config.canvas_length
    _check_total(most, settings)
    check_ids("the prompt", prompt_ids, text.vocab_size)
    pins = [slot.pin for options in slots.options for slot in options[-1] if slot.pin != FREE]
    check_ids("the template", pins, text.vocab_size)
    if ChannelParser(slots.tokenizer, prompt_ids).in_thought:
        raise InputError("fill: the prompt ends inside a thought, and a filled text is an answer; close it")
    positions = len(prompt_ids) + most + length  # a canvas may be committed before it is full
    if positions > text.max_position_embeddings:
        raise InputError(
            f"the prompt has {len(prompt_ids)} tokens, the template up to {most}: with a last canvas "
            f"{positions} positions, but the context holds {text.max_position_embeddings}; shorten one"
        )
    is_searched = any(len(options) > 1 for options in slots.options)
    check_fits(
        model, len(prompt_ids), most + length, settings.prefill_step_size, batch=ROWS if is_searched else 1
    )


def _context(tokenizer: Tokenizer, prompt: Any, system: str | None) -> list[int]:
    if prompt is not None:
        return tokenizer.prompt_ids(prompt, system=system)
    messages = checked_messages([], system)
    if messages:
        return tokenizer.apply_chat_template(messages)
    special = tokenizer.special  # chat templates do not define a chat without messages
    opening = [token for token in (special.bos, special.turn_open) if token is not None]
    return opening + tokenizer.encode("model\n")
