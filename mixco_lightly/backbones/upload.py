"""Uploads an exported backbone to the Hugging Face Hub, with a model card."""

from __future__ import annotations

import tempfile
from pathlib import Path

from huggingface_hub import CommitOperationAdd, HfApi, get_token

from mixco_lightly.backbones.description import CONFIG_NAME, WEIGHTS_NAME
from mixco_lightly.backbones.hub import check_name, explain_errors
from mixco_lightly.backbones.model_card import create_model_card
from mixco_lightly.backbones.public_copy import copy_for_others
from mixco_lightly.backbones.timm_config import TIMM_CONFIG_NAME


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
    ``output_dir``, and the names of functions of your own the folders of their files.

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
    check_name(repo_id, revision)
    with tempfile.TemporaryDirectory() as folder:
        copy_for_others(directory, folder)
        if not (token or get_token()):
            raise PermissionError(
                "push_to_hub needs a login: run `hf auth login`, or set HF_TOKEN to a token with "
                "write access."
            )
        operations = [
            CommitOperationAdd(name, str(Path(folder, name)))
            for name in (WEIGHTS_NAME, TIMM_CONFIG_NAME, CONFIG_NAME)
        ]
        if model_card:
            card = create_model_card(folder, repo_id, license=license)
            operations.append(CommitOperationAdd("README.md", card.encode()))
        api = HfApi(token=token, library_name="mixco-lightly")
        with explain_errors(repo_id, revision):
            api.create_repo(repo_id, private=private, exist_ok=True)
            if revision is not None:
                api.create_branch(repo_id, branch=revision, exist_ok=True)
            commit = api.create_commit(
                repo_id, operations, commit_message=commit_message, revision=revision
            )
    return str(commit.commit_url)
