"""Exported backbones on the Hugging Face Hub: names, downloads, errors in one line."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from huggingface_hub import constants, hf_hub_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from mixco_lightly.backbones.description import CONFIG_NAME, WEIGHTS_NAME
from mixco_lightly.backbones.trace import reason_of

HUB_PREFIX = "hf-hub:"
_PART = r"[A-Za-z0-9][A-Za-z0-9_.-]*"
_REPO_ID = re.compile(f"{_PART}/{_PART}")
_REVISION = re.compile(f"{_PART}(/{_PART})*")
# httpx's errors are no OSErrors; those of requests, in huggingface_hub before 1.0, are.
_HTTP_ERRORS: Any = (OSError, *HfHubHTTPError.__bases__)


def download_backbone(name: str) -> Path:
    """Downloads an exported backbone, or finds it in huggingface_hub's cache.

    Args:
        name: "hf-hub:USER/NAME" or "hf-hub:USER/NAME@REVISION", as in timm. A revision is a
            branch, a tag or a commit.

    Returns:
        The folder with ``backbone.json`` and ``model.safetensors``, both of the same commit.

    Raises:
        ValueError: If the name is invalid.
        FileNotFoundError: If there is no such repository, revision or export in it.
        ConnectionError: If the Hub cannot be reached and the cache does not have it.
        PermissionError: If the login may not read the repository.
        OSError: If the Hub refuses the download.
    """
    repo_id, at, revision = name.removeprefix(HUB_PREFIX).partition("@")
    check_name(repo_id, revision if at else None)
    with explain_errors(repo_id, revision or None):
        path = Path(hf_hub_download(repo_id, CONFIG_NAME, revision=revision or None))
        # The cache keeps the files of each commit in a folder named by it.
        commit = path.parent.name
        hf_hub_download(repo_id, WEIGHTS_NAME, revision=commit)
    return path.parent


def check_name(repo_id: str, revision: str | None) -> None:
    """Checks a repository's name and a revision, which become parts of addresses.

    Args:
        repo_id: "USER/NAME".
        revision: A branch, a tag or a commit; None is the main branch.

    Raises:
        ValueError: If the Hub has no such names.
    """
    if not _REPO_ID.fullmatch(repo_id):
        raise ValueError(
            f"A name on the Hub is USER/NAME of letters, digits, '-', '_' and '.', got {repo_id!r}."
        )
    if revision is not None and (not _REVISION.fullmatch(revision) or ".." in revision):
        raise ValueError(f"A revision is a branch, a tag or a commit, got {revision!r}.")


@contextmanager
def explain_errors(repo_id: str, revision: str | None) -> Iterator[None]:
    """Turns huggingface_hub's errors, of many kinds and lines, into builtin kinds and one line.

    Args:
        repo_id: The repository that is used.
        revision: Its revision; None is the main branch.

    Raises:
        FileNotFoundError: If there is no such repository, revision or file.
        PermissionError: If the login may not do it.
        ConnectionError: If the Hub cannot be reached.
        OSError: If the Hub refuses for another reason.
    """
    unreachable = f"The Hub ({constants.ENDPOINT}) cannot be reached"
    if constants.HF_HUB_OFFLINE:
        unreachable = "HF_HUB_OFFLINE is set"
    try:
        yield
    except LocalEntryNotFoundError as error:
        raise ConnectionError(f"{unreachable}, and {repo_id} is not in the cache.") from error
    except RevisionNotFoundError as error:
        raise FileNotFoundError(f"{repo_id} on the Hub has no revision {revision!r}.") from error
    except RepositoryNotFoundError as error:
        raise FileNotFoundError(
            f"There is no repository {repo_id} on the Hub, or it is private and you are not logged "
            "in as one who may use it: see `hf auth login`."
        ) from error
    except EntryNotFoundError as error:
        raise FileNotFoundError(
            f"{repo_id} on the Hub lacks {CONFIG_NAME} or {WEIGHTS_NAME}: expected an upload by "
            "push_to_hub."
        ) from error
    except OfflineModeIsEnabled as error:
        raise ConnectionError(f"{unreachable}.") from error
    except HfHubHTTPError as error:
        status = getattr(error.response, "status_code", None)
        kind = PermissionError if status in (401, 403) else OSError
        raise kind(f"The Hub refuses {repo_id}: {reason_of(error)}.") from error
    except _HTTP_ERRORS as error:
        raise ConnectionError(f"{unreachable}: {reason_of(error)}.") from error
