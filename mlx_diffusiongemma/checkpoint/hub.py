"""Downloads from the Hugging Face hub the files that a model is loaded from, and no others.

huggingface_hub does the work, with its cache and progress bars. After a broken connection it goes on where it
stopped, and a second run fetches only files that are not finished. A model in the cache needs no network. For
a branch, the hub is asked once for its commit, with a short timeout. Every failure becomes one line that says
what to do.
"""

from __future__ import annotations

import errno
import fnmatch
import glob
import json
import re
import shutil
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..config.model import ModelConfig
from ..errors import CheckpointError, DiffusionGemmaError, InputError
from . import foreign_files
from .hub_cache import find_snapshot, indexed_weights, is_usable, is_whole

_UNAVAILABLE = "no such directory here, and it cannot be downloaded"
_INCOMPLETE = "only part of it is in the cache, and the rest cannot be downloaded"
_STOPPED = "the download stopped"
# Besides the weights: configuration, tokenizer, template, and files that a conversion copies.
_SMALL_FILES = ["*.json", "*.jinja", "tokenizer.model", "LICENSE*", "README.md"]
_COMMIT = re.compile("[0-9a-f]{40}")
# Longest wait for the hub if the model is in the cache. An answer takes a fraction of this.
_PATIENCE_SECONDS = 1.5


def download(repo: str, revision: str | None = None) -> Path:
    """Download the files of a hub model that the cache lacks, and return the local directory.

    revision: a branch, tag or commit. None is the main branch.

    Raises:
        InputError: the model or revision does not exist, is not open to this user, or cannot be downloaded.
        ConfigError: the model is not a DiffusionGemma. This is checked before weights are fetched.
    """
    cached = _cached(repo, revision)
    if cached is not None:
        return cached
    directory = _without_weights(repo, revision)
    with hub_errors(repo, _STOPPED, revision):
        patterns = _weight_patterns(directory)
        _fetch(repo, directory.name, patterns)
        # If the hub fails at this point, some versions of huggingface_hub return the cache without an error.
        for pattern in patterns:
            _require(repo, directory, pattern)
    return directory


@contextmanager
def preview(repo: str, revision: str | None = None) -> Iterator[Path]:
    """Yield a directory like that of `download`, for callers that read no weights.

    It is in the cache if the cache has the whole model. Otherwise it is temporary, and its weight files are
    sparse: they have a header but no data. Raises the same errors as `download`.
    """
    from huggingface_hub import HfApi

    cached = _cached(repo, revision)
    if cached is not None:
        yield cached
        return
    directory = _without_weights(repo, revision)
    with tempfile.TemporaryDirectory() as temporary:
        copy = Path(temporary)
        with hub_errors(repo, _STOPPED, revision):
            for file in filter(Path.is_file, directory.iterdir()):
                if file.suffix != ".safetensors":
                    shutil.copyfile(file, copy / file.name)
            api, patterns = HfApi(), _weight_patterns(directory)
            for name in api.list_repo_files(repo, revision=directory.name):
                if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns) and "/" not in name:
                    metadata = api.parse_safetensors_file_metadata(repo, name, revision=directory.name)
                    _write_sparse(copy / name, metadata)
            for pattern in patterns:
                _require(repo, copy, pattern, directory.name)
        yield copy


# --- the cache ----------------------------------------------------------------------------------------------


def _cached(repo: str, revision: str | None) -> Path | None:
    """Return the model's directory in the cache, or None if something has to be fetched.

    Raises `InputError` if something has to be fetched and the hub cannot be reached.
    """
    with hub_errors(repo, _UNAVAILABLE, revision):
        snapshot = find_snapshot(repo, revision)
        usable = snapshot if snapshot is not None and is_usable(snapshot) else None
        whole = usable if usable is not None and is_whole(repo, usable) else None
    is_commit = revision is not None and _COMMIT.fullmatch(revision) is not None
    if snapshot is None and not is_commit:
        return None  # the download asks for the branch's commit itself
    if is_commit and whole is not None:
        return whole
    with hub_errors(repo, _UNAVAILABLE if snapshot is None else _INCOMPLETE, revision):
        from huggingface_hub.errors import RevisionNotFoundError

        try:
            commit = _current_commit(repo, revision, _PATIENCE_SECONDS if usable else None)
        except RevisionNotFoundError:
            raise
        except Exception:
            if usable is not None:
                return usable
            raise
    return whole if whole is not None and whole.name == commit else None


def _current_commit(repo: str, revision: str | None, patience: float | None) -> str:
    """Ask the hub once for the commit of a revision. Raise the hub's error, or `TimeoutError`.

    The request runs in a thread, because nothing else limits how long looking up the hub's address takes.
    """
    from huggingface_hub import HfApi

    answers: list[Any] = []

    def ask() -> None:
        try:
            answers.append(HfApi().model_info(repo, revision=revision, timeout=patience).sha)
        except Exception as error:
            answers.append(error)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(patience)
    answer = answers[0] if answers else TimeoutError(f"no answer within {patience} seconds")
    if isinstance(answer, Exception):
        raise answer
    return str(answer)


