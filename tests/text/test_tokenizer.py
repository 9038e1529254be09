"""Tokenizer: loading, encoding, and what it says about unusable files."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.fixtures_tokenizer import SPECIAL, one_line, write_tokenizer
from tokenizers import Tokenizer as RawTokenizer
from transformers import PreTrainedTokenizerFast, ProcessorMixin

from mlx_diffusiongemma.errors import TokenizerError
from mlx_diffusiongemma.text.tokenizer import Tokenizer

DEMO = Path(__file__).parents[2] / "mlx_diffusiongemma" / "demo" / "checkpoint"
TEXTS = ["thought and  two spaces", " leading", "héllo wörld", "日本語 😀👩‍🚀\n\tend", "a\n\nb"]
TEXTS += ['a <|"|> <turn|>', "", "\u2581"]


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def tokenizer(directory: Path) -> Tokenizer:
    return Tokenizer.load(directory)


# --- loading and encoding ---------------------------------------------------------------------------------


@pytest.mark.parametrize("strip_first_space", [False, True])
def test_the_file_is_what_counts(tmp_path: Path, strip_first_space: bool) -> None:
    """Neither tokenizer_class nor the truncation, padding and bos of tokenizer.json changes an encoding."""
    write_tokenizer(tmp_path, strip_first_space=strip_first_space)
    tokenizer = Tokenizer.load(tmp_path)
    raw = RawTokenizer.from_file(str(tmp_path / "tokenizer.json"))
    raw.no_truncation()
    raw.no_padding()
    assert tokenizer.vocab_size == raw.get_vocab_size()
    for text in TEXTS:
        ids = raw.encode(text, add_special_tokens=False).ids
        assert tokenizer.encode(text) == ids
        assert tokenizer.decode(ids) == raw.decode(ids, skip_special_tokens=False)
        assert tokenizer.decode(np.array(ids, np.int32), skip_special_tokens=True) == raw.decode(ids)


def test_special_tokens_are_found_by_spelling(tokenizer: Tokenizer, tmp_path: Path) -> None:
    special = tokenizer.special
    images = [special.image_open, special.image, special.image_close]
    assert images == list(map(SPECIAL.index, ("<|image>", "<|image|>", "<image|>")))
    responses = [special.tool_response_open, special.tool_response_close]
    assert responses == list(map(SPECIAL.index, ("<|tool_response>", "<tool_response|>")))
    assert [special.tool_open, special.tool_close] == list(map(SPECIAL.index, ("<|tool>", "<tool|>")))
    assert len(special.ids()) == 20
    file = write_tokenizer(tmp_path) / "tokenizer.json"
    file.write_text(file.read_text().replace("<|think|>", "<|other|>").replace("<mask>", "<gone>"))
    assert Tokenizer.load(tmp_path).special == replace(special, think=None, mask=None)


def test_what_is_never_text(tokenizer: Tokenizer) -> None:
    hidden = {tokenizer.decode([token]) for token in tokenizer.hidden_ids}
    assert hidden == {*SPECIAL, "<unused0>"}  # and no newlines, even if marked as special
    assert {tokenizer.byte_values[tokenizer.encode("😀")[0]]} == {0xF0}
    assert sorted(tokenizer.byte_values.values()) == list(range(256))


def test_sentencepiece_model_alone(tmp_path: Path) -> None:
    import sentencepiece

    lines = tmp_path / "lines.txt"
    lines.write_text("the quick brown fox\njumps over the lazy dog\nwhy is the sky blue\n" * 9)
    sentencepiece.SentencePieceTrainer.train(
        input=str(lines), model_prefix=str(tmp_path / "tokenizer"), vocab_size=320, model_type="bpe",
        byte_fallback=True, add_dummy_prefix=False, remove_extra_whitespaces=False, minloglevel=2,
        normalization_rule_name="identity", hard_vocab_limit=False, pad_id=0, eos_id=1, bos_id=2, unk_id=3,
        pad_piece="<pad>", eos_piece="<eos>", bos_piece="<bos>", unk_piece="<unk>",
        user_defined_symbols=["<|turn>", "<turn|>", "<|channel>", "<channel|>", "\n"],
    )  # fmt: skip
    oracle = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "tokenizer.model"))
    shutil.copy(write_tokenizer(tmp_path / "other") / "tokenizer_config.json", tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "diffusion_gemma_9"}')
    tokenizer = Tokenizer.load(tmp_path)
    assert tokenizer.vocab_size == oracle.vocab_size()
    assert (tokenizer.special.bos, tokenizer.special.turn_open) == (2, oracle.piece_to_id("<|turn>"))
    for text in ["the sky", "<|turn>user\nwhy?<turn|>\n", " zürich  😀"]:
        assert tokenizer.encode(text) == oracle.encode(text)
        assert tokenizer.decode(oracle.encode(text)) == text
        plain = tokenizer.encode(text, allow_special_tokens=False)
        assert (tokenizer.decode(plain), tokenizer.hidden_ids & {*plain}) == (text, set())
    assert tokenizer.special.turn_close in tokenizer.hidden_ids
    assert tokenizer.encode("\n")[0] not in tokenizer.hidden_ids


def test_loads_silently_without_torch_and_network(directory: Path) -> None:
    code = f"""
        import os, socket, sys
        sys.modules["torch"] = None
        def refuse(*_): raise AssertionError("network")
        socket.socket.connect = socket.getaddrinfo = refuse
        from mlx_diffusiongemma.text.tokenizer import Tokenizer
        assert "transformers" not in sys.modules and "tokenizers" not in sys.modules
        before = dict(os.environ)
        tokenizer = Tokenizer.load({str(directory)!r})
        assert dict(os.environ) == before
        print(tokenizer.decode(tokenizer.prompt_ids("hello", thinking=True)))
    """
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TRANSFORMERS_")}
    command = [sys.executable, "-c", textwrap.dedent(code)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.stderr == ""
    assert done.stdout.startswith("<bos><|turn>system")


# --- files that cannot be used ----------------------------------------------------------------------------


def refusal(directory: Path) -> str:
    with pytest.raises(TokenizerError) as error:
        Tokenizer.load(directory).prompt_ids("hello")
    return one_line(error)


@pytest.mark.parametrize(("file", "content", "message"), [
    ("tokenizer.json", None, "no tokenizer.json found; copy it"),
    ("tokenizer.json", b"", "tokenizer.json: not a usable tokenizer"),
    ("tokenizer.json", b'{"version": "1.0"', "tokenizer.json: not a usable tokenizer"),
    ("tokenizer.json", b"\xff\xfe\x00", "tokenizer.json: not a usable tokenizer"),
    ("tokenizer_config.json", b"{", "tokenizer_config.json: not readable as JSON"),
    ("tokenizer_config.json", b"[]", "tokenizer_config.json: holds list"),
    ("tokenizer_config.json", b"\xff", "tokenizer_config.json: not readable as JSON"),
    ("chat_template.jinja", None, "no chat_template.jinja"),
    ("chat_template.jinja", b"\xff", "chat_template.jinja: not a usable chat template"),
    ("chat_template.jinja", b"{% if %}", "the chat template cannot render the messages"),
    ("additional_chat_templates/rag.jinja", b"\xff", "rag.jinja: not a usable chat template"),
])  # fmt: skip
def test_unusable_file(tmp_path: Path, file: str, content: bytes | None, message: str) -> None:
    path = write_tokenizer(tmp_path) / file
    path.parent.mkdir(exist_ok=True)
    path.unlink() if content is None else path.write_bytes(content)
    assert message in refusal(tmp_path)


def test_unusable_directory(tmp_path: Path) -> None:
    assert "no such directory" in refusal(tmp_path / "nowhere")
    (tmp_path / "tokenizer.model").write_bytes(b"no model")
    assert "tokenizer.model: not" in refusal(tmp_path)


@pytest.mark.parametrize(
    "template", [3, {}, [], [{"name": "default"}], {"default": None}, [["default", "x"]]]
)
def test_a_template_that_is_not_text(tmp_path: Path, template: Any) -> None:
    write_tokenizer(tmp_path, template=False)
    (tmp_path / "chat_template.json").write_text(json.dumps({"chat_template": template}))
    assert "chat_template.json: its chat_template is not a text; copy it again" in refusal(tmp_path)


@pytest.mark.parametrize("config", [None, {}, {"bos_token": "<s>"}, {"bos_token": None}])
def test_template_writes_a_bos_that_exists(tmp_path: Path, config: dict[str, Any] | None) -> None:
    file = write_tokenizer(tmp_path) / "tokenizer_config.json"
    file.unlink() if config is None else file.write_text(json.dumps(config))
    tokenizer = Tokenizer.load(tmp_path)
    assert tokenizer.prompt_ids("hello")[0] == tokenizer.special.bos


TEMPLATES: dict[str, Any] = {
    "chat_template.jinja": "jinja",
    "additional_chat_templates/tool_use.jinja": "tool_use",
    "tokenizer_config.json": {"chat_template": "tokenizer_config"},
    "processor_config.json": {"chat_template": "processor_config"},
    "chat_template.json": {"chat_template": "json"},
}


@pytest.mark.parametrize(("files", "template"), [
    ([], None),
    (["chat_template.jinja"], "jinja"),
    ([*TEMPLATES][:2], {"default": "jinja", "tool_use": "tool_use"}),
    (["tokenizer_config.json"], "tokenizer_config"),
    (["tokenizer_config.json", "chat_template.jinja"], "jinja"),
    (["tokenizer_config.json", "chat_template.json"], "tokenizer_config"),
    (["chat_template.jinja", "chat_template.json"], "jinja"),
    (["chat_template.json"], "json"),
    (["processor_config.json"], "processor_config"),
    (["chat_template.json", "processor_config.json"], "processor_config"),
    ([*TEMPLATES], {"default": "jinja", "tool_use": "tool_use"}),
])  # fmt: skip
def test_where_the_template_is_found(tmp_path: Path, files: list[str], template: Any) -> None:
    """Where Transformers' tokenizer finds it, or else its processor."""
    write_tokenizer(tmp_path, template=False)
    (tmp_path / "tokenizer_config.json").unlink()
    for file in files:
        content = TEMPLATES[file]
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_text(content if isinstance(content, str) else json.dumps(content))
    tokenizer = Tokenizer.load(tmp_path)
    assert tokenizer.chat_template == template
    reference = PreTrainedTokenizerFast.from_pretrained(tmp_path).chat_template
    if reference is None:
        reference = ProcessorMixin.get_processor_dict(tmp_path)[0].get("chat_template")
    assert template == reference
    if template is not None:
        default = template if isinstance(template, str) else "jinja"
        assert tokenizer.prompt_ids("hello") == tokenizer.encode(default)


