"""Reads a checkpoint's chat template, and renders messages with it."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..config.files import MOST_VALUES, check_values, read_text
from ..console.messages import one_line
from ..errors import InputError, TokenizerError
from .delimiters import Delimiters, StandIns
from .prompts import Message, checked_messages
from .rendering import RenderError, render
from .tool_descriptions import Tool, described_tools

_MOST_CONFIG_BYTES = 8_000_000  # a tokenizer_config.json may list thousands of added tokens
_MOST_TEMPLATES = 20
_THOUGHT = ("<|channel>", "<channel|>")  # the delimiters of thoughts


class ChatTemplate:
    """Renders messages and tools to text, with the template of a Transformers tokenizer.

    source: name of the tokenizer in error messages.
    delimiters: spellings of the tokens that are never text.
    """

    def __init__(self, hf_tokenizer: Any, source: str, delimiters: Delimiters) -> None:
        self._hf, self._source, self._delimiters = hf_tokenizer, source, delimiters
        self._takes_parts: dict[str, bool] = {}  # by role

    def chat(self, messages: Sequence[Message], tools: Sequence[Tool] | None) -> dict[str, Any]:
        """Return {"messages": ..., "tools": ...} in the form that this template supports."""
        if not self._hf.chat_template:
            raise TokenizerError(
                f"{self._source}: no chat_template.jinja found, or an empty one; add the checkpoint's own or "
                "give token ids"
            )
        suited = [self._suited(message) for message in checked_messages(messages)]
        return {"messages": suited, "tools": described_tools(tools)}

    def render(self, chat: dict[str, Any], **options: Any) -> str:
        """Return the text that the template makes of `chat`. options: further variables of the template.

        Raise `TokenizerError` for a template that is broken, or `InputError` if it refuses the messages.
        """
        values = {**self._hf.special_tokens_map, "documents": None, "add_generation_prompt": False, **options}
        try:
            text = render(self._hf.get_chat_template(tools=chat["tools"]), {**values, **chat})
        except (RenderError, ValueError) as error:  # ValueError: none of several templates is the default
            kind = getattr(error, "kind", "")
            raise (TokenizerError if kind == "TemplateSyntaxError" else InputError)(
                f"{self._source}: the chat template cannot render the messages ({one_line(error)})"
            ) from error
        if not text.strip():
            raise TokenizerError(f"{self._source}: the chat template renders nothing; copy the original one")
        return text

    def pieces(self, chat: dict[str, Any], text: str, **options: Any) -> list[str]:
        """Return `text` in pieces. Delimiters that come from `chat` are cut, the template's own stay whole.

        If the template strips thoughts of earlier turns, they are missing here too.

        text: the result of `render(chat, **options)`.
        """
        stand_ins = StandIns(self._delimiters, chat, text)
        if not stand_ins.needed:
            return [text]
        hidden = stand_ins.put(chat)
        rendered = self.render(hidden, **options)
        # The template can strip a thought only if it sees the delimiters. If it leaves any of them in the
        # text, it does not strip thoughts, and they stay hidden.
        shown = [
            {**message, "content": stand_ins.put(original["content"], visible=_THOUGHT)}
            if message["role"] == "assistant"
            else message
            for message, original in zip(hidden["messages"], chat["messages"], strict=True)
        ]
        if shown != hidden["messages"]:
            stripped = self.render({**hidden, "messages": shown}, **options)
            if all(stripped.count(delimiter) == rendered.count(delimiter) for delimiter in _THOUGHT):
                rendered = stripped
        return self._delimiters.pieces(stand_ins.restored(rendered), stand_ins.places(rendered))

    def _suited(self, message: dict[str, Any]) -> dict[str, Any]:
        role, content = message["role"], message.get("content")
        if role == "developer" and "developer" not in str(self._hf.chat_template):
            role = "system"
        if isinstance(content, list) and not self._renders_parts(role):
            if any(part["type"] != "text" for part in content):
                raise InputError(f"{self._source}: the chat template takes no images from role {role!r}")
            content = "".join(part["text"] for part in content)
        return {**message, "role": role} | ({} if content is None else {"content": content})

    def _renders_parts(self, role: str) -> bool:
        """Return True if, in messages of `role`, the template writes only the text of a content part."""
        if role not in self._takes_parts:
            user = {"role": "user", "content": "hello"}
            call = {"id": "0", "type": "function", "function": {"name": "f", "arguments": {}}}
            calling = {"role": "assistant", "content": "", "tool_calls": [call]}
            part = {"type": "text", "text": "probe"}
            probe = {"role": role, "tool_call_id": "0", "name": "f", "content": [part]}
            before: dict[str, list[Any]] = {"assistant": [user], "tool": [user, calling]}
            after = [] if role in ("user", "tool") else [user]
            try:
                text = self.render({"messages": [*before.get(role, []), probe, *after], "tools": None})
            except InputError:
                text = ""
            is_whole = "'text'" in text or '"text"' in text  # the list itself was written as a string
            self._takes_parts[role] = "probe" in text and not is_whole
        return self._takes_parts[role]


def read_template(path: Path) -> str | dict[str, str] | None:
    """Return the chat template in the directory `path`, a dict by name if there are several, or None.

    The order is that of Transformers' tokenizers: chat_template.jinja and additional_chat_templates/, then
    tokenizer_config.json. Two files of its processors come last: processor_config.json, chat_template.json.
    """
    files = [*path.glob("additional_chat_templates/*.jinja"), *path.glob("chat_template.jinja")]
    if len(files) > _MOST_TEMPLATES:
        raise TokenizerError(f"{path}: {len(files)} chat templates; copy the original ones")
    templates = {file.stem: _read_text(file) for file in files if file.is_file()}
    if "chat_template" in templates:
        templates["default"] = templates.pop("chat_template")
    if templates:
        return templates["default"] if [*templates] == ["default"] else templates
    for name in ("tokenizer_config.json", "processor_config.json", "chat_template.json"):
        template = read_object(path / name).get("chat_template")
        if isinstance(template, list):
            template = {
                entry.get("name"): entry.get("template") for entry in template if isinstance(entry, dict)
            }
        if template is not None:
            texts = [*template.values()] if isinstance(template, dict) else [template]
            if not texts or not all(isinstance(text, str) for text in texts):
                raise TokenizerError(f"{path / name}: its chat_template is not a text; copy it again")
            return template
    return None


def _read_text(file: Path) -> str:
    try:
        return read_text(file)
    except (OSError, ValueError) as error:
        raise TokenizerError(
            f"{file}: not a usable chat template ({one_line(error)}); copy it again"
        ) from error


def _parsed(text: str) -> Any:
    check_values(text, 4 * MOST_VALUES)
    return json.loads(text)


def read_object(file: Path) -> dict[str, Any]:
    """Return the object in a JSON file, {} if the file is missing. Raise `TokenizerError` if it is broken."""
    if not file.is_file():
        return {}
    try:
        value = _parsed(read_text(file, _MOST_CONFIG_BYTES))
    except (OSError, ValueError, RecursionError) as error:
        raise TokenizerError(f"{file}: not readable as JSON ({one_line(error)}); copy it again") from error
    if not isinstance(value, dict):
        raise TokenizerError(f"{file}: holds {type(value).__name__}, not an object; copy it again")
    return value
