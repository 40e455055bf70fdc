"""config.json: what timm needs to load an exported backbone by itself, where it can."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mixco_lightly.backbones.backbone import Backbone
from mixco_lightly.backbones.description import REFUSED_KWARGS
from mixco_lightly.backbones.trace import TIMM_ERRORS, Tracer, Variant
from mixco_lightly.data.eval_transform import INTERPOLATION

TIMM_CONFIG_NAME = "config.json"
_WRITER = "mixco-lightly"
# Arguments of timm.create_model that do not change the features of a network with given weights.
_DROP_RATES = {
    "drop_rate",
    "drop_path_rate",
    "drop_block_rate",
    "attn_drop_rate",
    "patch_drop_rate",
    "pos_drop_rate",
    "proj_drop_rate",
}
# A network that depends on img_size has weights, or takes images, of that size only.
_HARMLESS_KWARGS = {*_DROP_RATES, "img_size"}


def describe_differences(backbone: Backbone) -> list[str]:
    """Lists why timm cannot build a backbone's network from its name and arguments.

    timm passes ``model_args`` of ``config.json`` to its network, so arguments alone are no
    difference. The exception is an argument that changes features but no weight's shape, such as
    ``act_layer``: who loads the weights by hand and forgets it would get other features.

    Args:
        backbone: The backbone.

    Returns:
        One sentence for each difference; empty if timm loads the export.

    Examples:
        >>> from mixco_lightly import create_backbone
        >>> from mixco_lightly.backbones.timm_config import describe_differences
        >>> describe_differences(create_backbone("test_resnet", image_size=32))
        ['Without their stride (convolutions have at most 3x3 pixels): conv1.0, maxpool.']
        >>> describe_differences(create_backbone("test_vit", image_size=32))
        []
    """
    fit = backbone.fit
    differences = []
    if fit.removed:
        layers = ", ".join(fit.removed)
        differences.append(
            f"Without their stride (convolutions have at most 3x3 pixels): {layers}."
        )
    if fit.patch_size is not None:
        differences.append(
            f"The built network's patches were set to {fit.patch_size}x{fit.patch_size} pixels."
        )
    own = sorted(_carried_kwargs(backbone).keys() - _HARMLESS_KWARGS)
    if own and not differences and _fits_without(own, backbone):
        differences.append(
            f"Arguments that change features but no weight's shape: {', '.join(own)}."
        )
    return differences


def timm_config(
    backbone: Backbone,
    differences: Sequence[str],
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
) -> dict[str, Any]:
    """Describes an exported backbone in timm's words.

    Args:
        backbone: The backbone.
        differences: From :func:`describe_differences`.
        mean: Mean of each channel; None if not known.
        std: Standard deviation of each channel, likewise.

    Returns:
        The content of ``config.json``. If there are differences, ``architecture`` is no name that
        timm knows, so that timm raises an error that shows it.
    """
    published: Any = backbone.model.pretrained_cfg
    architecture = str(published.get("architecture") or backbone.name.split(".")[0])
    side = backbone.image_size
    data = {
        "num_classes": 0,
        "input_size": [backbone.in_chans, side, side],
        "fixed_input_size": bool(published.get("fixed_input_size", False)),
        "interpolation": INTERPOLATION,
        "crop_pct": _crop_pct(side, backbone.resize),
        "crop_mode": "center",
        # timm 1.0.26 would fit weights of this layer from 3 channels to in_chans once more.
        "first_conv": published.get("first_conv") if backbone.in_chans == 3 else None,
        "classifier": published.get("classifier"),
    }
    if mean is not None and std is not None:
        data |= {"mean": list(mean), "std": list(std)}
    config: dict[str, Any] = {
        "written_by": _WRITER,
        "architecture": architecture,
        "num_classes": 0,
        "num_features": backbone.feature_dim,
    }
    if differences:
        config["architecture"] = f"not timm's {architecture}, use mixco_lightly's load_backbone"
        config["differs_from_timm"] = list(differences)
    elif arguments := _carried_kwargs(backbone):
        config["model_args"] = arguments
    config["pretrained_cfg"] = data
    return config


def refuse_foreign_config(path: Path) -> None:
    """Raises FileExistsError if a ``config.json`` is another tool's: many write one."""
    try:
        config = json.loads(path.read_bytes())
    except FileNotFoundError:
        return
    except (ValueError, RecursionError):
        config = None
    if not isinstance(config, dict) or config.get("written_by") != _WRITER:
        raise FileExistsError(
            f"{path} was not written by export_backbone, which would replace it. Choose another "
            "directory, or remove the file."
        )


def _carried_kwargs(backbone: Backbone) -> dict[str, Any]:
    """Returns the arguments of timm's model that belong to the network, not to its training."""
    kwargs = {**backbone.fit.kwargs, **backbone.timm_kwargs}
    left_out = REFUSED_KWARGS | _DROP_RATES
    return {name: value for name, value in kwargs.items() if name not in left_out}


def _fits_without(own: Sequence[str], backbone: Backbone) -> bool:
    """Returns whether the weights fit timm's network without these arguments.

    Even a load with ``strict=False`` raises if a weight has another shape.
    """
    shapes = {name: tensor.shape for name, tensor in backbone.model.state_dict().items()}
    harmless = {k: v for k, v in _carried_kwargs(backbone).items() if k not in own}
    for kwargs in [harmless, {}] if harmless else [{}]:
        try:
            plain = Tracer(backbone.name, backbone.in_chans).build(Variant(kwargs))
        except TIMM_ERRORS:
            continue
        state = plain.state_dict().items()
        if all(shapes.get(name, tensor.shape) == tensor.shape for name, tensor in state):
            return True
    return False


def _crop_pct(crop: int, resize: int) -> float:
    """Returns the part of the resized side that is cropped, for timm's ``floor(crop / part)``."""
    part = crop / resize
    while math.floor(crop / part) < resize:
        part = math.nextafter(part, 0.0)
    return part
