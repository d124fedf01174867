"""Uploads an export to the Hugging Face hub with the user's own login; private by default."""

from __future__ import annotations

from pathlib import Path

from leafe.core import ForeignFailure, UserError


def push(folder: Path, repo: str, *, public: bool = False) -> str:
    """Upload an export's folder as a dataset; other files in the repository stay.

    Args:
        folder: What `export` wrote.
        repo: `USER/NAME`.
        public: Create the repository readable by everybody.

    Returns:
        The dataset's address.

    Raises:
        UserError: `folder` is no export, huggingface_hub or a login is missing, or the hub refuses
            the name.
        ForeignFailure: The hub cannot be reached.
    """
    if not (folder / "README.md").is_file():
        raise UserError(
            f"{folder} is no export (it has no README.md): give the folder that `leafe "
            "export` wrote."
        )
    try:
        from huggingface_hub import HfApi
        from huggingface_hub.errors import (
            HfHubHTTPError,
            HFValidationError,
            LocalTokenNotFoundError,
        )
    except ModuleNotFoundError as error:
        raise UserError(
            f"--push needs the package {error.name}, which is not installed: pip install "
            "huggingface_hub."
        ) from error
    api = HfApi()
    try:
        url = api.create_repo(repo, repo_type="dataset", private=not public, exist_ok=True)
        api.upload_folder(
            repo_id=repo,
            repo_type="dataset",
            folder_path=str(folder),
            commit_message="leafe export",
        )
    except LocalTokenNotFoundError as error:
        raise UserError(
            "Nobody is logged in to the hub here: run `hf auth login`, then export with "
            "--push again."
        ) from error
    except HFValidationError as error:
        raise UserError(
            f"{repo!r} is no name for a data set: write USER/NAME ({error})."
        ) from error
    except HfHubHTTPError as error:
        code = getattr(error.response, "status_code", None)
        if code in (401, 403):
            raise UserError(
                f"The hub refuses {repo} to this login ({code}): check the name, and `hf "
                "auth whoami`."
            ) from error
        raise ForeignFailure(
            f"The hub did not take {repo}: {' '.join(str(error).split())[:300]}. The "
            f"export is in {folder}: push it again later."
        ) from error
    except OSError as error:  # no connection
        raise ForeignFailure(
            f"The hub cannot be reached ({type(error).__name__}). The export is in "
            f"{folder}: push it again later."
        ) from error
    return str(url)
