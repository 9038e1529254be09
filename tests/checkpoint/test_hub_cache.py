"""Models in the hub's cache: complete ones need no network, and the hub is asked no more than it must be."""

from __future__ import annotations

import threading
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub.constants
import pytest
from click.testing import CliRunner
from support.hub_calls import (
    DEMO,
    DOWNLOAD,
    cached,
    commands,
    complaint,
    content,
    downloaded,
    in_shards,
    outcomes,
    python,
)
from support.hub_server import Hub

from mlx_diffusiongemma.checkpoint import hub as hub_module
from mlx_diffusiongemma.checkpoint.hub_cache import find_snapshot, is_usable, is_whole
from mlx_diffusiongemma.checkpoint.weights import INDEX
from mlx_diffusiongemma.cli import main

pytestmark = pytest.mark.slow

UNREACHABLE = {"HF_ENDPOINT": "http://127.0.0.1:9"}
OFFLINE = {"HF_HUB_OFFLINE": "1"}
OUT_OF_REACH = pytest.mark.parametrize("environment", [OFFLINE, UNREACHABLE], ids=["offline", "unreachable"])
BRANCH = "GET /api/models/owner/model"
TWO = in_shards(2)
FIRST, SECOND = sorted(name for name in TWO if name.endswith(".safetensors"))


def without(files: dict[str, bytes], *names: str) -> dict[str, bytes]:
    return {name: data for name, data in files.items() if name not in names}


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The home of a cache, of this process too."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "home" / "hub"))
    return tmp_path / "home"


# --- without a network --------------------------------------------------------------------------------------


@OUT_OF_REACH
def test_commands_work_offline(hub: Hub, home: Path, tmp_path: Path, environment: dict[str, str]) -> None:
    cached(TWO, home, "owner/model")
    generation = ["generate", "Capital of Norway?", "--seed", "0", "--model"]
    calls = [["info"], ["convert", "--dry-run"], generation]
    conversion = ["convert", "--mlx-path", str(tmp_path / "out")]
    expected = [CliRunner().invoke(main, [*call, "demo"]).stdout for call in calls]
    cached_calls = [[*call, "owner/model"] for call in (*calls, conversion)]
    *results, (status, _, _) = commands(hub, home, *cached_calls, **environment)
    assert results == [(0, stdout, "") for stdout in expected]
    assert status == 0
    assert (tmp_path / "out" / "model.safetensors").exists()
    assert not hub.requests


@OUT_OF_REACH
def test_what_is_not_complete_is_one_line_at_once(hub: Hub, home: Path, environment: dict[str, str]) -> None:
    for repo, lacking in (("owner/shard", SECOND), ("owner/words", "tokenizer.json")):
        cached(without(TWO, lacking), home, repo)
    reason = "HF_HUB_OFFLINE is set; unset it" if environment == OFFLINE else "ConnectError: "
    calls = [(how, repo) for how in ("download", "preview") for repo in ("owner/shard", "owner/words")]
    for (_, repo), line in zip(calls, outcomes(hub, home, *calls, **environment), strict=True):
        expected = f"{repo}: only part of it is in the cache, and the rest cannot be downloaded: {reason}"
        assert line.startswith(expected)


def test_a_hub_that_does_not_answer_is_not_waited_for(hub: Hub, home: Path) -> None:
    snapshot = cached(TWO, home, "owner/model")
    done = threading.Event()
    hub.on_request = done.wait
    try:
        ended = python(hub, home, "-c", DOWNLOAD, "owner/model")
        assert (ended.stdout.strip(), ended.stderr) == (str(snapshot), "")
        assert hub.requests == [BRANCH]  # still open, and no other
    finally:
        done.set()


