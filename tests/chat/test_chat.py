"""The conversation of `mlx_dg chat`: turns, the prompt cache between them, saved chats."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest

import mlx_dg
from mlx_diffusiongemma.chat.chat import FORMAT, Chat
from mlx_diffusiongemma.errors import InputError

QUESTIONS = ["What is 345 + 78?", "What is the capital of Norway?", "Count to 37."]
ANSWERS = ["423", "The capital of Norway is Oslo.", " ".join(map(str, range(1, 38)))]
QUESTION, REPLY = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}


def run(generation: Any) -> Any:
    list(generation)
    return generation


# --- the conversation ---------------------------------------------------------------------------------------


def test_turns_reuse_the_prefix_and_answer_as_without(demo: Any) -> None:
    chat, messages = Chat(*demo, thinking=True, seed=0), []
    for index, question in enumerate(QUESTIONS):
        messages.append({"role": "user", "content": question})
        cold = mlx_dg.generate(*demo, messages, thinking=True, seed=0)
        turn = chat.ask(question)
        assert turn.token_ids == cold.token_ids
        assert turn.stats.prompt_tokens == cold.stats.prompt_tokens
        assert (turn.stats.cached_tokens > 0) == (index > 0)
        assert turn.answer == ANSWERS[index]
        chat.keep(turn)
        messages.append({"role": "assistant", "content": turn.answer})
    assert [message["content"] for message in chat.messages] == [each["content"] for each in messages]
    assert chat.messages[1]["thought"] == "ones 5+8+0=13\ntens 4+7+1=12\nhundreds 3+0+1=04"
    assert (chat.totals.turns, chat.totals.cached_tokens > 0) == (3, True)


def test_a_thought_never_goes_into_a_prompt(demo: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A chat template may read such a key."""
    chat, prompts, encode = Chat(*demo), list[Any](), demo[1].prompt
    monkeypatch.setattr(
        demo[1], "prompt", lambda *args, **options: prompts.append(args) or encode(*args, **options)
    )
    chat.messages = [QUESTION, REPLY | {"thought": "SECRET"}]
    chat.ask("Count to 3.")
    assert prompts == [([QUESTION, REPLY, {"role": "user", "content": "Count to 3."}],)]


def test_only_whole_turns_are_in_the_conversation(demo: Any) -> None:
    chat = Chat(*demo, seed=0)
    turn = chat.ask(QUESTIONS[0])
    with pytest.raises(InputError, match="the answer is still empty"):
        chat.keep(turn)
    assert chat.messages == []
    chat.keep(run(turn))
    assert [message["role"] for message in chat.messages] == ["user", "assistant"]
    for stranger in (turn, mlx_dg.generate(*demo, "Hi")):
        with pytest.raises(InputError, match="does not answer the last question"):
            chat.keep(stranger)


def test_a_turn_that_fails_changes_nothing(demo: Any) -> None:
    chat = Chat(*demo, thinking=True, seed=0)
    chat.keep(run(chat.ask(QUESTIONS[0])))
    before = chat.to_dict()
    for text, message in (("", "empty"), ("a " * 5000, "context holds"), ("\ud800", "not valid Unicode")):
        with pytest.raises(InputError, match=message):
            chat.ask(text)
    assert chat.to_dict() == before
    assert str(chat.ask(QUESTIONS[1])) == ANSWERS[1]


def test_a_turn_that_was_interrupted_is_cut_short(demo: Any) -> None:
    """The interrupt comes in the middle of the second block; then the next turn is that of a fresh chat."""
    chat, steps = Chat(*demo, thinking=True, seed=0), []

    def on_step(step: Any) -> None:
        steps.append(step)
        if [each.index for each in steps].count(0) == 2:
            raise KeyboardInterrupt

    turn = chat.ask(QUESTIONS[2], on_step)
    with pytest.raises(KeyboardInterrupt):
        list(turn)
    chat.keep(turn)
    assert ANSWERS[2].startswith(chat.messages[1]["content"])
    assert 10 < len(chat.messages[1]["content"]) < len(ANSWERS[2])
    following = chat.ask(QUESTIONS[0])
    messages = [{key: each[key] for key in ("role", "content")} for each in chat.messages]
    messages.append({"role": "user", "content": QUESTIONS[0]})
    assert following.token_ids == mlx_dg.generate(*demo, messages, thinking=True, seed=0).token_ids
    assert following.stats.cached_tokens > 20


def test_settings_keep_the_conversation(demo: Any) -> None:
    chat = Chat(*demo, thinking=True, seed=0)
    chat.keep(run(chat.ask(QUESTIONS[0])))
    chat.change(thinking=False)
    assert run(chat.ask(QUESTIONS[1])).thought == ""
    chat.change(thinking=True, thinking_budget=3, seed=5, n=2)
    turn = chat.ask(QUESTIONS[0])
    assert (turn.seed, len(turn.candidates), turn.settings.thinking_budget) == (5, 2, 3)
    assert len(chat.messages) == 2
    before = chat.settings
    for bad in ({"n": 0}, {"seed": -1}, {"thinking_budget": 10**6}, {"thinking": "on"}):
        with pytest.raises(InputError):
            chat.change(**bad)
    assert chat.settings == before


