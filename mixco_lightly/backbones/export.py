"""Writes and loads a trained backbone: safetensors weights and a JSON description, no pickle."""

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
from mixco_lightly.backbones.description import (
    CONFIG_NAME,
    EARLIER_WEIGHTS_NAME,
    WEIGHTS_NAME,
    describe,
    read_config,
    successor_of,
    weights_path,
)
from mixco_lightly.backbones.hub import HUB_PREFIX, download_backbone
from mixco_lightly.backbones.timm_config import (
    TIMM_CONFIG_NAME,
    describe_differences,
    refuse_foreign_config,
    timm_config,
)
from mixco_lightly.files import replace_file

# Prefix of the weights' names if timm cannot build a network with the same features.
_PREFIX = "use_mixco_lightly_load_backbone."


def export_backbone(
    module: nn.Module,
    directory: str | Path,
    *,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    training: Mapping[str, Any] | None = None,
    metrics: Mapping[str, Any] | None = None,
) -> Path:
    """Writes a backbone's weights, and descriptions of it for this package and for timm.

    ``model.safetensors`` has the weights, ``config.json`` is timm's description. Without a small
    stem, ``timm.create_model("local-dir:DIRECTORY", pretrained=True)`` builds the network and its
    features equal the backbone's bit by bit. ``config.json`` also has arguments of timm's network
    (``model_args``), which include a ViT's small patches, and the evaluation transform as far as
    timm can describe it.

    Where layers were changed after timm built the network, or where arguments change features but
    no weight's shape, ``config.json`` lists the differences and names no architecture of timm.
    Every weight's name then starts with ``use_mixco_lightly_load_backbone.``, so that timm refuses
    the file, even with ``strict=False``. ``load_backbone(directory).model`` is the network.

    ``backbone.json`` describes the network for :func:`load_backbone`, and the evaluation transform
    of its images:

    - ``resize``: length that the shorter side is resized to, in pixels;
    - ``interpolation``: always "bilinear";
    - ``crop``: side of the centre crop, equal to ``image_size``;
    - ``mean`` and ``std``: what normalises each channel in [0, 1]; null if not known.

    Args:
        module: A backbone from :func:`mixco_lightly.create_backbone`, or a module with one in
            ``.backbone``, such as :class:`mixco_lightly.models.MoCo`.
        directory: Where to write; created if missing.
        mean: Mean of each channel that the training images were normalised with. Default: the
            backbone's ``mean``, which is set if it was pretrained or loaded.
        std: Standard deviation of each channel, likewise.
        training: Settings of the training, of JSON's types.
        metrics: Results, of JSON's types.

    Returns:
        The directory.

    Raises:
        ValueError: If the module is not such a backbone and does not have one.
        FileExistsError: If the directory has a ``config.json`` of another tool.

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
            "export_backbone needs a backbone from create_backbone, or a module with one in "
            f".backbone, got {type(module).__name__}."
        )
    mean = backbone.mean if mean is None else mean
    std = backbone.std if std is None else std
    differences = describe_differences(backbone)
    weights = save(_named_weights(backbone, differences), metadata={"format": "pt"})
    digest = hashlib.sha256(weights).hexdigest()
    config = describe(backbone, mean, std, training, metrics, differences, digest)
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    refuse_foreign_config(directory / TIMM_CONFIG_NAME)
    # Three files cannot be replaced at once. If the process is killed in between, the new
    # description is left under the successor's name, where read_config finds it, and timm finds
    # no config.json rather than that of other weights.
    with replace_file(successor_of(directory)) as file:
        file.write(_encode(config))
    with replace_file(directory / WEIGHTS_NAME) as file:
        file.write(weights)
        (directory / TIMM_CONFIG_NAME).unlink(missing_ok=True)
    with replace_file(directory / TIMM_CONFIG_NAME) as file:
        file.write(_encode(timm_config(backbone, differences, mean, std)))
    os.replace(successor_of(directory), directory / CONFIG_NAME)
    (directory / EARLIER_WEIGHTS_NAME).unlink(missing_ok=True)
    return directory


def load_backbone(directory: str | Path) -> Backbone:
    """Loads an exported backbone in eval mode.

    Args:
        directory: Where :func:`export_backbone` wrote it, or a run's output folder, or its name on
            the Hugging Face Hub: "hf-hub:USER/NAME" or "hf-hub:USER/NAME@REVISION". Only its
            ``backbone.json`` and ``model.safetensors`` are downloaded, into huggingface_hub's
            cache.

    Returns:
        The backbone. Its features equal the exported backbone's bit by bit, and its
        ``.transform`` prepares a PIL image as the evaluation does.

    Raises:
        FileNotFoundError: If ``backbone.json`` or ``model.safetensors`` is missing.
        ValueError: If a file is damaged, or if the two do not belong together.
        ConnectionError: If the Hub cannot be reached, and its cache does not have the backbone.

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
    if isinstance(directory, str) and directory.startswith(HUB_PREFIX):
        directory = download_backbone(directory)
    config = read_config(directory)
    path = weights_path(directory, config)
    try:
        state = load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged or not a safetensors file: {error}") from error
    prefixed = {
        name.removeprefix(_PREFIX): tensor
        for name, tensor in state.items()
        if name.startswith(_PREFIX)
    }
    state = prefixed or state  # published stems and exports of earlier versions have no prefix
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


def _encode(config: Mapping[str, Any]) -> bytes:
    return (json.dumps(config, indent=2) + "\n").encode()


def _named_weights(backbone: Backbone, differences: Sequence[str]) -> dict[str, Tensor]:
    """Returns the weights under their names in the file."""
    state = {
        # Copied, because layers may share weights and safetensors refuses shared memory.
        name: tensor.detach().to("cpu", copy=True).contiguous()
        for name, tensor in backbone.model.state_dict().items()
    }
    if not differences:
        return state
    named = {_PREFIX + name: tensor for name, tensor in state.items()}
    # strict=False skips unknown names, but raises for a wrong shape.
    named[next(name for name, tensor in state.items() if tensor.dim())] = torch.empty(0)
    return named


def _build(config: Mapping[str, Any]) -> Backbone:
    """Builds the described backbone, with random weights."""
    name, image_size, in_chans = config["name"], config["image_size"], config["in_chans"]
    stem, timm_kwargs = config["stem"], config["timm_kwargs"]
    if "removed_strides" not in config or not timm.is_model(name):
        # Earlier versions did not record the choices; for an unknown name this raises.
        return create_backbone(name, image_size, in_chans, stem, **timm_kwargs)
    removed = tuple(config["removed_strides"])
    chosen, feature_dim = config.get("chosen_kwargs", {}), config.get("feature_dim", 0)
    fit = Fit(stem, chosen, removed, config.get("patch_size"), feature_dim, output_stride=None)
    return build_backbone(name, image_size, in_chans, fit, timm_kwargs)
