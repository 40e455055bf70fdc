"""Lightly's and torchvision's transforms, set up for a method and a dataset's images."""

from __future__ import annotations

from typing import Any

from lightly.transforms import MoCoV2Transform, SimCLRTransform
from lightly.transforms.multi_view_transform import MultiViewTransform
from lightly.transforms.torchvision_v2_compatibility import ToTensor
from torchvision import transforms
from torchvision.transforms import v2

from mixco_lightly.data.eval_transform import create_eval_transform
from mixco_lightly.data.images import ImageFacts

# Lightly's benchmarks do not blur images up to this size, because the kernel would cover them.
_NO_BLUR_SIZE = 32
_METHODS = ("moco", "simclr", "selfcon", "cross-entropy")


def create_pretrain_transform(
    method: str,
    facts: ImageFacts,
    image_size: int,
    min_scale: float | None = None,
    augmentations: str = "full",
    num_views: int = 2,
) -> MultiViewTransform:
    """Creates the augmented views of an image for contrastive pretraining.

    MoCo uses Lightly's ``MoCoV2Transform`` and SimCLR its ``SimCLRTransform``, with their own
    probabilities and colour jitter, except that

    - images of up to 32 pixels are not blurred and get half the strength of colour jitter, as
      Lightly recommends for CIFAR;
    - the smallest crop has 20% of the area for both, as in the authors' code (Lightly's SimCLR:
      8%);
    - SelfCon uses SimCLR's steps without blur and with half the strength of colour jitter at all
      sizes, as its authors do; cross-entropy uses crops and flips only;
    - the facts about the images can rule out colour jitter or flips, add rotations, and set the
      smallest crop. For digits they do all of this: a flip makes another sign, and colour means
      nothing. Digits are rotated by up to 15 degrees, and their smallest crop has half the area.

    Args:
        method: "moco", "simclr", "selfcon" or "cross-entropy".
        facts: Facts about the images, such as ``get_dataset("cifar10").facts``.
        image_size: Height and width of the views in pixels.
        min_scale: Smallest area of the random crop, as a part of the image's area. Default: as
            above.
        augmentations: "full", or "crop-flip": random crops and horizontal flips only, for images
            whose class may depend on colour or sharpness (i-Mix's setting with few domain
            augmentations, https://arxiv.org/abs/2010.08887).
        num_views: Number of views. All have the same steps.

    Returns:
        A transform from a PIL image to its views, a list of tensors (3, image_size, image_size).

    Raises:
        ValueError: If there is no such method or choice of augmentations, ``min_scale`` is not in
            (0, 1], or ``num_views`` is not positive.

    Examples:
        >>> from PIL import Image
        >>> from mixco_lightly.data import create_pretrain_transform, get_dataset
        >>> transform = create_pretrain_transform("moco", get_dataset("cifar10").facts, 32)
        >>> [tuple(view.shape) for view in transform(Image.new("RGB", (32, 32)))]
        [(3, 32, 32), (3, 32, 32)]
    """
    if method not in _METHODS:
        raise ValueError(f"method must be one of {', '.join(_METHODS)}, got {method!r}.")
    if min_scale is not None and not 0 < min_scale <= 1:
        raise ValueError(f"min_scale must be in (0, 1], got {min_scale}.")
    if augmentations not in ("full", "crop-flip"):
        raise ValueError(f"augmentations must be 'full' or 'crop-flip', got {augmentations!r}.")
    if num_views < 1:
        raise ValueError(f"num_views must be at least 1, got {num_views}.")
    options: dict[str, Any] = {
        "input_size": image_size,
        "min_scale": min_scale or facts.min_scale or 0.2,
        "normalize": {"mean": list(facts.mean), "std": list(facts.std)},
    }
    if image_size <= _NO_BLUR_SIZE or method in ("selfcon", "cross-entropy"):
        options |= {"gaussian_blur": 0.0, "cj_strength": 0.5}
    if not facts.has_colour:
        options |= {"cj_prob": 0.0, "random_gray_scale": 0.0}
    if not facts.can_flip:
        options["hf_prob"] = 0.0
    if facts.max_rotation:
        options |= {"rr_prob": 0.5, "rr_degrees": facts.max_rotation}
    if augmentations == "crop-flip" or method == "cross-entropy":
        options |= {"cj_prob": 0.0, "random_gray_scale": 0.0, "gaussian_blur": 0.0}
    if augmentations == "crop-flip":
        options["rr_prob"] = 0.0
    transform = MoCoV2Transform(**options) if method == "moco" else SimCLRTransform(**options)
    transform.transforms = [transform.transforms[0]] * num_views
    return transform


def create_probe_transform(facts: ImageFacts, image_size: int) -> v2.Compose:
    """Creates the random crop and flip for training a classifier.

    Crops 8% to 100% of the area and flips with probability 0.5, as in the authors' linear
    evaluation, unless the facts rule out flips or set another smallest crop.

    Args:
        facts: Facts about the images, such as ``get_dataset("cifar10").facts``.
        image_size: Height and width of the result in pixels.

    Returns:
        A transform from a PIL image to a tensor (3, image_size, image_size).
        :class:`~mixco_lightly.data.device_transforms.DeviceTransform` accepts it as a view.

    Examples:
        >>> from PIL import Image
        >>> from mixco_lightly.data import create_probe_transform, get_dataset
        >>> transform = create_probe_transform(get_dataset("cifar10").facts, 64)
        >>> transform(Image.new("RGB", (32, 32))).shape
        torch.Size([3, 64, 64])
    """
    return v2.Compose(
        [
            v2.RandomResizedCrop(image_size, scale=(facts.min_scale or 0.08, 1.0)),
            v2.RandomHorizontalFlip(0.5 if facts.can_flip else 0.0),
            ToTensor(),
            v2.Normalize(list(facts.mean), list(facts.std)),
        ]
    )


def create_test_transform(facts: ImageFacts, image_size: int) -> transforms.Compose:
    """Creates the transform without augmentation, for features and probes.

    Resizes the shorter side to ``image_size`` up to 64 pixels, and to 8/7 of it above (256 for 224,
    as in the authors' evaluation), and crops the centre.

    Args:
        facts: Facts about the images, such as ``get_dataset("cifar10").facts``.
        image_size: Height and width of the result in pixels.

    Returns:
        A transform from a PIL image to a tensor (3, image_size, image_size).
    """
    return create_eval_transform(image_size, facts.mean, facts.std)