# --- the download -------------------------------------------------------------------------------------------


def _without_weights(repo: str, revision: str | None) -> Path:
    """Download everything but weights, and return the directory. config.json is checked first."""
    with hub_errors(repo, _UNAVAILABLE, revision):
        directory = _fetch(repo, revision, ["config.json"])
    with hub_errors(repo, _STOPPED, revision):
        _require(repo, directory, "config.json")
        ModelConfig.load(directory)
        # The cache names the directory after the commit. The other files are fetched from that commit, so a
        # push in between does not mix two versions.
        return _fetch(repo, directory.name, _SMALL_FILES)


def _fetch(repo: str, revision: str | None, patterns: list[str]) -> Path:
    from huggingface_hub import snapshot_download

    # A pattern's * matches "/" too: without `ignore_patterns`, exports in subfolders would be fetched.
    return Path(snapshot_download(repo, revision=revision, allow_patterns=patterns, ignore_patterns="*/*"))


def _write_sparse(path: Path, metadata: Any) -> None:
    """Write a sparse safetensors file: the header that a `SafetensorsFileMetadata` describes, no data."""
    entries = {
        name: {"dtype": info.dtype, "shape": list(info.shape), "data_offsets": list(info.data_offsets)}
        for name, info in metadata.tensors.items()
    }
    header = json.dumps(entries).encode()
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(
            8 + len(header) + max((entry["data_offsets"][1] for entry in entries.values()), default=0)
        )


@contextmanager
def hub_errors(repo: str, subject: str, revision: str | None = None) -> Iterator[None]:
    """Turn every exception of huggingface_hub into an `InputError` with repo, subject, reason and advice.

    subject: what failed, such as "the download stopped".
    """
    try:
        yield
    except DiffusionGemmaError as error:
        raise type(error)(f"{repo}: {error}") from None
    # Any `Exception`: those of its HTTP and storage libraries come through too, and differ by version.
    except Exception as error:
        raise InputError(f"{repo}: {subject}: {_reason(error, repo, revision)}") from error


def _weight_patterns(directory: Path) -> list[str]:
    """Return patterns of the weight files: those that the index lists, or the usual name without an index."""
    names = indexed_weights(directory)
    return ["model*.safetensors"] if names is None else [glob.escape(name) for name in names]


def _require(repo: str, directory: Path, pattern: str, commit: str | None = None) -> None:
    """Raise `CheckpointError` if no file matches. The message says what the repository holds instead."""
    from huggingface_hub import HfApi

    if any(directory.glob(pattern)):
        return
    described = foreign_files.describe(HfApi().list_repo_files(repo, revision=commit or directory.name))
    if described is not None:
        raise CheckpointError(f"it holds {described}")
    raise CheckpointError(
        f"{pattern[:80]} is missing or was not downloaded; try again, or give the id of a model that has it"
    )


def _reason(error: BaseException, repo: str, revision: str | None) -> str:
    """Return the reason of an exception of huggingface_hub, and what the user can do."""
    from huggingface_hub import constants, errors

    if isinstance(error, (errors.LocalEntryNotFoundError, RuntimeError)) and error.__cause__:
        error = error.__cause__  # "not in the cache" or "while uploading" only wrap the reason
    page = f"{constants.ENDPOINT}/{repo}"
    status = getattr(getattr(error, "response", None), "status_code", None)
    text = " ".join(str(error).split())
    if isinstance(error, errors.GatedRepoError):
        if status == 401:
            return f"it is gated; accept its licence at {page}, log in with `hf auth login` and try again"
        return f"it is gated and your account is not on its list; accept its licence at {page} and try again"
    # For a bad token the hub adds these words. Without them, 401 is its answer to users not logged in.
    if status == 401 and ("Invalid credentials" in text or "Invalid user token" in text):
        return "the hub refuses your token; log in again with `hf auth login`, or correct HF_TOKEN"
    if status == 401 or isinstance(error, errors.RepositoryNotFoundError):
        return (
            "the hub has no such model, or hides it from you; check the name, or if it is private or gated "
            f"log in with `hf auth login` and accept its licence at {page}"
        )
    if isinstance(error, errors.LocalTokenNotFoundError):
        return "you are not logged in; run `hf auth login`"
    if status == 403:
        return f"your token may not do this; give it the permission at {constants.ENDPOINT}/settings/tokens"
    if isinstance(error, errors.RevisionNotFoundError):
        return f"it has no revision {revision!r}; {page}/tree/main lists its branches and tags"
    if status is not None:
        return f"the hub answered HTTP {status} ({text[:200]}); try again later, finished files are kept"
    if isinstance(error, errors.OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set; unset it"
    if isinstance(error, errors.HFValidationError):
        return f"this is not a hub id ({text[:200]}); it looks like owner/name"
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return (
            f"the disk with {constants.HF_HUB_CACHE} is full; free space or set HF_HOME to a larger disk, "
            "finished files are kept"
        )
    if isinstance(error, OSError) and error.filename:
        return f"{error.strerror} at {error.filename}; correct it or set HF_HOME to another directory"
    return f"{type(error).__name__}: {text[:200]}; check the network and try again, finished files are kept"
