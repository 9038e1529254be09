"""The checkpoint's own tokenizer and chat template, behind a small interface.

Transformers encodes and decodes. `Tokenizer.load` imports it, this module does not. `tokenizer.json` is used
unchanged. Two other files are hidden from Transformers: tokenizer_config.json, whose `tokenizer_class` makes
it rebuild parts of some tokenizers, and config.json, whose model type its older versions do not know.
"""

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..config.ranges import integer
from ..console.messages import shown
from ..engine.ids import check_ids
from ..errors import InputError, TokenizerError
from ..prompt import Prompt
from .chat_template import ChatTemplate, read_object, read_template
from .delimiters import Delimiters
from .images import ImageProcessor, taken_images, with_soft_tokens
from .prompts import Message, checked_messages
from .special_tokens import SpecialTokens
from .tokenizer_file import load_transformers, panics_refused
from .tool_descriptions import Tool

PromptInput = str | Sequence[Message] | Sequence[int] | Prompt


class Tokenizer:
    """Converts text and prompts to token ids, and ids to text.

    special: ids of the structural tokens.
    vocab_size: largest id + 1.
    hidden_ids: ids that are never text: structure, padding, image placeholders, unused entries.
    byte_values: id -> byte, for the tokens `<0x00>`..`<0xFF>` that spell characters outside the vocabulary.
    """

    def __init__(
        self, hf_tokenizer: Any, source: str = "tokenizer", processor: ImageProcessor | None = None
    ) -> None:
        """Wrap a fast tokenizer of Transformers. source: its name in error messages."""
        self._hf = hf_tokenizer
        self._source = source
        self._backend = hf_tokenizer.backend_tokenizer
        self._backend.no_truncation()  # tokenizer.json may turn both on
        self._backend.no_padding()
        vocabulary: dict[str, int] = self._backend.get_vocab(with_added_tokens=True)
        self.vocab_size = max(vocabulary.values(), default=-1) + 1
        self.special = SpecialTokens.in_vocabulary(vocabulary)
        added = self._backend.get_added_tokens_decoder().items()
        marked = {token_id for token_id, token in added if token.special and not token.content.isspace()}
        unused = {token_id for text, token_id in vocabulary.items() if text.startswith("<unused")}
        self.hidden_ids = frozenset(self.special.ids() | marked | unused)
        spelled = {f"<0x{value:02X}>": value for value in range(256)}
        self.byte_values = {vocabulary[text]: value for text, value in spelled.items() if text in vocabulary}
        self._delimiters = Delimiters(map(self._backend.id_to_token, self.hidden_ids))
        self._processor = processor or ImageProcessor()
        self._template = ChatTemplate(hf_tokenizer, source, self._delimiters)

    @classmethod
    def load(cls, directory: str | os.PathLike[str]) -> "Tokenizer":
        """Return the tokenizer of a checkpoint, from tokenizer.json or from a sentencepiece tokenizer.model.

        It has the special tokens of tokenizer_config.json and the chat template, if there are any. Nothing is
        downloaded.

        Raises:
            TokenizerError: the directory has no tokenizer, or a file is unusable.
        """
        path = Path(directory)
        if not path.is_dir():
            raise TokenizerError(f"{path}: no such directory; give the directory of a checkpoint")
        config = read_object(path / "tokenizer_config.json")
        hf = load_transformers(path)
        hf.chat_template = read_template(path)
        for name in ("bos", "eos", "unk", "pad", "mask"):  # templates use them by these names
            named = config.get(f"{name}_token")
            for text in (named.get("content") if isinstance(named, dict) else named, f"<{name}>"):
                # A template would write an unknown token as plain text.
                if isinstance(text, str) and hf.backend_tokenizer.token_to_id(text) is not None:
                    setattr(hf, f"{name}_token", text)
                    break
        return cls(hf, source=str(path), processor=ImageProcessor.load(path))

    @property
    def bos_token_id(self) -> int | None:
        return self._hf.bos_token_id

    @property
    def eos_token_id(self) -> int | None:
        """Id of the configured `eos_token`. It may end a turn instead of a text."""
        return self._hf.eos_token_id

    @property
    def pad_token_id(self) -> int | None:
        return self._hf.pad_token_id

    @property
    def chat_template(self) -> str | dict[str, str] | None:
        """The checkpoint's template, a dict by name if there are several, or None."""
        return self._hf.chat_template

    def __call__(self, text: str | list[str], *, add_special_tokens: bool = True) -> Any:
        """Return the `input_ids` and `attention_mask` of `text`, as Transformers does."""
        return self._hf(text, add_special_tokens=add_special_tokens, padding=False, truncation=False)

    def limit(self, embeddings: int) -> None:
        """Set structural tokens to None if the embedding table, of `embeddings` rows, has no row for them."""
        known = {name: token for name, token in asdict(self.special).items() if (token or 0) < embeddings}
        self.special = SpecialTokens(**known)

    def encode(self, text: str, what: str = "prompt", *, allow_special_tokens: bool = True) -> list[int]:
        """Return the ids of `text`, without bos.

        Args:
            what: name of the text in error messages.
            allow_special_tokens: encode a delimiter in the text as its single id. Otherwise it stays text.

        Raises:
            InputError: the text is not valid Unicode.
        """
        try:
            text.encode()
        except UnicodeEncodeError as error:  # half a surrogate pair, from bytes that could not be decoded
            raise InputError(f"{what}: not valid Unicode ({error.reason}); decode it as UTF-8") from None
        places = () if allow_special_tokens else range(len(text))
        return self._encode_pieces(self._delimiters.pieces(text, places))

    def _encode_pieces(self, pieces: Sequence[str]) -> list[int]:
        """Return the ids of a text in pieces. No token crosses from one piece into the next."""
        ids, newline = self._encode(pieces[0]), self._encode("\n")
        for piece in pieces[1:]:
            # Encode after a newline, because some tokenizers treat the beginning of a text differently.
            with_newline = self._encode("\n" + piece)
            if with_newline[: len(newline)] == newline:
                ids += with_newline[len(newline) :]
            else:  # the newline has become part of another token
                ids += self._encode(piece)
        return ids

    def _encode(self, text: str) -> list[int]:
        with panics_refused(self._source):
            return list(self._backend.encode(text, add_special_tokens=False).ids)

    def decode(self, ids: Iterable[int], skip_special_tokens: bool = False) -> str:
        """Return the text of `ids`. Ids beyond the vocabulary are skipped."""
        with panics_refused(self._source):
            return str(self._backend.decode(list(map(int, ids)), skip_special_tokens=skip_special_tokens))

    def to_json(self) -> str:
        """Return the text of a tokenizer.json, for libraries that build their own tokenizer from it."""
        return str(self._backend.to_str())

    def turn_end(self, stop_ids: Sequence[int], vocab_size: int) -> int:
        """Return the stop id to end a text with: `<turn|>` if it is a stop id, otherwise the first one.

        Raises:
            InputError: the id is too large for a model of `vocab_size` tokens.
        """
        close = self.special.turn_close
        chosen = close if close is not None and close in stop_ids else stop_ids[0]
        check_ids("eos_token_id", [chosen], vocab_size)
        return chosen

    def apply_chat_template(
        self,
        messages: Sequence[Message],
        *,
        thinking: bool = False,
        enable_thinking: bool = False,
        tools: Sequence[Tool] | None = None,
        add_generation_prompt: bool = True,
        tokenize: bool = True,
        allow_special_tokens: bool = False,
    ) -> Any:
        """Return the ids of a chat, rendered by the checkpoint's own template.

        The template writes bos itself, so none is added.

        Args:
            thinking: ask for a thought before the answer.
            enable_thinking: Transformers' name for `thinking`.
            add_generation_prompt: end with the header of the model's turn.
            tokenize: False returns the rendered text instead.
            allow_special_tokens: let delimiters in messages or tools become structure. Otherwise they stay
                text. No effect without `tokenize`.

        Raises:
            InputError: the messages cannot be used or rendered.
            TokenizerError: the checkpoint has no chat template.
        """
        chat = self._template.chat(taken_images(checked_messages(messages))[0], tools)
        options = {
            "add_generation_prompt": add_generation_prompt,
            "enable_thinking": thinking or enable_thinking,
        }
        text = self._template.render(chat, **options)
        if not tokenize:
            return text
        ids = self.encode(text)
        pieces = [text] if allow_special_tokens else self._template.pieces(chat, text, **options)
        if pieces == [text]:
            return ids
        literal = self._encode_pieces(pieces)

        def structure(ids: list[int]) -> list[int]:
            return [token for token in ids if token in self.hidden_ids]

        # If the caller's text spells no delimiter, return exactly the ids of Transformers.
        return ids if structure(ids) == structure(literal) else literal

    def prompt_ids(self, prompt: PromptInput, **how: Any) -> list[int]:
        """Return the ids of `prompt(prompt, **how)`."""
        return list(self.prompt(prompt, **how).ids)

    def prompt(
        self,
        prompt: PromptInput,
        *,
        thinking: bool = False,
        system: str | None = None,
        tools: Sequence[Tool] | None = None,
        images: Sequence[Any] | None = None,
        soft_tokens: int | None = None,
        allow_special_tokens: bool = False,
    ) -> Prompt:
        """Return the model's input for a prompt of any kind.

        Args:
            prompt: a string (one user message), chat messages ({"role": ..., "content": ...}), token ids
                or a `Prompt`. Ids are used unchanged and exclude `thinking`, `system` and `tools`.
            thinking: ask for a thought before the answer.
            system: text of a system message.
            tools: JSON descriptions, or Python functions with type hints and a docstring.
            images: images before a string: paths, PIL images, bytes, arrays or data URLs. Messages have
                theirs in parts, `{"type": "image", "image": ...}`.
            soft_tokens: most soft tokens of each image: 70, 140, 280, 560 or 1120. None for the checkpoint's.
            allow_special_tokens: see `apply_chat_template`.

        Raises:
            InputError: an argument cannot be used, or an image cannot be read.
            TokenizerError: the checkpoint has no chat template.
        """
        spans: Sequence[Any] = (prompt.unplaced or prompt.images) if isinstance(prompt, Prompt) else ()
        if isinstance(prompt, Prompt):
            prompt = prompt.ids
        if hasattr(prompt, "tolist"):  # an array of ids
            prompt = prompt.tolist()
        if isinstance(prompt, str):
            if prompt.startswith("<bos><|turn>"):  # it would be rendered again
                raise InputError(
                    "prompt: found a rendered chat; give its messages, or its ids "
                    "(apply_chat_template without tokenize=False)"
                )
            parts: list[Any] = [{"type": "image", "image": image} for image in images or ()]
            content = [*parts, {"type": "text", "text": prompt}] if parts else prompt
            items: list[Any] = [{"role": "user", "content": content}] if prompt.strip() or parts else []
            images = None
        elif isinstance(prompt, Iterable) and not isinstance(prompt, Mapping | bytes):
            items = list(prompt)
        else:
            raise InputError(f"prompt: found {type(prompt).__name__}; give text, messages or token ids")
        if not items:
            raise InputError("prompt: empty; give text, messages or token ids")
        if isinstance(items[0], str | list | tuple):
            raise InputError(
                f"prompt: item 0 is {type(items[0]).__name__}; give one prompt (text, messages or token ids) "
                "or give generate_batch the list"
            )
        if isinstance(items[0], Mapping) or hasattr(items[0], "model_dump"):
            if images:
                raise InputError(
                    "images: messages have theirs in parts; give {'type': 'image', 'image': ...}"
                )
            messages, sources = taken_images(checked_messages(items, system))
            patches = self._processor.patches(sources, soft_tokens)  # before the work of rendering
            rendered = self.apply_chat_template(
                messages, thinking=thinking, tools=tools, allow_special_tokens=allow_special_tokens
            )
            return with_soft_tokens(rendered, patches, self.special) if patches else Prompt(rendered)
        ids = [self._checked_id(index, item) for index, item in enumerate(items)]
        if thinking or system is not None or tools or images:
            raise InputError(
                "prompt: token ids cannot be combined with thinking, system, tools or images; give messages"
            )
        return Prompt(ids, spans)

    def _checked_id(self, index: int, item: Any) -> int:
        token = integer(item, 0, self.vocab_size - 1)
        if token is None:
            value = f"{type(item).__name__} {shown(item)}"
            raise InputError(
                f"prompt: item {index} is {value}; a list holds messages, or token ids from 0 to "
                f"{self.vocab_size - 1}"
            )
        return token
