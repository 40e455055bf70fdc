"""Any timm model as a backbone whose stem fits the image size."""

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

    :func:`create_backbone` and :func:`mixco_lightly.load_backbone` make it.

    Attributes:
        model: The timm model; its state dict has timm's own names.
        name: The timm name.
        image_size: Height and width of the images it was made for.
        in_chans: Channels of the images.
        fit: What was chosen for that image size.
        stem: "timm" or "small".
        timm_kwargs: Further arguments that the timm model was made with.
        feature_dim: Number of features, measured by a forward pass.
        mean: Mean of each channel that images must be normalised with. Pretrained weights and
            exports have one; otherwise it is None. (For other than 3 channels, pretrained weights
            have the mean over the 3.)
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
        """The evaluation transform: turns a PIL image into what the backbone takes.

        It resizes the shorter side to ``resize``, crops the centre to ``image_size``, and
        normalises with ``mean`` and ``std``. Convert images of other modes first:
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

    Published stems are made for 224 pixels: at 32, ResNet's 7x7 stem and pool, followed by its
    stages, leave a single pixel, and a ViT's patches of 16 leave four tokens. The small stem:

    - Convolutional networks: the first convolution gets stride 1 and a kernel of at most 3x3, and
      a pool behind it goes, as in SimCLR's and SupCon's ResNets for CIFAR, which costs about 16
      times the work. Where the total stride is above 16 still, so that 32 pixels would leave a
      single one, the next layers from the image downwards lose their stride too.
    - Networks that are bound to their image size and begin with convolutions (LeViT, MaxViT) are
      made likewise, for images that are larger by the removed strides: their maps are the same.
    - Transformers on patches, and MLP-Mixers: patches of 1/8 of the image side, hence 64 tokens;
      those with stages (Swin, CoaT, Sequencer): 1/16, with windows of 4. Where timm fixes the
      patches, they are set in the model that it has built, for as many tokens.

    What a timm model takes is read from its constructor and from timm's description of its first
    convolution, and tried on the meta device before anything is built.

    Args:
        name: A timm model name, optionally with a weight tag, such as "resnet18".
        image_size: Height and width of the images in pixels.
        in_chans: Channels of the images.
        stem: "timm" as published, "small" for small images, or "auto": small up to 64 pixels
            where the published stem leaves fewer than 8x8 positions, and published above, or where
            ``pretrained`` weights belong to the published stem; the other one where that does not
            take the images. The choice is logged and stands in ``.stem``.
        pretrained: If True, timm's published weights are loaded (from the local cache, else
            downloaded), and fitted by timm's resampling to other patches and positions. The small
            stem keeps the centre of a larger pretrained kernel.
        **timm_kwargs: Passed to ``timm.create_model``; they win over the choices made here.

    Returns:
        A module with ``.feature_dim``, ``.name`` and ``.stem`` that maps images (N, in_chans,
        image_size, image_size) to features (N, feature_dim).

    Raises:
        ValueError: If timm has no such name (the message has the nearest ones), if stem is not
            one of the three, or if the model cannot take images of this size (the message has the
            next size that it takes, or the stem), or its pretrained weights cannot be fitted.
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
    return build_backbone(name, image_size, in_chans, fit, timm_kwargs, pretrained)


def build_backbone(
    name: str,
    image_size: int,
    in_chans: int,
    fit: Fit,
    timm_kwargs: dict[str, Any],
    pretrained: bool = False,
) -> Backbone:
    """Builds what :func:`create_backbone` or an export has chosen.

    Args:
        name: A timm model name.
        image_size: Height and width of the images in pixels.
        in_chans: Channels of the images.
        fit: What fits the model to that image size.
        timm_kwargs: The user's arguments of ``timm.create_model``.
        pretrained: If True, timm's published weights are loaded.

    Returns:
        The backbone.

    Raises:
        ValueError: If timm cannot build it.
        FileNotFoundError: If pretrained weights are neither in the local cache nor within reach.
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
    """Published values of three channels for another number of them, which timm's weights mix."""
    if len(values) == in_chans:
        return tuple(values)
    return (sum(values) / len(values),) * in_chans
