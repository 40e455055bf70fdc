"""What timm's constructors say about a model: the arguments it takes and its first layers."""

from __future__ import annotations

import dataclasses
import inspect
import typing
from collections.abc import Mapping
from typing import Any, NamedTuple

from timm.layers import PatchEmbed
from torch import nn


class Facts(NamedTuple):
    """What can be known about a model without a forward pass.

    Attributes:
        image_size: Height and width that the model was published for.
        parameters: Number of parameters, without a head.
        first_convs: Names of the convolutions that see the images.
        pool: Name of a pool with a stride behind them, if there is one.
        takes_size: Whether ``img_size`` is an argument that the user left open.
        takes_window: Whether ``window_size`` is an argument (Swin).
        takes_patch: Whether ``patch_size`` is an argument beside ``img_size`` (ViT).
        takes_patch_stride: Whether the stride of overlapping patches is an argument (Hiera).
        has_patch_layer: Whether timm's ``PatchEmbed`` cuts the images into patches, so that
            :func:`mixco_lightly.backbones.surgery.set_patch_size` can change them.
        published_patch: Side of the published patches; None if the model has none, or several.
        scaled_patches: Sides of the patches of a model that sees the images at several scales
            (CrossViT); otherwise empty.
        poolings: Arguments that make the model return one vector per image, to be tried in this
            order.
    """

    image_size: int
    parameters: int
    first_convs: tuple[str, ...]
    pool: str | None
    takes_size: bool
    takes_window: bool
    takes_patch: bool
    takes_patch_stride: bool
    has_patch_layer: bool
    published_patch: int | None
    scaled_patches: list[int]
    poolings: list[dict[str, Any]]


def read_facts(model: nn.Module, timm_kwargs: Mapping[str, Any]) -> Facts:
    """Reads what is known about a model from its class, its layers and timm's description.

    Args:
        model: A timm model without a head.
        timm_kwargs: The user's arguments that it was built with; these are not open any more.

    Returns:
        The facts.
    """
    accepted = _constructor_arguments(type(model))
    is_open = accepted - timm_kwargs.keys()
    embedding = getattr(model, "patch_embed", None)
    first_convs = tuple(
        name for name in _first_layers(model) if isinstance(_find_layer(model, name), nn.Conv2d)
    )
    # HGNetV2's pool has no stride: it does not make the maps smaller and stays.
    pools = [name for name in ("maxpool", "stem.pool") if _has_stride(_find_layer(model, name))]
    takes_patch = {"img_size", "patch_size"} <= accepted
    has_patch_layer = find_patch_layer(model) is not None
    scaled_patches: list[int] = []
    published_patch = None
    if "img_scale" in accepted and isinstance(embedding, nn.ModuleList):
        scaled_patches = [one_side(scale.patch_size) for scale in embedding]
    elif takes_patch or has_patch_layer:
        published_patch = _published_patch(model, first_convs)
    cfg: dict[str, Any] = model.pretrained_cfg  # type: ignore[assignment]
    traits: dict[str, Any] = getattr(model, "_traits", {})
    own_size = getattr(embedding, "img_size", None) or traits.get("img_size")
    # Some encoders return all tokens, or pool only at some image sizes, unless told to average.
    average = [{"global_pool": "avg"}] if "global_pool" in is_open else []
    return Facts(
        image_size=one_side(own_size or cfg["input_size"][1:]),
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        first_convs=first_convs,
        pool=pools[0] if pools else None,
        takes_size="img_size" in is_open,
        takes_window="window_size" in accepted,
        takes_patch=takes_patch,
        takes_patch_stride={"patch_kernel", "patch_stride", "patch_padding"} <= accepted,
        has_patch_layer=has_patch_layer,
        published_patch=published_patch,
        scaled_patches=scaled_patches,
        poolings=[{}, *average],
    )


def find_patch_layer(model: nn.Module) -> PatchEmbed | None:
    """Returns timm's layer that cuts the images themselves into patches, if there is one."""
    parents = (_find_parent(model, name) for name in _first_layers(model))
    return next((layer for layer in parents if isinstance(layer, PatchEmbed)), None)


def one_side(size: Any) -> int:
    """Returns the side of a square, of which timm and torch give one side or both."""
    return int(size) if isinstance(size, int) else int(size[0])


def _constructor_arguments(model_class: type) -> set[str]:
    """Returns the names of a class's arguments, including those that it passes on.

    They are passed on to a base class, or to a configuration's dataclass (NaFlexViT).
    """
    names: set[str] = set()
    for base in model_class.__mro__:
        if "__init__" in vars(base):
            parameters = inspect.signature(vars(base)["__init__"]).parameters
            names |= parameters.keys()
            for parameter in parameters.values():
                for hint in (parameter.annotation, *typing.get_args(parameter.annotation)):
                    if dataclasses.is_dataclass(hint):
                        names |= {field.name for field in dataclasses.fields(hint)}
            if all(p.kind is not p.VAR_KEYWORD for p in parameters.values()):
                break
    return names


def _published_patch(model: nn.Module, first_convs: tuple[str, ...]) -> int | None:
    """Returns the side of the published patches, if the images themselves are cut into patches."""
    embedding = getattr(model, "patch_embed", None)
    if embedding is None:
        embedding = next((_find_parent(model, name) for name in _first_layers(model)), None)
    if hasattr(embedding, "backbone"):  # patches of a convolutional network's maps
        return None
    for name in first_convs:
        conv = model.get_submodule(name)
        if conv.kernel_size == conv.stride:
            return one_side(conv.stride)
    patch = getattr(embedding, "patch_size", None)
    if patch is None:
        parameter = inspect.signature(type(model)).parameters.get("patch_size")
        patch = parameter.default if parameter else None
    return one_side(patch) if isinstance(patch, int | tuple) else None


def _first_layers(model: nn.Module) -> tuple[str, ...]:
    """Returns the names of the layers that see the images, as timm describes the model."""
    traits: dict[str, Any] = getattr(model, "_traits", {})
    cfg: dict[str, Any] = model.pretrained_cfg  # type: ignore[assignment]
    first = traits.get("first_conv", cfg.get("first_conv")) or ()
    return (first,) if isinstance(first, str) else tuple(first)


def _find_layer(model: nn.Module, name: str) -> nn.Module | None:
    """Returns the layer of that name; None if there is none or it does nothing."""
    try:
        layer = model.get_submodule(name)
    except AttributeError:
        return None
    return None if isinstance(layer, nn.Identity) else layer


def _find_parent(model: nn.Module, name: str) -> nn.Module | None:
    return _find_layer(model, name.rpartition(".")[0])


def _has_stride(layer: nn.Module | None) -> bool:
    parts = [] if layer is None else layer.modules()
    strides = (getattr(part, "stride", None) for part in parts)
    return any(isinstance(stride, int | tuple) and one_side(stride) > 1 for stride in strides)
