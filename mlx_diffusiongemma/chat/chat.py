"""A conversation: turns that share a prompt cache and settings, and that can be saved and loaded.

    chat = Chat(model, tokenizer, thinking=True, seed=0)
    for question in ("What is 345 + 78?", "What is the capital of Norway?"):
        turn = chat.ask(question)
        print(turn.answer, turn.stats.cached_tokens)
        chat.keep(turn)

`keep` adds a question and its answer to `messages`. A turn that fails, or that is not kept, therefore leaves
the conversation unchanged.
"""

from __future__ import annotations

import base64
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..config.ranges import in_range
from ..console.messages import shown
from ..engine.noise import checked_seed
from ..engine.prompt_cache import PromptCache
from ..engine.settings import Settings
from ..engine.stats import Stats
from ..errors import InputError
from ..generation import Generation, generate
from ..vision.reading import read_image
from .chat_file import FORMAT, VERSION, check_format, read, write

if TYPE_CHECKING:
    from ..engine.state import Step
    from ..model import DiffusionGemma
    from ..text.tokenizer import Tokenizer


@dataclass(frozen=True)
class ChatSettings:
    """Settings that may change from turn to turn.

    thinking: let the model think before it answers.
    thinking_budget: maximum number of tokens of thought, None for no limit.
    seed: seed of every turn, None for a new seed each turn.
    n: number of candidates per turn.
    """

    thinking: bool = False
    thinking_budget: int | None = None
    seed: int | None = None
    n: int = 1


@dataclass
class Totals:
    """Sums over the turns that were kept. A turn with several candidates adds only the one that was kept."""

    turns: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    new_tokens: int = 0
    answer_tokens: int = 0
    seconds: float = 0.0

    def add(self, stats: Stats) -> None:
        self.turns += 1
        self.prompt_tokens += stats.prompt_tokens
        self.cached_tokens += stats.cached_tokens
        self.new_tokens += stats.new_tokens
        self.answer_tokens += stats.answer_tokens
        self.seconds += stats.seconds


