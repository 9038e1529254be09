"""Finds models in the cache of the Hugging Face hub, and checks if they are complete."""

from __future__ import annotations

import fnmatch
import re
from pathlib import Path

from ..config.json_file import JsonObject, read_json
from ..errors import CheckpointError, DiffusionGemmaError

# A model loads without these, but does not work as its author intended.
_WANTED_FILES = ("generation_config.json", "tokenizer_config.json", "chat_template.jinja")
_NUMBERED = re.compile(r"model.*-\d+-of-(?P<count>\d+)\.safetensors")


def find_snapshot(repo: str, revision: str | None) -> Path | None:
    """Return the cached directory of a revision, None if it lacks config.json. It may lack other files."""
    from huggingface_hub import try_to_load_from_cache

    config = try_to_load_from_cache(repo, "config.json", revision=revision)
    return Path(config).parent if isinstance(config, str) else None


def is_usable(snapshot: Path) -> bool:
    """Return True if all files exist that loading a model requires."""
    names = {path.name for path in snapshot.iterdir() if path.is_file()}
    if not names & {"tokenizer.json", "tokenizer.model"}:
        return False
    try:
        wanted = indexed_weights(snapshot)
    except DiffusionGemmaError:  # loading explains what is wrong with the index
        wanted = None
    if wanted is not None:
        return names.issuperset(wanted)
    weights = {name for name in names if fnmatch.fnmatchcase(name, "model*.safetensors")}
    numbered = [match for match in map(_NUMBERED.fullmatch, weights) if match]
    return bool(weights) and not any(int(match["count"]) > len(numbered) for match in numbered)


def is_whole(repo: str, snapshot: Path) -> bool:
    """Return True if each of `_WANTED_FILES` is in the cache, or known to be missing on the hub."""
    from huggingface_hub import try_to_load_from_cache

    # A path, or an object for a file that the hub does not have, or None if that is unknown.
    known = (try_to_load_from_cache(repo, name, revision=snapshot.name) for name in _WANTED_FILES)
    return None not in known


def indexed_weights(directory: Path) -> list[str] | None:
    """Return the weight files' names in the index, None without it. Raise `CheckpointError` if it is bad."""
    index = directory / "model.safetensors.index.json"
    if not index.exists():
        return None
    weight_map = JsonObject(read_json(index), "", index.name).values.get("weight_map")
    names = sorted(set(map(str, weight_map.values()))) if isinstance(weight_map, dict) else []
    if not names:
        raise CheckpointError(f"{index.name} names no files; give the id of another copy of this model")
    for name in names:
        if "/" in name or not name.endswith(".safetensors"):
            raise CheckpointError(
                f"{index.name} names {name[:80]!r}, which is not a safetensors file beside it; "
                "give the id of another copy of this model"
            )
    return names
