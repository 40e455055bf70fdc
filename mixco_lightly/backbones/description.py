"""backbone.json: describes an exported backbone, and checks what was read before it is used."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mixco_lightly.backbones.backbone import Backbone
from mixco_lightly.data.eval_transform import INTERPOLATION
from mixco_lightly.files import TEMPORARY_PREFIX, hash_file

CONFIG_NAME = "backbone.json"
WEIGHTS_NAME = "model.safetensors"  # the only name that timm looks for on the Hub
EARLIER_WEIGHTS_NAME = "backbone.safetensors"
_FORMAT = "mixco-lightly backbone 3"
_FORMAT_WITHOUT_DIGEST = "mixco-lightly backbone 1"
_WEIGHTS_NAMES = {
    _FORMAT: WEIGHTS_NAME,
    "mixco-lightly backbone 2": EARLIER_WEIGHTS_NAME,
    _FORMAT_WITHOUT_DIGEST: EARLIER_WEIGHTS_NAME,
}
# Arguments of timm.create_model that load files or weights, and those with a field of their own.
REFUSED_KWARGS = {
    "pretrained",
    "pretrained_cfg",
    "pretrained_cfg_overlay",
    "pretrained_strict",
    "checkpoint_path",
    "cache_dir",
    "name",
    "model_name",
    "image_size",
    "in_chans",
    "stem",
}
# Arguments that create_backbone chooses.
_CHOSEN_KWARGS = {
    "global_pool",
    "img_scale",
    "img_size",
    "patch_kernel",
    "patch_padding",
    "patch_size",
    "patch_stride",
    "window_size",
}


def describe(
    backbone: Backbone,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    training: Mapping[str, Any] | None,
    metrics: Mapping[str, Any] | None,
    differences: Sequence[str],
    weights_digest: str,
) -> dict[str, Any]:
    """Describes how to build a backbone again and how to feed it.

    Args:
        backbone: The backbone.
        mean: Mean of each channel; None if not known.
        std: Standard deviation of each channel, likewise.
        training: Settings of the training, of JSON's types.
        metrics: Results, of JSON's types.
        differences: Why timm cannot load the export by itself; empty if it can.
        weights_digest: SHA-256 of the weights' file.

    Returns:
        The content of ``backbone.json``.
    """
    config = {
        "format": _FORMAT,
        "name": backbone.name,
        "image_size": backbone.image_size,
        "in_chans": backbone.in_chans,
        "stem": backbone.stem,
        "timm_kwargs": {
            name: value
            for name, value in backbone.timm_kwargs.items()
            if name not in REFUSED_KWARGS
        },
        # Recorded, so that a later version that chooses otherwise builds the same network.
        "chosen_kwargs": {
            name: value
            for name, value in backbone.fit.kwargs.items()
            if name not in backbone.timm_kwargs
        },
        "removed_strides": list(backbone.fit.removed),
        "patch_size": backbone.fit.patch_size,
        "feature_dim": backbone.feature_dim,
        "differs_from_timm": list(differences),
        "resize": backbone.resize,
        "interpolation": INTERPOLATION,
        "crop": backbone.image_size,
        "mean": None if mean is None else list(mean),
        "std": None if std is None else list(std),
        "training": dict(training or {}),
        "metrics": dict(metrics or {}),
    }
    config = json.loads(json.dumps(config))  # tuples become lists, as in the file
    config["sha256"] = _digest(config, weights_digest)
    return config


def successor_of(directory: Path) -> Path:
    """Returns the path of a new description whose weights may not have been replaced yet."""
    return directory / f"{TEMPORARY_PREFIX}{CONFIG_NAME}"


def read_config(directory: str | Path) -> dict[str, Any]:
    """Reads the description of an exported backbone, and checks that both files are as written.

    Args:
        directory: Where :func:`mixco_lightly.export_backbone` wrote it.

    Returns:
        The content of ``backbone.json``.

    Raises:
        FileNotFoundError: If ``backbone.json`` or the weights are missing.
        ValueError: If it does not describe a backbone, or if the SHA-256 of the two files is not
            the recorded one.
    """
    path, successor = Path(directory) / CONFIG_NAME, successor_of(Path(directory))
    if successor.is_file():
        config = _parse(successor)
        weights = weights_path(directory, config)
        if weights.is_file() and config.get("sha256") == _digest(config, hash_file(weights)):
            return config
    if not path.is_file():
        raise FileNotFoundError(
            f"There is no {CONFIG_NAME} in {directory}: expected a run's output_dir or a folder "
            "written by export_backbone."
        )
    config = _parse(path)
    weights = weights_path(directory, config)
    if not weights.is_file():
        raise FileNotFoundError(f"There is no {weights.name} in {directory}.")
    has_digest = config["format"] != _FORMAT_WITHOUT_DIGEST
    if has_digest and config.get("sha256") != _digest(config, hash_file(weights)):
        raise ValueError(
            f"{path} and {weights} are not as they were exported, or not of one export: their "
            "SHA-256 is not the recorded one. Restore both files from a copy, or export again."
        )
    return config


def weights_path(directory: str | Path, config: Mapping[str, Any]) -> Path:
    """Returns the path of the weights that a description belongs to."""
    return Path(directory) / _WEIGHTS_NAMES[config["format"]]


def _digest(config: Mapping[str, Any], weights_digest: str) -> str:
    """Returns the SHA-256 of a description, without its own, and of its weights' SHA-256."""
    described = {name: value for name, value in config.items() if name != "sha256"}
    text = json.dumps(described, sort_keys=True) + weights_digest
    return hashlib.sha256(text.encode()).hexdigest()