def test_a_candidate_goes_on(demo: Any) -> None:
    chat = Chat(*demo, seed=1, n=3)
    candidates = chat.ask("What is 99 + 88?").candidates
    assert len(set(map(str, candidates))) > 1
    chat.keep(candidates[1])
    assert chat.messages[1]["content"] == str(candidates[1])


def test_reset_forgets_and_stays_with_its_settings(demo: Any) -> None:
    chat = Chat(*demo, thinking=True, seed=0, system="Be brief.")
    chat.keep(run(chat.ask(QUESTIONS[0])))
    chat.reset()
    assert (chat.messages, chat.last, chat.totals.turns) == ([], None, 0)
    assert run(chat.ask(QUESTIONS[0])).stats.cached_tokens == 0
    assert (chat.system, chat.settings.seed) == ("Be brief.", 0)


# --- saved chats --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def held(demo: Any) -> Chat:
    settings: dict[str, Any] = {"thinking": True, "seed": 0, "n": 2, "thinking_budget": 50}
    chat = Chat(*demo, **settings, system="Sei kürzer. 🙂", name="demo", max_new_tokens=192)
    chat.keep(run(chat.ask(QUESTIONS[0])))
    return chat


def test_a_saved_chat_goes_on(demo: Any, held: Chat, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    held.save("~/a.json")
    file = tmp_path / "a.json"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    other = Chat(*demo, name="another", max_new_tokens=192)
    assert other.load("~/a.json") == "demo"
    assert other.to_dict() == held.to_dict() | {"model": "another"}
    assert other.ask("Count to 3.").token_ids == held.ask("Count to 3.").token_ids
    other.reset()
    other.save(file)  # a saved chat is replaced
    assert json.loads(file.read_text())["messages"] == []
    assert os.listdir(tmp_path) == ["a.json"]


def test_save_follows_links_and_refuses_what_is_not_a_chat(held: Chat, tmp_path: Path) -> None:
    (tmp_path / "link.json").symlink_to("real.json")
    held.save(tmp_path / "link.json")
    assert (tmp_path / "link.json").is_symlink()
    assert json.loads((tmp_path / "real.json").read_text())["format"] == FORMAT
    (tmp_path / "notes.txt").write_text("mine")
    before = sorted(os.listdir(tmp_path))
    for name in ("notes.txt", ".", "missing/a.json", "a\0b", "x" * 300):
        with pytest.raises(InputError, match=r"is not written: .*; give another name"):
            held.save(f"{tmp_path}/{name}")
    assert (tmp_path / "notes.txt").read_text() == "mine"
    assert sorted(os.listdir(tmp_path)) == before


def test_a_failure_while_writing_keeps_the_old_file(
    held: Chat, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held.save(tmp_path / "a.json")
    before = (tmp_path / "a.json").read_bytes()

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(InputError, match="is not written: No space left on device"):
        held.save(tmp_path / "a.json")
    assert ((tmp_path / "a.json").read_bytes(), os.listdir(tmp_path)) == (before, ["a.json"])


SETTINGS = {"thinking": True, "thinking_budget": None, "seed": 0, "n": 1}


@pytest.mark.parametrize(("change", "message"), [
    ({"format": "other"}, "format"),
    ({"version": 2}, "its version is 2, and this package reads 1"),
    ({"model": None}, "model must be text"),
    ({"system": 3}, "system text or null"),
    ({"settings": []}, "settings must be an object of thinking, thinking_budget, seed, n"),
    ({"settings": {"m": 1}}, "settings must be"),
    ({"settings": SETTINGS | {"thinking": 1}}, "thinking must be"),
    ({"settings": SETTINGS | {"thinking_budget": 99999}}, "above max_new"),
    ({"messages": {}}, "messages must be a list"),
    ({"messages": [QUESTION]}, "in turns"),
    ({"messages": [REPLY, QUESTION]}, "in turns"),
    ({"messages": [QUESTION, "x"]}, "in turns"),
    ({"messages": [QUESTION, REPLY | {"content": ["x"]}]}, "text as content"),
    ({"messages": [QUESTION | {"content": " \n"}, REPLY]}, "text as content"),
    ({"messages": [QUESTION, REPLY | {"thought": 1}]}, "text as content"),
    ({"messages": [QUESTION, REPLY | {"content": "\ud800"}]}, "surrogates not allowed"),
])  # fmt: skip
def test_a_bad_chat_is_refused_and_nothing_changed(
    held: Chat, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    file, before = tmp_path / "a.json", held.to_dict()
    file.write_text(json.dumps(before | {"system": "another", "messages": []} | change))
    with pytest.raises(InputError, match=f"a.json' is not a saved chat: .*{message}") as caught:
        held.load(file)
    assert len(str(caught.value).splitlines()) == 1
    assert held.to_dict() == before


@pytest.mark.parametrize("content", [b"\xff\xfe", b"{", b"[" * 100_000, b"[]", None])
def test_a_file_without_a_chat_is_refused(held: Chat, tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(InputError, match=r"a\.json' is not a saved chat: "):
        held.load(tmp_path / "a.json")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match="pipe' is not a saved chat: not a regular file"):
        held.load(tmp_path / "pipe")
