"""`generate` and `generate_batch`: from a prompt to a `Generation`, which the caller iterates by block."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from .config.ranges import in_range
from .control.pins import Pins
from .engine.noise import DrawsOf, checked_seed
from .engine.prompt_cache import PromptCache
from .engine.row import RowKey
from .engine.settings import SettingsDict
from .engine.state import Step
from .errors import InputError
from .habits import takes_settings
from .model import DiffusionGemma
from .request import Request
from .result import Generation
from .text.channels import ChannelParser
from .text.tokenizer import Tokenizer
from .writer import Writer

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["Generation", "generate", "generate_batch"]


@takes_settings
def generate(
    model: DiffusionGemma,
    tokenizer: Tokenizer,
    prompt: str | Sequence[Mapping[str, Any]] | Sequence[int],
    *,
    thinking: bool = False,
    system: str | None = None,
    tools: Sequence[Any] | None = None,
    images: Sequence[Any] | None = None,
    soft_tokens: int | None = None,
    seed: int | None = None,
    n: int = 1,
    candidate: int = 0,
    schema: Any = None,
    regex: str | None = None,
    grammar: str | None = None,
    choices: Sequence[str] | None = None,
    draft: str | None = None,
    noise_level: float | None = None,
    pins: Pins | None = None,
    trace: bool = False,
    on_step: Callable[[Step], None] | None = None,
    prompt_cache: PromptCache | None = None,
    draws: DrawsOf | None = None,
    timeout: float | None = None,
    allow_special_tokens: bool = False,
    **settings: Unpack[SettingsDict],
) -> Generation:
    """Prepare a generation. It runs when it is iterated or asked for a result.

    Args:
        prompt: a question, chat messages (dicts with role and content), or token ids, which are used
            unchanged.
        thinking: let the model think before it answers.
        system: a system message.
        tools: functions with type hints, or their JSON descriptions.
        images: images to put before a question: paths, PIL images, bytes of files, uint8 arrays or data URLs.
            In messages, an image is a part of the content, `{"type": "image", "image": ...}`.
        soft_tokens: maximum number of soft tokens per image: 70, 140, 280, 560 or 1120. None for the
            checkpoint's.
        seed: the same seed gives the same text. None chooses one (see `Generation.seed`).
        n: number of candidates. They share one prefill and differ in their noise (see
            `Generation.candidates`).
        candidate: number of the first candidate, from 0. Seed and number decide a candidate's text. It is the
            same with and without other candidates.
        schema: JSON Schema, or a type that pydantic understands, such as a model class or `list[City]` (see
            `Generation.parsed`). The answer, not the thought, matches it and is complete within
            max_new_tokens.
        regex, grammar, choices: a pattern, a grammar in Lark's syntax, or a list of texts. The answer matches
            it. Give at most one of these and `schema`.
        draft: a text to start from instead of noise.
        noise_level: share of the draft's tokens that noise replaces, above 0, up to 1. Default 0.5.
        pins: dict from positions among the ids of thought and answer to the token ids there. Or a function
            that gets the index of each block and returns such a dict for the positions of its canvas.
        trace: keep every denoising step (see `Generation.trace`), in at most 10 MB per candidate.
        on_step: called with a `Step` after every denoising step. This copies canvases to the host, so leave
            it out if you do not need it.
        prompt_cache: keeps the encoded tokens for the next generation.
        draws: source of random numbers: a function that gets the keys of a canvas's rows, its length and the
            vocabulary size, and returns an `engine.noise.Draws`. None for `SeededDraws`.
        timeout: seconds from the start of the prefill. The generation then ends with its blocks so far and
            `finish_reason` "length".
        allow_special_tokens: encode names of special tokens in messages and tools, such as `<turn|>`, as
            these tokens. By default they are plain text.
        settings: fields of `Settings` that replace the checkpoint's, such as `max_new_tokens=1024`.

    Raises:
        InputError: the prompt is empty or exceeds the context limit, a setting, schema or pattern is invalid,
            or the generation needs more memory than there is.
    """
    if prompt_cache is not None and not isinstance(prompt_cache, PromptCache):
        raise InputError(
            f"prompt_cache: found {type(prompt_cache).__name__}; make one with PromptCache(model)"
        )
    if prompt_cache is not None and prompt_cache.model is not model:
        raise InputError("prompt_cache belongs to another model; make one with PromptCache(model)")
    first, rows = in_range("candidate", candidate), in_range("n", n)
    seconds = None if timeout is None else in_range("timeout", timeout)
    structure = {"schema": schema, "regex": regex, "grammar": grammar, "choices": choices}
    request = Request(model, tokenizer, settings, structure, thinking=thinking, trace=trace)
    _check_tools(tools, request)
    encoded = tokenizer.prompt(
        prompt,
        thinking=thinking,
        system=system,
        tools=tools,
        images=images,
        soft_tokens=soft_tokens,
        allow_special_tokens=allow_special_tokens,
    )
    request.shrink_default(len(encoded), rows, prompt_cache.nbytes if prompt_cache is not None else 0)
    start = ChannelParser(tokenizer, encoded.ids)
    more = request.draft(draft, noise_level, start), request.pinned(pins) if pins is not None else None
    chosen = checked_seed(seed)
    keys = [RowKey(chosen, first + number) for number in range(rows)]
    answers = [request.answer(encoded, start, key, *more) for key in keys]
    writer = Writer(model, answers, on_step, prompt_cache, seconds, draws=draws)
    return _generations(writer, schema)[0]


@takes_settings
def generate_batch(
    model: DiffusionGemma,
    tokenizer: Tokenizer,
    prompts: Iterable[str | Sequence[Mapping[str, Any]] | Sequence[int]],
    *,
    batch_size: int | None = None,
    thinking: bool = False,
    system: str | None = None,
    tools: Sequence[Any] | None = None,
    soft_tokens: int | None = None,
    seed: int | None = None,
    schema: Any = None,
    regex: str | None = None,
    grammar: str | None = None,
    choices: Sequence[str] | None = None,
    trace: bool = False,
    on_step: Callable[[Step], None] | None = None,
    timeout: float | None = None,
    allow_special_tokens: bool = False,
    progress: bool = True,
    **settings: Unpack[SettingsDict],
) -> list[Generation]:
    """Return one `Generation` for each prompt, denoised together. See `generate` for the other arguments.

    Up to rounding, `generate` returns the same text for a prompt and the same seed. Asking one generation for
    its next block runs every unfinished generation of its batch. Shorter prompts are padded on the left. A
    row that has ended costs nothing from the next block on. A row's statistics count its share of the time.

    Args:
        prompts: a list, an array, a pandas Series or any other iterable of prompts.
        batch_size: maximum number of prompts that are denoised together. None for all. A larger batch needs
            more memory.
        progress: show a bar of finished prompts on a terminal.
        timeout: seconds for each batch.
    """
    try:
        items = [] if isinstance(prompts, str | bytes | Mapping) else list(prompts)
    except TypeError:
        items = []
    if not items:
        raise InputError(
            f"prompts: found {type(prompts).__name__}, not a list with prompts in it; "
            "each is a question, messages or token ids"
        )
    size = len(items) if batch_size is None else in_range("batch_size", batch_size)
    seconds = None if timeout is None else in_range("timeout", timeout)
    structure = {"schema": schema, "regex": regex, "grammar": grammar, "choices": choices}
    request = Request(model, tokenizer, settings, structure, thinking=thinking, trace=trace)
    _check_tools(tools, request)
    key = RowKey(checked_seed(seed))
    how: dict[str, Any] = {"thinking": thinking, "system": system, "tools": tools, "soft_tokens": soft_tokens}
    encoded = []
    for index, prompt in enumerate(items):
        try:
            encoded.append(tokenizer.prompt(prompt, **how, allow_special_tokens=allow_special_tokens))
        except InputError as error:
            raise InputError(f"prompts: item {index}: {error}") from error
    request.shrink_default(max(map(len, encoded)), min(size, len(items)))
    bar = _Bar(len(items)) if progress and len(items) > 1 else None
    generations = []
    for first in range(0, len(items), size):
        answers = [
            request.answer(each, ChannelParser(tokenizer, each.ids), key)
            for each in encoded[first : first + size]
        ]
        on_end = bar.update if bar is not None else None
        generations += _generations(Writer(model, answers, on_step, timeout=seconds, on_end=on_end), schema)
    return generations


def _check_tools(tools: Any, request: Request) -> None:
    if request.grammar is not None and tools:
        raise InputError(
            "tools: a call is not what schema, regex, grammar or choices allow; leave one of the two out"
        )


class _Bar:
    """A progress bar that appears after the first prompt has ended."""

    def __init__(self, total: int):
        self._total = total
        self._bar: Any = None

    def update(self, ended: int) -> None:
        from .console.progress import bar

        if self._bar is None:
            self._bar = bar("prompts", total=self._total, unit="prompt")
        self._bar.update(ended)
        if self._bar.n >= self._total:
            self._bar.close()


def _generations(writer: Writer, schema: Any) -> list[Generation]:
    return [Generation(writer, answer, schema) for answer in writer.answers]
