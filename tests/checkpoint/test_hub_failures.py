"""Refusals of a hub, and uploads to it. It runs on the loopback interface, nothing leaves the machine."""

from __future__ import annotations

import errno
import re
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from oracle import demo
from support.hub_calls import DEMO, complaint, content, downloaded, in_shards, outcomes, python
from support.hub_server import TOKEN, Hub

from mlx_diffusiongemma.checkpoint import loading
from mlx_diffusiongemma.checkpoint.hub import download
from mlx_diffusiongemma.errors import InputError

pytestmark = pytest.mark.slow

# --- failures ---------------------------------------------------------------------------------------------

GATED = {"X-Error-Code": "GatedRepo"}


REFUSALS = {
    "gated": (401, GATED, r"it is gated; accept its licence at http\S+/owner/gated, log in with `hf auth lo"),
    "listed": (403, GATED, r"it is gated and your account is not on its list; accept its licence at http"),
    "hidden": (401, {}, r"the hub has no such model, or hides it from you; check the name, .* log in with `"),
    "token": (401, {"X-Error-Message": "Invalid credentials in Authorization header"}, "the hub refuses y"),
    "closed": (403, {}, r"your token may not do this; give it the permission at http\S+/settings/tokens"),
    "gone": (404, {"X-Error-Code": "RepoNotFound"}, "the hub has no such model, or hides it from you; ch"),
    "broken": (500, {}, r"the hub answered HTTP 500 \(.*\); try again later, finished files are kept"),
}


def test_a_refusal_says_what_to_do(hub: Hub, home: Path) -> None:
    for name, (status, headers, _) in REFUSALS.items():
        hub.commit(f"owner/{name}", DEMO)
        hub.refusals[f"owner/{name}"] = (status, headers)
    lines = outcomes(hub, home, *(("download", f"owner/{name}") for name in REFUSALS))
    for (name, (*_, expected)), line in zip(REFUSALS.items(), lines, strict=True):
        prefix = f"owner/{name}: no such directory here, and it cannot be downloaded: "
        assert re.match(prefix + expected, line), line


def test_a_gated_model_shows_its_files_only_to_those_let_in(hub: Hub, home: Path) -> None:
    """As the real hub does it: anyone may list what is there."""
    hub.commit("owner/model", DEMO)
    hub.gated.add("owner/model")
    assert "; accept its licence at " in complaint(hub, home, "owner/model")
    assert content(downloaded(hub, home, "owner/model", HF_TOKEN=TOKEN)) == DEMO


def test_a_refusal_in_the_middle_is_told_apart(hub: Hub, home: Path) -> None:
    hub.commit("owner/model", DEMO)

    def refuse(path: str) -> None:
        hub.refusals["owner/model"] = (403, GATED)

    hub.on_file = refuse
    line = complaint(hub, home, "owner/model")
    # Early versions take what is in the cache for all there is.
    reasons = (
        "the download stopped: it is gated and ",
        "model*.safetensors is missing or was not downloaded",
    )
    assert line.startswith(tuple(f"owner/model: {reason}" for reason in reasons))


def test_what_is_not_there_is_named(hub: Hub, home: Path) -> None:
    small = {name: DEMO[name] for name in ("config.json", "tokenizer.json")}
    hub.commit("owner/none", {"README.md": b""})
    hub.commit("owner/bin", small)
    hub.commit("owner/gguf", {"model.gguf": b""})
    hub.commit("owner/both", small | {"q4/model.gguf": b""})
    hub.commit("owner/lora", {"adapter_config.json": b"{}", "adapter_model.safetensors": b""})
    nowhere = "no such directory here, and it cannot be downloaded: "
    attempts = {
        ("owner/none",): "config.json is missing or was not downloaded; ",
        ("owner/bin",): "model*.safetensors is missing or was not downloaded; ",
        ("owner/gguf",): "it holds weights in GGUF, the format of llama.cpp; ",
        ("owner/both",): "it holds weights in GGUF, the format of llama.cpp; ",
        ("owner/lora",): "it holds a LoRA adapter, which changes a model ",
        ("owner/lora", "v9"): f"{nowhere}it has no revision 'v9'; ",
        ("owner/a--b",): f"{nowhere}this is not a hub id (",
    }
    lines = outcomes(hub, home, *(("download", *arguments) for arguments in attempts))
    for (arguments, expected), line in zip(attempts.items(), lines, strict=True):
        said = line.removeprefix(f"{arguments[0]}: ").removeprefix("the download stopped: ")
        assert said.startswith(expected), line


