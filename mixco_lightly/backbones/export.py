"""A trained backbone as safetensors weights and a JSON description, without pickle."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from mixco_lightly.backbones.backbone import Backbone, build_backbone, create_backbone
from mixco_lightly.backbones.choice import Fit
from mixco_lightly.data.eval_transform import INTERPOLATION
from mixco_lightly.files import TEMPORARY_PREFIX, hash_file, replace_file

# Arguments of timm.create_model that load files or weights: not a part of the architecture.
_REFUSED_KWARGS = {
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
# Arguments that create_backbone chooses by itself.
_CHOSEN_KWARGS = {
    *("img_scale", "img_size", "patch_kernel", "patch_padding", "patch_size", "patch_stride"),
    *("global_pool", "window_size"),
}
# Arguments of timm.create_model that do not change the features. Models that depend on img_size
# have weights, or take images, of that size only.
_HARMLESS_KWARGS = {
    "img_size",
    "drop_rate",
    "drop_path_rate",
    "drop_block_rate",
    "attn_drop_rate",
    "patch_drop_rate",
    "pos_drop_rate",
    "proj_drop_rate",
}
# Prefix of the weights' names if timm's own network of that name would have other features.
_PREFIX = "use_mixco_lightly_load_backbone."
WEIGHTS_NAME = "backbone.safetensors"
CONFIG_NAME = "backbone.json"
_FORMAT = "mixco-lightly backbone 2"
_FORMAT_WITHOUT_DIGEST = "mixco-lightly backbone 1"


def export_backbone(
    module: nn.Module,
    directory: str | Path,
    *,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    training: Mapping[str, Any] | None = None,
    metrics: Mapping[str, Any] | None = None,
) -> Path:
    """Writes a backbone's weights, and a description that says how to build and feed it.

    ``backbone.safetensors`` has the weights. Those of a published stem have timm's own names and
    load into ``timm.create_model(name, num_classes=0)``. A small stem, or other ``timm_kwargs``,
    change strides, pooling or activations, which timm's network of the same shapes does not know.
    Then every name starts with ``use_mixco_lightly_load_backbone.``, and timm refuses the file,
    with ``strict=False`` too. ``load_backbone(directory).model`` is the timm network.

    ``backbone.json`` describes the network, and the transform of its images in these fields:

    - ``resize``: length that the shorter side is resized to, in pixels;
    - ``interpolation``: how, always "bilinear";
    - ``crop``: side of the centre crop, equal to ``image_size``;
    - ``mean`` and ``std``: what each channel in [0, 1] is normalised with; null if not known.

    Args:
        module: A backbone from :func:`create_backbone`, or a module with one in ``.backbone``,
            such as :class:`mixco_lightly.models.moco.MoCo`.
        directory: Where to write; made if missing.
        mean: Mean of each channel that the training images were normalised with. Default: the
            backbone's own, which it has if it was pretrained.
        std: Standard deviation of each channel, likewise.
        training: Settings of the training, of JSON's types.
        metrics: Results, of JSON's types.

    Returns:
        The directory.

    Raises:
        ValueError: If the module is no such backbone and has none.

    Examples:
        >>> import json, tempfile
        >>> from pathlib import Path
        >>> from mixco_lightly import create_backbone, export_backbone
        >>> backbone = create_backbone("test_vit", image_size=96)
        >>> with tempfile.TemporaryDirectory() as directory:
        ...     _ = export_backbone(backbone, directory, mean=(0.5,) * 3, std=(0.25,) * 3)
        ...     description = json.loads(Path(directory, "backbone.json").read_text())
        >>> [description[field] for field in ("resize", "interpolation", "crop", "mean", "std")]
        [110, 'bilinear', 96, [0.5, 0.5, 0.5], [0.25, 0.25, 0.25]]
    """
    backbone = module if isinstance(module, Backbone) else getattr(module, "backbone", None)
    if not isinstance(backbone, Backbone):
        raise ValueError(
            f"Only a backbone from create_backbone can be exported, got {type(module).__name__}."
        )
    mean = backbone.mean if mean is None else mean
    std = backbone.std if std is None else std
    config = {
        "format": _FORMAT,
        "name": backbone.name,
        "image_size": backbone.image_size,
        "in_chans": backbone.in_chans,
        "stem": backbone.stem,
        "timm_kwargs": {
            name: value
            for name, value in backbone.timm_kwargs.items()
            if name not in _REFUSED_KWARGS
        },
        # What the image size and the stem came to, so that a later version builds the same.
        "chosen_kwargs": {
            name: value
            for name, value in backbone.fit.kwargs.items()
            if name not in backbone.timm_kwargs
        },
        "removed_strides": list(backbone.fit.removed),
        "patch_size": backbone.fit.patch_size,
        "feature_dim": backbone.feature_dim,
        "resize": backbone.resize,
        "interpolation": INTERPOLATION,
        "crop": backbone.image_size,
        "mean": None if mean is None else list(mean),
        "std": None if std is None else list(std),
        "training": dict(training or {}),
        "metrics": dict(metrics or {}),
    }
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    weights = save(_named_weights(backbone), metadata={"format": "pt"})
    config = json.loads(json.dumps(config))  # as it is read again
    config["sha256"] = _digest(config, hashlib.sha256(weights).hexdigest())
    # Two files cannot be replaced at once: a kill between them leaves the new description under
    # this name, and read_config finds it there.
    with replace_file(_successor(directory)) as file:
        file.write((json.dumps(config, indent=2) + "\n").encode())
    with replace_file(directory / WEIGHTS_NAME) as file:
        file.write(weights)
    os.replace(_successor(directory), directory / CONFIG_NAME)
    return directory


def _named_weights(backbone: Backbone) -> dict[str, Tensor]:
    """Returns the weights under the names that they have in the file."""
    state = {
        # Copies, because layers may share weights, and a safetensors file may not.
        name: tensor.detach().to("cpu", copy=True).contiguous()
        for name, tensor in backbone.model.state_dict().items()
    }
    fit = backbone.fit
    kwargs = {**fit.kwargs, **backbone.timm_kwargs}.keys() - _REFUSED_KWARGS
    if not fit.removed and fit.patch_size is None and kwargs <= _HARMLESS_KWARGS:
        return state
    named = {_PREFIX + name: tensor for name, tensor in state.items()}
    # strict=False skips names that it does not know, but never a shape that does not fit.
    named[next(name for name, tensor in state.items() if tensor.dim())] = torch.empty(0)
    return named


def _successor(directory: Path) -> Path:
    return directory / f"{TEMPORARY_PREFIX}{CONFIG_NAME}"


def _digest(config: Mapping[str, Any], weights_digest: str) -> str:
    """SHA-256 of a description, whose own is left out, and of its weights'."""
    described = {name: value for name, value in config.items() if name != "sha256"}
    text = json.dumps(described, sort_keys=True) + weights_digest
    return hashlib.sha256(text.encode()).hexdigest()