def test_the_search_for_an_address_is_not_waited_for(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the HTTP client nor huggingface_hub limits how long that takes."""
    snapshot = cached(TWO, home, "owner/model")
    done = threading.Event()

    def look_up(*_: object, **__: object) -> object:
        done.wait(60)
        return SimpleNamespace(sha="0" * 40)  # what is in the cache would be old

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", look_up)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: 1 / 0)
    monkeypatch.setattr(hub_module, "_PATIENCE_SECONDS", 0.01)
    try:
        assert hub_module.download("owner/model") == snapshot
    finally:
        done.set()


def test_a_hub_that_refuses_does_not_take_away_what_is_there(hub: Hub, home: Path) -> None:
    """As huggingface_hub itself: a token may have expired, a repository may be gone."""
    snapshots = {}
    for status in (401, 404, 500, 503):
        repo = f"owner/{status}"
        snapshots[repo] = str(cached(TWO, home, repo))
        hub.commit(repo, TWO)
        hub.refusals[repo] = (status, {"X-Error-Code": "RepoNotFound"} if status < 500 else {})
    assert outcomes(hub, home, *(("download", repo) for repo in snapshots)) == [*snapshots.values()]


# --- with a hub ---------------------------------------------------------------------------------------------


def test_a_complete_model_costs_one_request_and_a_commit_none(hub: Hub, home: Path) -> None:
    commit = hub.commit("owner/model", TWO)
    snapshot = downloaded(hub, home, "owner/model")
    hub.requests.clear()
    assert downloaded(hub, home, "owner/model") == snapshot
    assert hub.requests == [BRANCH]
    hub.requests.clear()
    assert downloaded(hub, home, "owner/model", commit) == snapshot
    for environment in (OFFLINE, UNREACHABLE):
        assert downloaded(hub, home, "owner/model", **environment) == snapshot
    assert outcomes(hub, home, ("preview", "owner/model", commit)) == [str(snapshot)]
    assert not hub.requests


def test_a_push_is_fetched(hub: Hub, home: Path) -> None:
    hub.commit("owner/model", TWO)
    downloaded(hub, home, "owner/model")
    pushed = TWO | {"README.md": b"new"}
    hub.commit("owner/model", pushed)
    assert content(downloaded(hub, home, "owner/model")) == pushed


def test_a_revision_that_is_gone_is_an_error(hub: Hub, home: Path) -> None:
    hub.commit("owner/model", DEMO)
    cached(DEMO, home, "owner/model", branch="old")
    line = complaint(hub, home, "owner/model", "old")
    assert "it has no revision 'old'; " in line


def test_what_is_lacking_is_fetched(hub: Hub, home: Path) -> None:
    """Another program may have fetched the weights and nothing else."""
    lacking = (SECOND, "tokenizer.json", "chat_template.jinja", "generation_config.json")
    for name in lacking:
        cached(without(TWO, name), home, f"owner/{name}", commit=hub.commit(f"owner/{name}", TWO))
    snapshots = outcomes(hub, home, *(("download", f"owner/{name}") for name in lacking))
    assert [content(Path(snapshot)) for snapshot in snapshots] == [TWO] * len(lacking)
    assert hub.bytes_served == {name: len(TWO[name]) for name in lacking}


# --- what is complete ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("files", "usable"), [
    (DEMO, True),
    (TWO, True),
    (without(DEMO, "model.safetensors"), False),
    (without(TWO, FIRST), False),
    # Another program has not come to the index yet.
    (without(TWO, INDEX), True),
    (without(TWO, INDEX, SECOND), False),
    ({"tokenizer.model" if name == "tokenizer.json" else name: DEMO[name] for name in DEMO}, True),
    (without(DEMO, "tokenizer.json"), False),
    # Loading says what is wrong with an index better than a download can.
    (DEMO | {INDEX: b"{"}, True),
    ({name: DEMO[name] for name in ("config.json", "model.safetensors", "tokenizer.json")}, True),
])  # fmt: skip
def test_which_snapshots_are_usable(home: Path, files: dict[str, bytes], usable: bool) -> None:
    snapshot = cached(files, home, "owner/model")
    assert find_snapshot("owner/model", None) == snapshot
    assert is_usable(snapshot) == usable


def test_a_link_to_a_blob_that_is_gone_is_no_file(home: Path) -> None:
    snapshot = cached(TWO, home, "owner/model")
    (snapshot / SECOND).resolve().unlink()
    assert not is_usable(snapshot)


def test_a_file_that_the_hub_is_known_to_lack_is_not_missed(home: Path) -> None:
    name = "generation_config.json"
    snapshot = cached(without(DEMO, name), home, "owner/model")
    assert not is_whole("owner/model", snapshot)
    note = snapshot.parent.parent / ".no_exist" / snapshot.name / name
    note.parent.mkdir(parents=True)
    note.touch()  # as huggingface_hub does when a program has asked for the file
    assert is_whole("owner/model", snapshot)


def test_revisions_are_found_by_branch_and_by_commit(home: Path) -> None:
    snapshot = cached(DEMO, home, "owner/model", branch="v1")
    assert find_snapshot("owner/model", "v1") == find_snapshot("owner/model", snapshot.name) == snapshot
    assert find_snapshot("owner/model", None) is None
    assert find_snapshot("owner/other", None) is None
