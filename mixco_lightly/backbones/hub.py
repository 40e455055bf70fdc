"""Exported backbones on the Hugging Face Hub: upload with a model card, download by name."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, HfApi, constants, get_token, hf_hub_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from mixco_lightly.backbones.description import CONFIG_NAME, WEIGHTS_NAME, read_config
from mixco_lightly.backbones.export import HUB_PREFIX, export_backbone, load_backbone
from mixco_lightly.backbones.model_card import LOCAL_OPTIONS, create_model_card
from mixco_lightly.backbones.timm_config import TIMM_CONFIG_NAME
from mixco_lightly.backbones.trace import reason_of

_PART = r"[A-Za-z0-9][A-Za-z0-9_.-]*"
_REPO_ID = re.compile(f"{_PART}/{_PART}")
_REVISION = re.compile(f"{_PART}(/{_PART})*")
# httpx's errors are no OSErrors; those of requests, in huggingface_hub before 1.0, are.
_HTTP_ERRORS: Any = (OSError, *HfHubHTTPError.__bases__)


def push_to_hub(
    directory: str | Path,
    repo_id: str,
    *,
    private: bool = False,
    license: str | None = None,
    revision: str | None = None,
    commit_message: str = "Upload a backbone",
    model_card: bool = True,
    token: str | None = None,
) -> str:
    """Uploads an exported backbone to the Hugging Face Hub, with a model card.

    ``load_backbone("hf-hub:USER/NAME")`` loads it. One commit uploads ``model.safetensors``,
    ``config.json``, ``backbone.json`` and the card, ``README.md``, and no other file of the
    directory. Before, the export is loaded and written again, which checks it and brings exports
    of earlier versions up to date. The recorded options lose the paths ``data_dir`` and
    ``output_dir``.

    Args:
        directory: Where :func:`mixco_lightly.export_backbone` wrote it, or a run's output folder.
        repo_id: "USER/NAME" or "ORGANISATION/NAME"; created if missing.
        private: Whether a new repository is private.
        license: Licence of the weights in the Hub's spelling, such as "cc-by-4.0". Default: the
            card states none.
        revision: Branch to upload to; created if missing. Default: the repository's main branch.
        commit_message: Message of the commit.
        model_card: If False, the repository's ``README.md`` is left as it is.
        token: The Hub's access token. Default: that of ``hf auth login``, or ``HF_TOKEN``.

    Returns:
        The address of the commit.

    Raises:
        ValueError: If a name is invalid, or as for :func:`mixco_lightly.load_backbone`.
        PermissionError: If there is no login, or if it may not write to the repository.
        ConnectionError: If the Hub cannot be reached, or ``HF_HUB_OFFLINE`` is set.
        OSError: If a file is missing, or the Hub refuses the upload.

    Examples:
        .. code-block:: python

            push_to_hub("runs/moco", "alice/resnet18-mixco-cifar10", license="mit")
    """
    _check_name(repo_id, revision)
    backbone, config = load_backbone(directory), read_config(directory)
    if not (token or get_token()):
        raise PermissionError(
            "push_to_hub needs a login: run `hf auth login`, or set HF_TOKEN to a token with write "
            "access."
        )
    training = {k: v for k, v in config.get("training", {}).items() if k not in LOCAL_OPTIONS}
    with tempfile.TemporaryDirectory() as folder:
        export_backbone(backbone, folder, training=training, metrics=config.get("metrics"))
        operations = [
            CommitOperationAdd(name, str(Path(folder, name)))
            for name in (WEIGHTS_NAME, TIMM_CONFIG_NAME, CONFIG_NAME)
        ]
        if model_card:
            card = create_model_card(folder, repo_id, license=license)
            operations.append(CommitOperationAdd("README.md", card.encode()))
        api = HfApi(token=token, library_name="mixco-lightly")
        with _explain_errors(repo_id, revision):
            api.create_repo(repo_id, private=private, exist_ok=True)
            if revision is not None:
                api.create_branch(repo_id, branch=revision, exist_ok=True)
            commit = api.create_commit(
                repo_id, operations, commit_message=commit_message, revision=revision
            )
    return str(commit.commit_url)


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
    _check_name(repo_id, revision if at else None)
    with _explain_errors(repo_id, revision or None):
        path = Path(hf_hub_download(repo_id, CONFIG_NAME, revision=revision or None))
        # The cache keeps the files of each commit in a folder named by it.
        commit = path.parent.name
        hf_hub_download(repo_id, WEIGHTS_NAME, revision=commit)
    return path.parent


def _check_name(repo_id: str, revision: str | None) -> None:
    """Raises ValueError for names that the Hub does not have; they become parts of addresses."""
    if not _REPO_ID.fullmatch(repo_id):
        raise ValueError(
            f"A name on the Hub is USER/NAME of letters, digits, '-', '_' and '.', got {repo_id!r}."
        )
    if revision is not None and (not _REVISION.fullmatch(revision) or ".." in revision):
        raise ValueError(f"A revision is a branch, a tag or a commit, got {revision!r}.")


@contextmanager
def _explain_errors(repo_id: str, revision: str | None) -> Iterator[None]:
    """Turns huggingface_hub's errors, of many lines and kinds, into one line and builtin kinds."""
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