def read_config(directory: str | Path) -> dict[str, Any]:
    """Reads the description of an exported backbone, and checks that both files are as written.

    Args:
        directory: Where :func:`export_backbone` wrote it.

    Returns:
        The content of ``backbone.json``.

    Raises:
        FileNotFoundError: If ``backbone.json`` or ``backbone.safetensors`` is missing.
        ValueError: If it is not a description of a backbone, or if the SHA-256 of the two files is
            not the one that was written with them.
    """
    path, weights = Path(directory) / CONFIG_NAME, Path(directory) / WEIGHTS_NAME
    successor = _successor(Path(directory))
    if not path.is_file() and not successor.is_file():
        raise FileNotFoundError(
            f"There is no {CONFIG_NAME} in {directory}: expected a run's output_dir or a folder "
            "written by export_backbone."
        )
    if not weights.is_file():
        raise FileNotFoundError(f"There is no {WEIGHTS_NAME} in {directory}.")
    weights_digest = hash_file(weights)
    if successor.is_file():
        config = _parse(successor)
        if config.get("sha256") == _digest(config, weights_digest):
            return config
    config = _parse(path)
    if config["format"] == _FORMAT and config.get("sha256") != _digest(config, weights_digest):
        raise ValueError(
            f"{path} and {weights} are not as they were exported, or not of one export: their "
            "SHA-256 is not the recorded one. Put a copy of both back, or export again."
        )
    return config


