"""Refusals of a hub, and uploads to it. It runs on the loopback interface, nothing leaves the machine."""

from __future__ import annotations

import errno
import json
import re
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from oracle import demo
from support.hub_calls import DEMO, DOWNLOAD, complaint, content, downloaded, in_shards, python
from support.hub_server import TOKEN, Hub

from mlx_diffusiongemma.checkpoint import loading
from mlx_diffusiongemma.checkpoint.hub import download
from mlx_diffusiongemma.errors import InputError

pytestmark = pytest.mark.slow

UPLOAD = """
import pathlib, sys
from mlx_diffusiongemma.converter.hub import check_upload, upload
check_upload(sys.argv[2])
print(upload(pathlib.Path(sys.argv[1]), sys.argv[2]))
"""
# The same with one token after the other; starting a process takes longer than all of them.
ATTEMPTS = """
import json, os, pathlib, sys
from mlx_diffusiongemma.converter.hub import check_upload, upload
from mlx_diffusiongemma.errors import InputError
directory, attempts = json.loads(sys.argv[1])
for token, repo in attempts:
    os.environ["HF_TOKEN"] = token
    try:
        check_upload(repo)
        upload(pathlib.Path(directory), repo)
    except InputError as error:
        print(error)
"""
# The same of downloads.
DOWNLOADS = """
import json, sys
from mlx_diffusiongemma.errors import InputError
from mlx_diffusiongemma.checkpoint.hub import download
for arguments in json.loads(sys.argv[1]):
    try:
        print(download(*arguments))
    except InputError as error:
        print(error)
"""


# --- failures ---------------------------------------------------------------------------------------------

GATED = {"X-Error-Code": "GatedRepo"}


@pytest.mark.parametrize(
    ("status", "headers", "expected"),
    [
        (
            401,
            GATED,
            r"it is gated; accept its licence at http\S+/owner/model, log in with `hf auth login` and",
        ),
        (
            403,
            GATED,
            r"gated and your account is not on its list; accept its licence at http\S+/owner/model and",
        ),
        (
            401,
            {},
            r"no such model, or hides it from you; check the name, .* log in with `hf auth login` and acc",
        ),
        (
            401,
            {"X-Error-Message": "Invalid credentials in Authorization header"},
            r"the hub refuses your token",
        ),
        (403, {}, r"your token may not do this; give it the permission at http\S+/settings/tokens"),
        (404, {"X-Error-Code": "RepoNotFound"}, r"no such model, or hides it from you; check the name"),
        (500, {}, r"the hub answered HTTP 500 \(.*\); try again later, finished files are kept"),
    ],
)
def test_a_refusal_says_what_to_do(
    hub: Hub, home: Path, status: int, headers: dict[str, str], expected: str
) -> None:
    hub.commit("owner/model", DEMO)
    hub.refusals["owner/model"] = (status, headers)
    line = complaint(hub, home, DOWNLOAD, "owner/model")
    prefix = "owner/model: no such directory here, and it cannot be downloaded: "
    assert line.startswith(prefix)
    assert re.match(r"(it is |the hub has )?" + expected, line.removeprefix(prefix)), line


def test_a_gated_model_shows_its_files_only_to_those_let_in(hub: Hub, home: Path) -> None:
    """As the real hub does it: anyone may list what is there."""
    hub.commit("owner/model", DEMO)
    hub.gated.add("owner/model")
    assert "; accept its licence at " in complaint(hub, home, DOWNLOAD, "owner/model")
    assert content(downloaded(hub, home, "owner/model", HF_TOKEN=TOKEN)) == DEMO


def test_a_refusal_in_the_middle_is_told_apart(hub: Hub, home: Path) -> None:
    hub.commit("owner/model", DEMO)

    def refuse(path: str) -> None:
        hub.refusals["owner/model"] = (403, GATED)

    hub.on_file = refuse
    line = complaint(hub, home, DOWNLOAD, "owner/model")
    # Early versions take what is in the cache for all there is.
    reasons = (
        "the download stopped: it is gated and ",
        "model*.safetensors is missing or was not downloaded; ",
    )
    assert line.startswith(tuple(f"owner/model: {reason}" for reason in reasons))


def test_what_is_not_there_is_named(hub: Hub, home: Path) -> None:
    small = {name: DEMO[name] for name in ("config.json", "tokenizer.json")}
    hub.commit("owner/none", {"README.md": b""})
    hub.commit("owner/bin", small)
    hub.commit("owner/gguf", {"model.gguf": b""})
    hub.commit("owner/both", small | {"q4/model.gguf": b""})
    hub.commit("owner/lora", {"adapter_config.json": b"{}", "adapter_model.safetensors": b""})
    attempts = {
        ("owner/none",): "config.json is missing or was not downloaded; ",
        ("owner/bin",): "model*.safetensors is missing or was not downloaded; ",
        ("owner/gguf",): "it holds weights in GGUF, the format of llama.cpp; ",
        ("owner/both",): "it holds weights in GGUF, the format of llama.cpp; ",
        ("owner/lora",): "it holds a LoRA adapter, which changes a model ",
        (
            "owner/lora",
            "v9",
        ): "no such directory here, and it cannot be downloaded: it has no revision 'v9'; ",
        ("owner/a--b",): "no such directory here, and it cannot be downloaded: this is not a hub id (",
    }
    done = python(hub, home, "-c", DOWNLOADS, json.dumps(list(attempts)))
    assert done.returncode == 0, done.stderr
    for (arguments, expected), line in zip(attempts.items(), done.stdout.splitlines(), strict=True):
        assert (
            line.removeprefix(f"{arguments[0]}: ").removeprefix("the download stopped: ").startswith(expected)
        )


def test_an_unreachable_hub_is_said_to_be(hub: Hub, home: Path) -> None:
    line = complaint(hub, home, DOWNLOAD, "owner/model", HF_ENDPOINT="http://127.0.0.1:9")
    assert "ConnectError: " in line
    assert "check the network and try again" in line
    line = complaint(hub, home, DOWNLOAD, "owner/model", HF_HUB_OFFLINE="1")
    assert "HF_HUB_OFFLINE is set; unset it" in line
    # Of a commit, too, for which nothing has to be asked if it is in the cache.
    done = python(hub, home, "-c", DOWNLOAD, "owner/model", "0" * 40, HF_ENDPOINT="http://127.0.0.1:9")
    assert "InputError: owner/model: no such directory here, and it cannot" in done.stderr.splitlines()[-1]
    assert "Retry" not in done.stderr


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), r"is full; free space or set HF_HOME"),
        (PermissionError(errno.EACCES, "Permission denied", "/cache/x"), r"Permission denied at /cache/x; "),
        (OSError("Consistency check failed:\nfile should be"), r"Consistency check failed: file should be; "),
    ],
)
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
    done = python(hub, home, "-c", UPLOAD, str(demo.DIRECTORY), "me/model", HF_TOKEN=TOKEN)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == f"{hub.url}/me/model"
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
    given = json.dumps([str(demo.DIRECTORY), list(attempts)])
    done = python(hub, home, "-c", ATTEMPTS, given)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    for ((_, repo), expected), line in zip(attempts.items(), lines, strict=True):
        assert line.startswith(f"{repo}: it cannot be uploaded to: {expected}"), line