def test_one_of_several_templates_is_for_tools(tmp_path: Path) -> None:
    write_tokenizer(tmp_path, template=False)
    several = [{"name": "default", "template": "plain"}, {"name": "tool_use", "template": "tools"}]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": several}))
    tokenizer = Tokenizer.load(tmp_path)
    assert tokenizer.prompt_ids("hello") == tokenizer.encode("plain")
    assert tokenizer.prompt_ids("hello", tools=[{"name": "f"}]) == tokenizer.encode("tools")


# --- the bundled demo -------------------------------------------------------------------------------------


def test_demo_has_gemmas_ids() -> None:
    demo = Tokenizer.load(DEMO)
    special = demo.special
    assert (special.pad, special.eos, special.bos, special.unk, special.mask) == (0, 1, 2, 3, 4)
    assert (special.tool_call_open, special.tool_call_close, special.tool_response_open) == (48, 49, 50)
    assert (special.quote, special.think) == (52, 98)
    assert (special.channel_open, special.channel_close) == (100, 101)
    assert (special.turn_open, special.turn_close) == (105, 106)
    assert demo.encode("\n") == [107]
    assert len(demo.byte_values) == 256
    config = json.loads((DEMO / "tokenizer.json").read_text(encoding="utf-8"))
    assert demo.vocab_size == len(config["model"]["vocab"])


def test_the_attributes_that_users_of_transformers_type(tmp_path: Path) -> None:
    demo = Tokenizer.load(DEMO)
    reference = PreTrainedTokenizerFast.from_pretrained(DEMO)
    assert demo.bos_token_id == reference.bos_token_id == 2
    assert demo.eos_token_id == reference.eos_token_id == 1
    assert demo.pad_token_id == reference.pad_token_id == 0
    assert demo.chat_template == reference.chat_template
    for text in ("hi", ["hi", "a longer text"]):
        assert dict(demo(text)) == {name: reference(text)[name] for name in ("input_ids", "attention_mask")}
        plain = demo(text, add_special_tokens=False)
        assert plain.input_ids == reference(text, add_special_tokens=False).input_ids
    # A configured eos may end a turn, and bos is written where the tokenizer's file says so.
    other = Tokenizer.load(write_tokenizer(tmp_path))
    assert other.eos_token_id == other.special.turn_close
    assert other("thought").input_ids == [other.special.bos, *other.encode("thought")]
    assert other.encode("thought " * 9) == other("thought " * 9).input_ids[1:]
