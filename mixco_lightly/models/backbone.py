"""Any timm model as a backbone whose stem fits the image size."""

from __future__ import annotations

import difflib
import logging
from typing import Any

import timm
from torch import Tensor, nn

from mixco_lightly.models.image_size import (
    TIMM_ERRORS,
    Fitting,
    measure_feature_dim,
    reason_of,
    remove_strides,
)
from mixco_lightly.models.tap_conv import use_tap_convolutions

logger = logging.getLogger(__name__)


class Backbone(nn.Module):
    """A headless timm model and the facts that are needed to build it again.

    Made by :func:`create_backbone`.

    Attributes:
        model: The timm model; its state dict has timm's own names.
        name: The timm name.
        image_size: Height and width of the images it was made for.
        in_chans: Channels of the images.
        stem: "timm" or "small".
        timm_kwargs: Further arguments that the timm model was made with.
        feature_dim: Number of features, measured by a forward pass.
    """

    def __init__(
        self,
        model: nn.Module,
        name: str,
        image_size: int,
        in_chans: int,
        stem: str,
        timm_kwargs: dict[str, Any],
        feature_dim: int,
    ) -> None:
        super().__init__()
        self.model = model
        self.name = name
        self.image_size = image_size
        self.in_chans = in_chans
        self.stem = stem
        self.timm_kwargs = timm_kwargs
        self.feature_dim = feature_dim

    def forward(self, images: Tensor) -> Tensor:
        """Computes pooled features.

        Args:
            images: Shape (N, in_chans, image_size, image_size).

        Returns:
            Features of shape (N, feature_dim).
        """
        features: Tensor = self.model(images)
        return features


def create_backbone(
    name: str,
    image_size: int,
    in_chans: int = 3,
    stem: str = "auto",
    pretrained: bool = False,
    **timm_kwargs: Any,
) -> Backbone:
    """Creates a timm model without its head, with a stem that fits the image size.

    Made for and tested on ResNet, ConvNeXt, EfficientNet, MobileNet, ViT and Swin; many other
    timm names work too, and a name that does not is one ValueError.

    Published stems are made for 224 pixels: at 32, ResNet's 7x7 stem and pool, followed by its
    stages, leave a single pixel, and a ViT's patches of 16 leave four tokens. The small stem:

    - Convolutional networks: the first convolution gets stride 1 and a kernel of at most 3x3; a
      ResNet also loses its max-pool, as in SimCLR's and SupCon's networks for CIFAR, which costs
      about 16 times the work.
    - Transformers: patches of 1/8 of the image side, hence 64 tokens; Swin: 1/16, with windows
      of 4.

    Args:
        name: A timm model name, optionally with a weight tag, such as "resnet18".
        image_size: Height and width of the images in pixels.
        in_chans: Channels of the images.
        stem: "timm" as published, "small" for small images, or "auto": small up to 64 pixels
            and published above, or where ``pretrained`` weights belong to the published stem.
            The choice is logged and stands in ``.stem``.
        pretrained: If True, timm's published weights are loaded (from the local cache, else
            downloaded). The small stem keeps the centre of a larger pretrained kernel.
        **timm_kwargs: Passed to ``timm.create_model``; they win over the choices made here.

    Returns:
        A module with ``.feature_dim``, ``.name`` and ``.stem`` that maps images (N, in_chans,
        image_size, image_size) to features (N, feature_dim).

    Raises:
        ValueError: If timm has no such name (the message has the nearest ones), if stem is not
            one of the three, or if the model cannot take images of this size.
        FileNotFoundError: If pretrained weights are neither in the local cache nor within reach.

    Examples:
        >>> import torch
        >>> from mixco_lightly import create_backbone
        >>> backbone = create_backbone("test_resnet", image_size=32)
        >>> backbone.stem, backbone(torch.rand(2, 3, 32, 32)).shape == (2, backbone.feature_dim)
        ('small', True)
    """
    if stem not in ("auto", "timm", "small"):
        raise ValueError(f"stem must be 'auto', 'timm' or 'small', got {stem!r}.")
    if image_size < 1 or in_chans < 1:
        raise ValueError(
            f"image_size and in_chans must be positive, got {image_size} and {in_chans}."
        )
    if not timm.is_model(name):
        nearest = difflib.get_close_matches(
            name.split("/")[-1], timm.list_models(), n=5, cutoff=0.4
        )
        hint = f" The nearest names are: {', '.join(nearest)}." if nearest else ""
        raise ValueError(f"timm {timm.__version__} has no model named {name!r}.{hint}")
    fit = Fitting(name, in_chans, timm_kwargs).fit(image_size, stem, pretrained)
    if stem == "auto":
        logger.info("%s at %d pixels: the stem is %r.", name, image_size, fit.stem)
    try:
        model = timm.create_model(
            name,
            pretrained=pretrained,
            num_classes=0,
            in_chans=in_chans,
            **{**timm_kwargs, **fit.kwargs},
        )
    except OSError as error:
        raise FileNotFoundError(
            f"The pretrained weights of {name} are not in the local cache and could not be "
            f"downloaded: {error}"
        ) from error
    except TIMM_ERRORS as error:
        raise ValueError(f"timm cannot build {name}: {reason_of(error)}.") from error
    remove_strides(model, fit.removed, keep_weights=pretrained)
    use_tap_convolutions(model)
    feature_dim = measure_feature_dim(model, in_chans, image_size)
    return Backbone(model, name, image_size, in_chans, fit.stem, dict(timm_kwargs), feature_dim)
