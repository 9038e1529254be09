"""Uploads a converted directory to the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path

from mlx_diffusiongemma.checkpoint.hub import hub_errors

_SUBJECT = "it cannot be uploaded to"


def check_upload(repo: str) -> None:
    """Ask the hub who is logged in, so that a missing token shows before the conversion, not after it.

    Creates nothing. Raises `InputError` if `repo` is not a hub id or no user is logged in.
    """
    from huggingface_hub import HfApi

    with hub_errors(repo, _SUBJECT):
        api = HfApi()
        api.whoami()
        api.repo_exists(repo)  # checks the id and the connection


def upload(directory: Path, repo: str) -> str:
    """Push everything in `directory` to the hub's `repo`, which is created if needed. Return its URL.

    Removes weights of earlier uploads, because other programs load every safetensors file there. Raises
    `InputError` if the upload fails. A second run sends only the missing files.
    """
    from huggingface_hub import HfApi

    with hub_errors(repo, _SUBJECT):
        api = HfApi()
        url = api.create_repo(repo, exist_ok=True)
        api.upload_folder(
            repo_id=url.repo_id,
            folder_path=directory,
            commit_message="Convert to MLX with mlx-diffusiongemma",
            delete_patterns="*.safetensors",
        )
    return str(url)