def test_an_unreachable_hub_is_said_to_be(hub: Hub, home: Path) -> None:
    line = complaint(hub, home, "owner/model", HF_ENDPOINT="http://127.0.0.1:9")
    assert "ConnectError: " in line
    assert "check the network and try again" in line
    line = complaint(hub, home, "owner/model", HF_HUB_OFFLINE="1")
    assert "HF_HUB_OFFLINE is set; unset it" in line
    # Of a commit, too, for which nothing has to be asked if it is in the cache.
    commit = ("download", "owner/model", "0" * 40)
    (line,) = outcomes(hub, home, commit, HF_ENDPOINT="http://127.0.0.1:9")
    assert line.startswith("owner/model: no such directory here, and it cannot")


@pytest.mark.parametrize(("error", "expected"), [
    (OSError(errno.ENOSPC, "No space left on device"), r"is full; free space or set HF_HOME"),
    (PermissionError(errno.EACCES, "Permission denied", "/cache/x"), r"Permission denied at /cache/x; "),
    (OSError("Consistency check failed:\nfile should be"), r"Consistency check failed: file should be; "),
])  # fmt: skip
def test_a_disk_that_refuses_is_named(error: OSError, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(InputError, match=rf"^owner/model: .* cannot be downloaded: .*{expected}") as caught:
        download("owner/model")
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("model", ["demo", str(demo.DIRECTORY)])
def test_what_is_here_already_has_no_revision(model: str) -> None:
    with pytest.raises(InputError, match="is a directory here, so it has no revision 'v1'; leave it out"):
        loading.resolve(model, "v1")
    assert loading.resolve(model).is_dir()


# --- uploads ----------------------------------------------------------------------------------------------


def test_an_upload_comes_back_as_it_was(hub: Hub, home: Path, tmp_path: Path) -> None:
    hub.commit("me/model", {"README.md": b"old", "model-00002-of-00002.safetensors": b"old", "notes.md": b""})
    assert outcomes(hub, home, ("upload", str(demo.DIRECTORY), "me/model", TOKEN)) == [f"{hub.url}/me/model"]
    # Weights of an earlier upload would be loaded with the new ones; other files are the owner's.
    assert hub.files("me/model") == DEMO | {"notes.md": b""}
    assert content(downloaded(hub, tmp_path / "elsewhere", "me/model")) == DEMO


def test_convert_from_hub_to_hub(hub: Hub, home: Path, tmp_path: Path) -> None:
    """Another revision than main is converted, a repository created, and what is there runs by its id."""
    hub.commit("owner/demo", in_shards(2), branch="v1")
    hub.commit("owner/demo", {"config.json": b"broken"})
    command = ["-m", "mlx_diffusiongemma", "convert", "owner/demo", "--revision", "v1"]
    target = tmp_path / "out"
    options = ["--mlx-path", str(target), "--upload-repo", "me/demo-4bit"]
    done = python(hub, home, *command, *options, HF_TOKEN=TOKEN)
    assert done.returncode == 0, done.stderr
    assert content(target) == {k: v for k, v in hub.files("me/demo-4bit").items() if k != ".gitattributes"}
    card = huggingface_hub.ModelCard((target / "README.md").read_text())
    assert card.data.base_model == "owner/demo"
    assert card.data.license == "apache-2.0"
    assert "at revision `v1`" in card.text
    assert 'mlx_dg.load("me/demo-4bit")' in card.text
    assert content(downloaded(hub, tmp_path / "elsewhere", "me/demo-4bit")) == content(target)


def test_an_upload_that_is_refused_says_what_to_do(hub: Hub, home: Path) -> None:
    hub.commit("me/model", {})
    hub.commit("me/closed", {})
    hub.refusals["me/closed"] = (403, {})
    attempts = {
        ("", "me/model"): "you are not logged in; run `hf auth login`",
        ("hf_wrong", "me/model"): "the hub refuses your token; log in again",
        (TOKEN, "no/such/id"): "this is not a hub id (",
        (TOKEN, "me/closed"): "your token may not do this; give it the permission",
    }
    calls = (("upload", str(demo.DIRECTORY), repo, token) for token, repo in attempts)
    lines = outcomes(hub, home, *calls)
    for ((_, repo), expected), line in zip(attempts.items(), lines, strict=True):
        assert line.startswith(f"{repo}: it cannot be uploaded to: {expected}"), line