def _parse(path: Path) -> dict[str, Any]:
    """Reads a description and checks every field; raises ValueError if one is wrong."""
    try:
        config = json.loads(path.read_text())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from error
    required = {"format", "name", "image_size", "in_chans", "stem", "timm_kwargs"}
    missing = sorted(required - config.keys()) if isinstance(config, dict) else sorted(required)
    if missing:
        raise ValueError(f"{path} does not describe a backbone: it lacks {', '.join(missing)}.")
    if config["format"] not in list(_WEIGHTS_NAMES):  # a list, as it may not be hashable
        raise ValueError(
            f"{path}: the format must be {_FORMAT!r}, got {config['format']!r}. The file is "
            "damaged or comes from a later version of mixco-lightly."
        )
    types = {"name": str, "image_size": int, "in_chans": int, "stem": str, "timm_kwargs": dict}
    for name, expected in types.items():
        if not isinstance(config[name], expected):
            raise ValueError(
                f"{path}: {name} must be of type {expected.__name__}, got {config[name]!r}."
            )
    if not isinstance(config.get("training", {}), dict):
        raise ValueError(f"{path}: training must be of type dict, got {config['training']!r}.")
    for name in ("mean", "std"):
        values = config.get(name) or []
        if not isinstance(values, list) or not all(isinstance(x, (int, float)) for x in values):
            raise ValueError(f"{path}: {name} must be a list of numbers, got {values!r}.")
    side, resize = config["image_size"], config.get("resize")
    if resize is not None and (not isinstance(resize, int) or resize < side):
        raise ValueError(
            f"{path}: resize must be a length of at least image_size={side}, got {resize!r}."
        )
    for name, only in (("crop", side), ("interpolation", INTERPOLATION)):
        if config.get(name, only) != only:
            raise ValueError(f"{path}: {name} must be {only!r}, got {config[name]!r}.")
    refused = sorted(REFUSED_KWARGS & config["timm_kwargs"].keys())
    if refused:
        raise ValueError(f"{path}: timm_kwargs must not have {', '.join(refused)}.")
    chosen, removed = config.get("chosen_kwargs", {}), config.get("removed_strides", [])
    if not isinstance(chosen, dict) or not chosen.keys() <= _CHOSEN_KWARGS:
        raise ValueError(
            f"{path}: chosen_kwargs may have {', '.join(sorted(_CHOSEN_KWARGS))}, got {chosen!r}."
        )
    if not isinstance(removed, list) or not all(isinstance(name, str) for name in removed):
        raise ValueError(f"{path}: removed_strides must be names of layers, got {removed!r}.")
    patch_size = config.get("patch_size")
    if patch_size is not None and (not isinstance(patch_size, int) or patch_size < 1):
        raise ValueError(
            f"{path}: patch_size must be a side in pixels or null, got {patch_size!r}."
        )
    return dict(config)