class Chat:
    """A conversation with `model`.

    Args:
        system: a system message.
        name: the model's name in saved chats.
        thinking, thinking_budget, seed, n: the `ChatSettings` at the beginning. `change` replaces them.
        fixed: other settings of `generate` for all turns, such as `max_new_tokens=1024`.

    Attributes:
        messages: dicts with role ("user" and "assistant" alternate) and content. An answer's dict may also
            have its `thought`, which never goes into a prompt. A question's dict may have `images`, as data
            URLs.
        attached: data URLs of the images that the next question takes.
        last: the last generation, kept or not.
        totals: costs of the turns that were kept.
    """

    messages: list[dict[str, Any]]
    attached: list[str]
    last: Generation | None
    totals: Totals
    _asked: tuple[dict[str, Any], Generation] | None

    def __init__(
        self,
        model: DiffusionGemma,
        tokenizer: Tokenizer,
        *,
        system: str | None = None,
        name: str = "",
        thinking: bool = False,
        thinking_budget: int | None = None,
        seed: int | None = None,
        n: int = 1,
        **fixed: Any,
    ):
        self.model, self.tokenizer, self.system, self.name, self.fixed = model, tokenizer, system, name, fixed
        self.settings = self._checked(ChatSettings(thinking, thinking_budget, seed, n))
        self.cache = PromptCache(model)
        self.reset()

    def reset(self) -> None:
        """Forget the conversation. System message and settings stay."""
        self._begin([])
        self.cache.clear()

    def change(self, **settings: Any) -> None:
        """Replace fields of the `ChatSettings` for later turns. Raises `InputError` for bad values."""
        self.settings = self._checked(replace(self.settings, **settings))

    def attach(self, path: str | os.PathLike[str]) -> None:
        """Take an image file along with the next question. Raises `InputError` if it cannot be read."""
        read_image(Path(path).expanduser())
        if self.model.vision is None:
            raise InputError("this checkpoint has no vision tower, so it takes no images")
        content = base64.b64encode(Path(path).expanduser().read_bytes()).decode()
        self.attached.append(f"data:image;base64,{content}")

    def ask(self, text: str, on_step: Callable[[Step], None] | None = None) -> Generation:
        """Prepare the answer to `text`, as `generate` does. `keep` adds both to the conversation.

        Raises `InputError` if the text is empty, or if the prompt does not fit into context or memory.
        """
        question = {"role": "user", "content": text} | ({"images": self.attached} if self.attached else {})
        prompt = [_prompted(message) for message in (*self.messages, question)]
        settings: dict[str, Any] = self.fixed | asdict(self.settings)
        generation = generate(
            self.model,
            self.tokenizer,
            prompt,
            system=self.system,
            on_step=on_step,
            prompt_cache=self.cache,
            **settings,
        )
        self.last, self._asked = generation, (question, generation)
        return generation

    def keep(self, generation: Generation) -> None:
        """Add the last question, and the answer in `generation`, to the conversation.

        `generation` is the result of the last `ask`, or one of its candidates. The answer consists of the
        blocks that have run, and no more are run. Raises `InputError` if these contain no answer.
        """
        question, asked = self._asked or ({}, None)
        if asked is None or generation not in asked.candidates:
            raise InputError("keep: this does not answer the last question; give what ask returned")
        answer, thought = written(generation)
        if not answer.strip():
            raise InputError("keep: the answer is still empty; run the generation, or ask something else")
        reply = {"role": "assistant", "content": answer} | ({"thought": thought} if thought else {})
        self.messages += [question, reply]
        self.last, self._asked, self.attached = generation, None, []
        self.totals.add(generation.stats)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the conversation to `path`, whole or not at all, readable for the owner only.

        Raises `InputError` if that fails, or if the file exists and is not a saved chat.
        """
        write(path, self.to_dict())

    def load(self, path: str | os.PathLike[str]) -> str:
        """Replace conversation, system message and settings by those in `path`. Return their model's name.

        Raises `InputError`, and changes nothing, if the file is not a saved chat.
        """
        values = read(path)
        try:
            return self.restore(values)
        except InputError as error:
            raise InputError(f"{os.fspath(path)!r} is not a saved chat: {error}") from None

    def to_dict(self) -> dict[str, Any]:
        """Return the conversation as a dict that JSON can hold."""
        return {
            "format": FORMAT,
            "version": VERSION,
            "model": self.name,
            "system": self.system,
            "settings": asdict(self.settings),
            "messages": [dict(message) for message in self.messages],
        }

    def restore(self, values: Any) -> str:
        """Do what `load` does, but with the result of `to_dict` instead of a file."""
        check_format(values)
        name, system, messages = (values.get(key) for key in ("model", "system", "messages"))
        if not isinstance(name, str) or not isinstance(system, str | None):
            raise InputError("model must be text, and system text or null")
        try:
            settings = self._checked(ChatSettings(**values["settings"]))
        except (KeyError, TypeError):
            names = ", ".join(asdict(self.settings))
            raise InputError(f"settings must be an object of {names}") from None
        if not isinstance(messages, list) or len(messages) % 2:
            raise InputError("messages must be a list of questions and answers in turns")
        if not all(map(_fits, messages, ("user", "assistant") * len(messages))):
            raise InputError("messages must have the roles user and assistant in turns, and text as content")
        self.settings, self.system = settings, system
        self._begin([dict(message) for message in messages])
        return name

    def _begin(self, messages: list[dict[str, Any]]) -> None:
        self.messages, self.totals, self.attached = messages, Totals(), []
        self.last = self._asked = None

    def _checked(self, settings: ChatSettings) -> ChatSettings:
        if not isinstance(settings.thinking, bool):
            raise InputError(f"thinking must be True or False, found {shown(settings.thinking)}")
        fixed = Settings.of(self.model.generation_config, **self.fixed)
        budget = fixed.override(thinking_budget=settings.thinking_budget).thinking_budget
        seed = checked_seed(settings.seed) if settings.seed is not None else None
        return ChatSettings(settings.thinking, budget, seed, in_range("n", settings.n))


def _prompted(message: dict[str, Any]) -> dict[str, Any]:
    """Return a message for the prompt: without its thought, and with its images as parts."""
    content = message["content"]
    if message.get("images"):
        images = [{"type": "image", "image": url} for url in message["images"]]
        content = [*images, {"type": "text", "text": content}]
    return {"role": message["role"], "content": content}


def _fits(message: Any, role: str) -> bool:
    """Return True if `message` has this role, text that is not blank, and thought and images as texts."""
    if not isinstance(message, dict) or message.get("role") != role:
        return False
    images = message.get("images", [])
    if not isinstance(images, list) or (images and role != "user"):
        return False
    texts = [message.get("content"), message.get("thought", ""), *images]
    return all(isinstance(text, str) for text in texts) and bool(texts[0].strip())


def written(generation: Generation) -> tuple[str, str]:
    """Return answer and thought of the blocks that have run. `.answer` and `.thought` would run the rest."""
    blocks = generation.blocks
    return "".join(block.answer for block in blocks), "".join(block.thought for block in blocks)
