"""Builds any timm model as a backbone whose stem fits the image size."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Sequence
from typing import Any

import timm
from torch import Tensor, nn
from torchvision import transforms

from mixco_lightly.backbones.choice import Fit, Fitting
from mixco_lightly.backbones.surgery import remove_strides, set_patch_size
from mixco_lightly.backbones.tap_conv import use_tap_convolutions
from mixco_lightly.backbones.trace import TIMM_ERRORS, measure_feature_dim, reason_of
from mixco_lightly.data.eval_transform import create_eval_transform, resized_side

logger = logging.getLogger(__name__)


class Backbone(nn.Module):
    """A timm model without its head, and what is needed to build it again.

    Create one with :func:`create_backbone` or :func:`mixco_lightly.load_backbone`.

    Attributes:
        model: The timm model; its state dict has timm's own names.
        name: The timm name.
        image_size: Height and width of the images that it was built for.
        in_chans: Channels of the images.
        fit: What was chosen for that image size.
        stem: "timm" or "small".
        timm_kwargs: The user's arguments of the timm model.
        feature_dim: Number of features, measured by a forward pass.
        mean: Mean of each channel that images must be normalised with; None unless the weights
            are pretrained or loaded from an export that records it. If pretrained weights are used
            with other than 3 channels, every channel has the average of the published three.
        std: Standard deviation of each channel, likewise.
        resize: Length that :attr:`transform` resizes an image's shorter side to.
    """

    def __init__(
        self,
        model: nn.Module,
        name: str,
        image_size: int,
        in_chans: int,
        fit: Fit,
        timm_kwargs: dict[str, Any],
        feature_dim: int,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.name = name
        self.image_size = image_size
        self.in_chans = in_chans
        self.fit = fit
        self.stem = fit.stem
        self.timm_kwargs = timm_kwargs
        self.feature_dim = feature_dim
        self.mean = mean
        self.std = std
        self.resize = resized_side(image_size)

    @property
    def transform(self) -> transforms.Compose:
        """The evaluation transform, from a PIL image to a tensor that the backbone takes.

        It resizes the shorter side to ``resize``, crops the centre to ``image_size``, and
        normalises with ``mean`` and ``std``. Convert images of other modes first, as with
        ``image.convert("RGB")``.

        Raises:
            ValueError: If the backbone has no mean and std.
        """
        if self.mean is None or self.std is None:
            raise ValueError(
                f"This {self.name} has no mean and std to normalise images with. Set its .mean and "
                ".std, or pass mean and std to export_backbone."
            )
        return create_eval_transform(self.image_size, self.mean, self.std, self.resize)

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

    Published stems are designed for 224 pixels. Of 32 pixels, a ResNet's 7x7 stem, pool and stages
    leave a single position, and a ViT's patches of 16 leave four tokens. The small stem keeps more:

    - Convolutional networks: the first convolution gets stride 1 and a kernel of at most 3x3, and
      a pool behind it is removed, as in SimCLR's and SupCon's ResNets for CIFAR. This costs about
      16 times the work. If the total stride is still above 16, the next layers from the image
      downwards lose their stride too, so that 32 pixels leave more than one position.
    - Fixed-size networks that begin with convolutions (LeViT, MaxViT) lose the same strides and
      are built for images larger by these strides, so that their later maps stay the same.
    - Transformers on patches and MLP-Mixers get patches of 1/8 of the image side, that is 64
      tokens. Those with stages (Swin, CoaT, Sequencer) get 1/16 and windows of 4. If timm's
      constructor does not take a patch size, the patches are set in the built model.

    Nothing is known by model name: timm's constructor and description say what a model takes, and
    choices are tried on the meta device before the model is built.

    Args:
        name: A timm model name, optionally with a weight tag, such as "resnet18".
        image_size: Height and width of the images in pixels.
        in_chans: Channels of the images.
        stem: "timm" (as published), "small", or "auto". "auto" takes the small stem if the image
            has at most 64 pixels, the published stem leaves fewer than 8x8 positions and
            ``pretrained`` is False; otherwise the published one. If the model does not take the
            images with that stem, "auto" takes the other. The choice is logged and is in
            ``.stem``.
        pretrained: If True, timm's published weights are loaded from the local cache, or
            downloaded, and timm resamples them to other patches and positions. The small stem
            keeps the centre of a larger pretrained kernel.
        **timm_kwargs: Passed to :func:`timm.create_model`; they override the choices made here.

    Returns:
        A module with ``.feature_dim``, ``.name`` and ``.stem`` that maps images (N, in_chans,
        image_size, image_size) to features (N, feature_dim).

    Raises:
        ValueError: If timm has no such name (the message lists the nearest ones), if stem is not
            one of the three, if the model cannot take images of this size (the message names the
            next size or the stem that works), or if its pretrained weights do not fit.
        FileNotFoundError: If pretrained weights are not in the local cache and cannot be
            downloaded.

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
    return build_backbone(name, image_size, in_chans, fit, timm_kwargs, pretrained)


def build_backbone(
    name: str,
    image_size: int,
    in_chans: int,
    fit: Fit,
    timm_kwargs: dict[str, Any],
    pretrained: bool = False,
) -> Backbone:
    """Builds a backbone from a fit that was chosen or recorded.

    Args:
        name: A timm model name.
        image_size: Height and width of the images in pixels.
        in_chans: Channels of the images.
        fit: What fits the model to that image size.
        timm_kwargs: The user's arguments of :func:`timm.create_model`.
        pretrained: If True, timm's published weights are loaded.

    Returns:
        The backbone.

    Raises:
        ValueError: If timm cannot build it.
        FileNotFoundError: If pretrained weights are not in the local cache and cannot be
            downloaded.
    """
    try:
        model = timm.create_model(
            name,
            pretrained=pretrained,
            num_classes=0,
            in_chans=in_chans,
            **{**fit.kwargs, **timm_kwargs},
        )
        remove_strides(model, fit.removed, keep_weights=pretrained)
        if fit.patch_size is not None:
            set_patch_size(model, fit.patch_size, image_size, keep_weights=pretrained)
        use_tap_convolutions(model)
        feature_dim = measure_feature_dim(model, in_chans, image_size)
    except OSError as error:
        raise FileNotFoundError(
            f"The pretrained weights of {name} are not in the local cache and could not be "
            f"downloaded: {error}"
        ) from error
    except TIMM_ERRORS as error:
        hint = ""
        if pretrained and "loading state_dict" in str(error):
            size = timm.get_pretrained_cfg(name).input_size[-1]
            hint = f" Its pretrained weights are for images of {size} pixels and stem 'timm'."
        raise ValueError(
            f"{name} cannot be built for images of {image_size} pixels with stem {fit.stem!r}: "
            f"{reason_of(error)}.{hint}"
        ) from error
    mean, std = None, None
    if pretrained:
        cfg: dict[str, Any] = model.pretrained_cfg
        mean, std = (_per_channel(cfg[key], in_chans) for key in ("mean", "std"))
    return Backbone(
        model, name, image_size, in_chans, fit, dict(timm_kwargs), feature_dim, mean, std
    )


def _per_channel(values: Sequence[float], in_chans: int) -> tuple[float, ...]:
    """Returns one value per channel: the published ones, else their average.

    timm sums or repeats its pretrained weights for another number of channels.
    """
    if len(values) == in_chans:
        return tuple(values)
    return (sum(values) / len(values),) * in_chans
