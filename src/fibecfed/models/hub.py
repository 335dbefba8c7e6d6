"""Publishing a folder on the Hugging Face hub, or a mirror of it: `HF_TOKEN`, `HF_ENDPOINT`."""

from __future__ import annotations

from pathlib import Path

import huggingface_hub
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError, OfflineModeIsEnabled

from ..core.errors import RunFailed, UserError

_THERE_AT_FIRST = {".gitattributes", "README.md"}


def publish(folder: Path, repo: str, *, private: bool, update: bool, message: str) -> str:
    """Make a repository for a model, unless it is there, and put the files of a folder into it as one commit.

    Args:
        repo: as owner/name.
        private: whether a new repository can be seen by its owners alone; one that is there stays as it is.
        update: whether files may be put into a repository that has some; those of the same name become new versions of these.
        message: of the commit.

    Returns:
        The address of the commit.

    Raises:
        UserError: no such name, no token, no right to write there, or a repository that has files.
        RunFailed: the hub cannot be reached, or rejects the files.
    """
    api = huggingface_hub.HfApi()
    try:
        api.create_repo(repo, repo_type="model", private=private, exist_ok=True)
        there = sorted(set(api.list_repo_files(repo, repo_type="model")) - _THERE_AT_FIRST)
        if there and not update:
            raise UserError(
                f"REPO: {repo} has files already ({', '.join(there[:3])}{', ...' if len(there) > 3 else ''}), and nothing is overwritten; "
                "choose another name, or add a new version with --update"
            )
        return str(api.upload_folder(repo_id=repo, folder_path=folder, repo_type="model", commit_message=message))
    except HFValidationError as error:
        raise UserError(f"REPO: got {repo!r}, expected owner/name ({_first(error)})") from error
    except LocalTokenNotFoundError as error:
        raise UserError(f"REPO: no token for the hub; make one with the right to write, and {_LOG_IN}") from error
    except OfflineModeIsEnabled as error:
        raise UserError("REPO: HF_HUB_OFFLINE is set, so that the hub is not asked; unset it") from error
    except HfHubHTTPError as error:
        code = getattr(error.response, "status_code", None)
        if code in (401, 403):
            raise UserError(f"REPO: the hub does not let you write to {repo} ({code}); {_LOG_IN}, or choose a name of your own") from error
        raise RunFailed(f"REPO: {repo}: {_first(error)}; nothing was published, or run the same command again") from error
    except Exception as error:
        if not isinstance(error, OSError) and type(error).__module__.partition(".")[0] not in _HTTP_LIBRARIES:
            raise
        raise RunFailed(f"REPO: the hub cannot be reached ({_first(error)}); run the same command again, or set HF_ENDPOINT") from error


_HTTP_LIBRARIES = ("httpx", "httpx2", "httpcore", "requests")
"""What the hub's client asks through, by its version; their errors of a connection have no class in common."""

_LOG_IN = "set HF_TOKEN, or run: hf auth login"


def _first(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
