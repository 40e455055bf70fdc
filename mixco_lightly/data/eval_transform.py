"""The transform for evaluation, without augmentation."""

from __future__ import annotations

from collections.abc import Sequence

from torchvision import transforms

INTERPOLATION = "bilinear"
# Up to this size the whole image is evaluated, as usual for small images; above it, the centre.
_WHOLE_IMAGE_SIZE = 64


def resized_side(image_size: int) -> int:
    """Returns the length that the shorter side is resized to before the centre crop.

    Args:
        image_size: Height and width of the crop in pixels.

    Examples:
        >>> from mixco_lightly.data.eval_transform import resized_side
        >>> resized_side(32), resized_side(224)
        (32, 256)
    """
    return image_size if image_size <= _WHOLE_IMAGE_SIZE else round(image_size * 8 / 7)


def create_eval_transform(
    image_size: int, mean: Sequence[float], std: Sequence[float], resize: int | None = None
) -> transforms.Compose:
    """Creates the transform for features and probes.

    The transform resizes the shorter side with bilinear interpolation, crops the centre, and
    normalises.

    Args:
        image_size: Height and width of the result in pixels.
        mean: Mean of each channel.
        std: Standard deviation of each channel.
        resize: Length of the shorter side before the crop. Default: ``image_size`` up to 64 pixels,
            and 8/7 of it above (256 for 224), as in the authors' evaluation.

    Returns:
        A transform from a PIL image to a tensor (channels, image_size, image_size).

    Examples:
        >>> from PIL import Image
        >>> from mixco_lightly.data.eval_transform import create_eval_transform
        >>> transform = create_eval_transform(224, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
        >>> transform(Image.new("RGB", (640, 480))).shape
        torch.Size([3, 224, 224])
    """
    return transforms.Compose(
        [
            transforms.Resize(
                resized_side(image_size) if resize is None else resize,
                transforms.InterpolationMode(INTERPOLATION),
            ),
            transforms.CenterCrop(image_size),
            transforms.ToTensor(),
            transforms.Normalize(mean, std),
        ]
    )
