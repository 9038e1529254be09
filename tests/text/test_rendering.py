"""Chat templates of strangers: rendered as Transformers does, within limits on time and memory."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from support.fixtures_tokenizer import write_tokenizer
from transformers.utils.chat_template_utils import render_jinja_template

from mlx_diffusiongemma.errors import InputError, TokenizerError
from mlx_diffusiongemma.text import rendering
from mlx_diffusiongemma.text.rendering import RenderError, render
from mlx_diffusiongemma.text.tokenizer import Tokenizer


@pytest.mark.parametrize("template", [
    "{% for m in messages %}{{ m.role }}: {{ m['content'] | upper }}\n{% endfor %}",
    "  {% if add_generation_prompt %}\n  go\n{% endif %}\n{{ bos_token }}{{ tools }}{{ documents }}",
    "{% for m in messages %}{% if loop.index > 1 %}{% break %}{% endif %}{{ m | tojson }}{% endfor %}",
    "{{ {'b': '<é>', 'a': [1, none, 2.5]} | tojson(indent=2, sort_keys=true) }}",
    "a{% generation %}{{ messages[0].content }}{% endgeneration %}b",
    "{% set ns = namespace(a=1, self=2) %}{% set ns.a = ns.a + 1 %}{{ ns.a }}{{ dict(x=1) }}",
    "{{ strftime_now('%Y-%m') }}{{ range(3) | list }}{{ missing }}",
    "{{ messages[0].extra }}{{ messages[0].content[::-1] }}{{ '\ud83d' }}",
])  # fmt: skip
def test_the_text_is_that_of_transformers(template: str) -> None:
    messages = [
        {"role": "user", "content": "héllo <b>\n", "extra": {"x": [1, 2.5, None, True]}},
        {"role": "assistant", "content": "\ud800"},
    ]
    values: dict[str, Any] = {"bos_token": "<bos>", "add_generation_prompt": True}
    [expected], _ = render_jinja_template([messages], chat_template=template, **values)
    assert render(template, {"messages": messages, "tools": None, "documents": None, **values}) == expected


def test_a_value_without_json_is_its_type_as_in_transformers() -> None:
    messages = [{"role": "user", "content": datetime.now()}]
    template = "{{ messages[0].content }}"
    [expected], _ = render_jinja_template([messages], chat_template=template)
    assert render(template, {"messages": messages}) == expected == "<datetime>"


@pytest.mark.parametrize(("template", "kind", "message"), [
    ("{{ 'a' * 3000000000 }}", "", "needed more than 200 MB"),
    ("{{ '%2000000000d' % 1 }}", "", "needed more than 200 MB"),
    ("{{ 'a' | center(2000000000) }}", "", "needed more than 200 MB"),
    ("{% set n = namespace(x='a') %}{% for i in range(60) %}{% set n.x = n.x ~ n.x %}{% endfor %}", "",
     "needed more than 200 MB"),
    ("{{ 'a' * 2000000 }}", "", "writes 2000000 characters"),
    ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "RecursionError", "recursion"),
    ("{{ " + "(" * 20_000 + "1" + ")" * 20_000 + " }}", "RecursionError", "recursion"),
    ("{% if %}", "TemplateSyntaxError", "Expected"),
    ("{{ raise_exception('no') }}", "TemplateError", "no"),
    ("{{ ''.__class__.__mro__ }}", "SecurityError", "__class__"),
    ("{{ namespace(__class__=1) }}", "SecurityError", "__class__"),
    ("{% set ns = namespace() %}{% set ns.__init__ = 1 %}", "SecurityError", "__init__"),
    ("{% include '/etc/passwd' %}", "TypeError", "no loader"),
    ("{{ messages.append(1) }}", "SecurityError", "append"),
], ids=range(14))  # fmt: skip
def test_hostile_templates_are_refused(template: str, kind: str, message: str) -> None:
    with pytest.raises(RenderError, match=message) as caught:
        render(template, {"messages": [1]})
    assert caught.value.kind == kind
    assert render("still {{ x }}", {"x": "here"}) == "still here"


def test_a_template_that_does_not_end_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rendering, "_SECONDS", 0.1)
    endless = "{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}"
    with pytest.raises(RenderError, match=r"it ran for more than 0\.1 s"):
        render(endless, {})


def test_the_process_is_used_again_and_started_again() -> None:
    assert render("{{ 1 }}", {}) == "1"
    first = rendering._WORKER._process
    assert render("{{ 2 }}", {}) == "2"
    assert first is not None
    assert rendering._WORKER._process is first
    os.kill(first.pid, signal.SIGINT)  # Ctrl-C at a terminal reaches it too
    assert render("{{ 3 }}", {}) == "3"
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    assert render("{{ 4 }}", {}) == "4"


def test_a_fork_while_another_thread_renders_does_not_hang() -> None:
    code = (
        "import os, threading\n"
        "from mlx_diffusiongemma.text import rendering\n"
        "rendering._WORKER._lock.acquire()\n"  # as another thread holds it
        "child = os.fork()\n"
        "if child == 0:\n"
        "    os._exit(0 if rendering.render('{{ 1 }}', {}) == '1' else 1)\n"
        "print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout == "0\n", done.stderr


def test_a_process_that_cannot_be_started_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    for program, message in (
        ("/nowhere", "cannot be started: No such file"),
        ("/bin/false", "ended with status"),
    ):
        rendering._WORKER.end()
        monkeypatch.setattr(sys, "executable", program)
        with pytest.raises(RenderError, match=message):
            render("{{ 1 }}", {})
    rendering._WORKER.end()


def test_deep_values_are_one_line() -> None:
    deep: Any = []
    for _ in range(5000):
        deep = [deep]
    with pytest.raises(RenderError, match="recursion"):
        render("{{ x }}", {"x": deep})


@pytest.mark.parametrize("template", ["{# nothing #}", "  \n"])
def test_a_template_that_renders_nothing_is_named(template: str, tmp_path: Path) -> None:
    (write_tokenizer(tmp_path) / "chat_template.jinja").write_text(template)
    tokenizer = Tokenizer.load(tmp_path)
    with pytest.raises(TokenizerError, match="the chat template renders nothing; copy the original"):
        tokenizer.prompt("hi")


def test_escape_sequences_of_a_template_are_not_printed(tmp_path: Path) -> None:
    template = "{{ raise_exception('\x1b]0;title\x07\n') }}"
    (write_tokenizer(tmp_path) / "chat_template.jinja").write_text(template)
    tokenizer = Tokenizer.load(tmp_path)
    with pytest.raises(InputError, match=r"cannot render the messages \(\\x1b\]0;title\\x07\)") as caught:
        tokenizer.prompt("hi")
    assert str(caught.value).isprintable()


REPLACE = {"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 1000}


def split(pattern: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


@pytest.mark.parametrize(("part", "node", "message"), [
    ("normalizer", {"type": "Sequence", "normalizers": [REPLACE] * 3}, r"makes a text 1e\+09 times as long"),
    ("normalizer", {"type": "Prepend", "prepend": "a" * 10**6}, r"makes a text 1e\+06 times as long"),
    ("normalizer", REPLACE | {"type": "replace"}, r"makes a text 1e\+03 times as long"),
    ("decoder", {"type": "Sequence", "decoders": [REPLACE]}, r"makes a text 1e\+03 times as long"),
    ("model", {"type": "WordPiece", "vocab": {}}, "is 'WordPiece', not BPE"),
    ("model", {"type": "BPE", "end_of_word_suffix": "x" * 99}, "has a long prefix or suffix"),
    (
        "normalizer",
        {"type": "Precompiled", "precompiled_charsmap": "AAAA"},
        "a pattern or table that may take for ever",
    ),
    ("pre_tokenizer", split("(a+)+b"), "a pattern or table that may take"),
    ("pre_tokenizer", split("(?=(a{1,9}))b"), "a pattern or table that may take"),
    ("normalizer", {"type": "Replace", "pattern": {"Regex": "(a)\\1"}, "content": ""}, "a pattern or table"),
    ("pre_tokenizer", {"type": "Sequence", "pretokenizers": [{"type": "Digits"}] * 9999}, "10000 parts"),
])  # fmt: skip
def test_a_tokenizer_with_parts_that_may_take_for_ever_is_refused(
    part: str, node: dict[str, Any], message: str, tmp_path: Path
) -> None:
    file = write_tokenizer(tmp_path) / "tokenizer.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {part: node}))
    with pytest.raises(TokenizerError, match=rf"its {part} .*{message}.*; copy it from"):
        Tokenizer.load(tmp_path)


@pytest.mark.parametrize("pattern", [
    r"(?i:'s|'t|'re)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}(*+]+[\r\n]*|\s+(?!\S)|\s+",
    r"(?:[^a-z]|x(?!\*))+",
])  # fmt: skip
def test_patterns_of_usual_tokenizers_are_taken(pattern: str, tmp_path: Path) -> None:
    file = write_tokenizer(tmp_path) / "tokenizer.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"pre_tokenizer": split(pattern)}))
    assert Tokenizer.load(tmp_path).encode("a b")


def test_a_panic_of_the_tokenizer_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class PanicException(BaseException):  # as pyo3 raises it
        pass

    tokenizer = Tokenizer.load(write_tokenizer(tmp_path))

    def panic(*_: Any, **__: Any) -> None:
        raise PanicException("capacity overflow")

    monkeypatch.setattr(tokenizer, "_backend", SimpleNamespace(encode=panic))
    with pytest.raises(TokenizerError, match=r"the tokenizer failed \(capacity overflow\); copy it from"):
        tokenizer.encode("hi")


@pytest.mark.skipif(sys.platform == "darwin", reason="file names of macOS are UTF-8")
def test_a_directory_whose_name_is_not_utf_8(tmp_path: Path) -> None:
    directory = Path(os.fsdecode(bytes(tmp_path) + b"/bad\xff"))
    directory.mkdir()
    write_tokenizer(directory)
    with pytest.raises(TokenizerError, match="the name is not UTF-8, which tokenizers needs; rename it"):
        Tokenizer.load(directory)