def _parse(path: Path) -> dict[str, Any]:
    """A description; ValueError if it is none."""
    try:
        config = json.loads(path.read_text())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from error
    required = {"format", "name", "image_size", "in_chans", "stem", "timm_kwargs"}
    missing = sorted(required - config.keys()) if isinstance(config, dict) else sorted(required)
    if missing:
        raise ValueError(f"{path} does not describe a backbone: it lacks {', '.join(missing)}.")
    if config["format"] not in (_FORMAT, _FORMAT_WITHOUT_DIGEST):
        raise ValueError(
            f"{path}: the format must be {_FORMAT!r}, got {config['format']!r}: it is damaged, or "
            "of a later version of mixco-lightly."
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
    refused = sorted(_REFUSED_KWARGS & config["timm_kwargs"].keys())
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


def load_backbone(directory: str | Path) -> Backbone:
    """Builds an exported backbone again, with its weights, in eval mode.

    Args:
        directory: Where :func:`export_backbone` wrote it, or a run's output folder.

    Returns:
        The backbone. Its features equal those of the exported one bit by bit, and its
        ``.transform`` turns a PIL image into what it was trained to see.

    Raises:
        FileNotFoundError: If ``backbone.json`` or ``backbone.safetensors`` is missing.
        ValueError: If one of them is damaged, or they do not belong together.

    Examples:
        >>> import tempfile
        >>> import torch
        >>> from PIL import Image
        >>> from mixco_lightly import create_backbone, export_backbone, load_backbone
        >>> trained = create_backbone("test_vit", image_size=32)
        >>> with tempfile.TemporaryDirectory() as directory:
        ...     _ = export_backbone(trained, directory, mean=(0.5,) * 3, std=(0.25,) * 3)
        ...     backbone = load_backbone(directory)
        >>> image = backbone.transform(Image.new("RGB", (640, 480)))
        >>> with torch.inference_mode():
        ...     backbone(image.unsqueeze(0)).shape == (1, backbone.feature_dim)
        True
    """
    config = read_config(directory)
    path = Path(directory) / WEIGHTS_NAME
    try:
        state = load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged or not a safetensors file: {error}") from error
    prefixed = {
        name.removeprefix(_PREFIX): tensor
        for name, tensor in state.items()
        if name.startswith(_PREFIX)
    }
    state = prefixed or state  # a published stem, and every export of an earlier version, has none
    try:
        backbone = _build(config)
    except ValueError as error:
        raise ValueError(f"{Path(directory) / CONFIG_NAME}: {error}") from error
    try:
        backbone.model.load_state_dict(state, strict=True)
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise ValueError(
            f"{path} does not fit {CONFIG_NAME} beside it ({config['name']}): {reason[:300]}"
        ) from error
    backbone.mean, backbone.std = config.get("mean"), config.get("std")
    backbone.resize = config.get("resize") or backbone.resize
    return backbone.eval()


def _build(config: Mapping[str, Any]) -> Backbone:
    """The backbone that a description describes, with random weights."""
    name, image_size, in_chans = config["name"], config["image_size"], config["in_chans"]
    stem, timm_kwargs = config["stem"], config["timm_kwargs"]
    if "removed_strides" not in config or not timm.is_model(name):  # of an earlier version
        return create_backbone(name, image_size, in_chans, stem, **timm_kwargs)
    removed = tuple(config["removed_strides"])
    chosen, feature_dim = config.get("chosen_kwargs", {}), config.get("feature_dim", 0)
    fit = Fit(stem, chosen, removed, config.get("patch_size"), feature_dim, output_stride=None)
    return build_backbone(name, image_size, in_chans, fit, timm_kwargs)
