"""Lightly's and torchvision's transforms, set up for a dataset and a method."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lightly.transforms import MoCoV2Transform, SimCLRTransform
from lightly.transforms.multi_view_transform import MultiViewTransform
from lightly.transforms.torchvision_v2_compatibility import ToTensor
from torchvision import transforms
from torchvision.transforms import v2

from mixco_lightly.data.datasets import check_name
from mixco_lightly.data.eval_transform import create_eval_transform

# Up to this size Lightly's benchmarks leave out the blur, whose kernel would cover the image.
_NO_BLUR_SIZE = 32
_METHODS = ("moco", "simclr", "selfcon", "cross-entropy")


def create_pretrain_transform(
    method: str,
    dataset: str,
    image_size: int,
    min_scale: float | None = None,
    augmentations: str = "full",
    num_views: int = 2,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> MultiViewTransform:
    """Augmented views of an image, for contrastive pretraining.

    MoCo takes Lightly's ``MoCoV2Transform`` and SimCLR its ``SimCLRTransform``, with their own
    probabilities and colour jitter, except that

    - images of up to 32 pixels get no blur and half the colour jitter's strength, as Lightly
      recommends for CIFAR;
    - the smallest crop has 20% of the area for both, as in the authors' code (Lightly's SimCLR:
      8%);
    - SelfCon's authors have SimCLR's steps without blur and with half the colour jitter's strength
      at all sizes, and for cross-entropy crops and flips only;
    - digits are not flipped and not jittered in colour, which would make other digits or do
      nothing, but turned by up to 15 degrees; their smallest crop has half the area.

    Args:
        method: "moco", "simclr", "selfcon" or "cross-entropy".
        dataset: A dataset's name; gives mean and standard deviation.
        image_size: Height and width of the views in pixels.
        min_scale: Smallest area of the random crop, as a part of the image's area. Default: as
            above.
        augmentations: "full", or "crop-flip": random crops and horizontal flips only, for images
            of which no colour or blur is known to be irrelevant (the setting with few domain
            augmentations of i-Mix, https://arxiv.org/abs/2010.08887).
        num_views: One or two.
        mean: Mean of each channel instead of the dataset's, as that of pretrained weights.
        std: Standard deviation of each channel instead of the dataset's.

    Returns:
        A transform from a PIL image to a list of tensors (3, image_size, image_size), the views.

    Raises:
        ValueError: If there is no such method, dataset or choice of augmentations, min_scale is
            not in (0, 1], or num_views is neither 1 nor 2.

    Examples:
        >>> from PIL import Image
        >>> from mixco_lightly.data.transforms import create_pretrain_transform
        >>> transform = create_pretrain_transform("moco", "cifar10", image_size=32)
        >>> [tuple(view.shape) for view in transform(Image.new("RGB", (32, 32)))]
        [(3, 32, 32), (3, 32, 32)]
    """
    info = check_name(dataset)
    if method not in _METHODS:
        raise ValueError(f"method must be one of {', '.join(_METHODS)}, got {method!r}.")
    if min_scale is not None and not 0 < min_scale <= 1:
        raise ValueError(f"min_scale must be in (0, 1], got {min_scale}.")
    if augmentations not in ("full", "crop-flip"):
        raise ValueError(f"augmentations must be 'full' or 'crop-flip', got {augmentations!r}.")
    if num_views not in (1, 2):
        raise ValueError(f"num_views must be 1 or 2, got {num_views}.")
    options: dict[str, Any] = {
        "input_size": image_size,
        "min_scale": min_scale or (0.5 if dataset == "digits" else 0.2),
        "normalize": {"mean": list(mean or info.mean), "std": list(std or info.std)},
    }
    if image_size <= _NO_BLUR_SIZE or method in ("selfcon", "cross-entropy"):
        options |= {"gaussian_blur": 0.0, "cj_strength": 0.5}
    if dataset == "digits":
        options |= {"cj_prob": 0.0, "random_gray_scale": 0.0, "hf_prob": 0.0}
        options |= {"rr_prob": 0.5, "rr_degrees": 15}
    if augmentations == "crop-flip" or method == "cross-entropy":
        options |= {"cj_prob": 0.0, "random_gray_scale": 0.0, "gaussian_blur": 0.0}
    if augmentations == "crop-flip":
        options["rr_prob"] = 0.0
    transform = MoCoV2Transform(**options) if method == "moco" else SimCLRTransform(**options)
    transform.transforms = transform.transforms[:num_views]
    return transform


def create_probe_transform(
    dataset: str,
    image_size: int,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> v2.Compose:
    """The image cropped and flipped at random, to train a classifier.

    A crop of 8% to 100% of the area and a flip with probability 0.5, as in the authors' linear
    evaluation. Digits are not flipped, which would make other digits, and their smallest crop has
    half the area, as in :func:`create_pretrain_transform`.

    Args:
        dataset: A dataset's name; gives mean and standard deviation.
        image_size: Height and width of the result in pixels.
        mean: Mean of each channel instead of the dataset's.
        std: Standard deviation of each channel instead of the dataset's.

    Returns:
        A transform from a PIL image to a tensor (3, image_size, image_size), which
        :class:`mixco_lightly.data.device_transforms.DeviceTransform` takes as a view.

    Raises:
        ValueError: If there is no such dataset.

    Examples:
        >>> from PIL import Image
        >>> from mixco_lightly.data.transforms import create_probe_transform
        >>> create_probe_transform("cifar10", 64)(Image.new("RGB", (32, 32))).shape
        torch.Size([3, 64, 64])
    """
    info = check_name(dataset)
    is_digits = dataset == "digits"
    return v2.Compose(
        [
            v2.RandomResizedCrop(image_size, scale=(0.5 if is_digits else 0.08, 1.0)),
            v2.RandomHorizontalFlip(0.0 if is_digits else 0.5),
            ToTensor(),
            v2.Normalize(list(mean or info.mean), list(std or info.std)),
        ]
    )


def create_test_transform(
    dataset: str,
    image_size: int,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> transforms.Compose:
    """Creates the transform without augmentation, for features and probes.

    It resizes the shorter side to image_size up to 64 pixels, and to 8/7 of it above (256 for 224,
    as in the authors' evaluation), and crops the centre.

    Args:
        dataset: A dataset's name; gives mean and standard deviation.
        image_size: Height and width of the result in pixels.
        mean: Mean of each channel instead of the dataset's.
        std: Standard deviation of each channel instead of the dataset's.

    Returns:
        A transform from a PIL image to a tensor (3, image_size, image_size).

    Raises:
        ValueError: If there is no such dataset.
    """
    info = check_name(dataset)
    return create_eval_transform(image_size, mean or info.mean, std or info.std)
