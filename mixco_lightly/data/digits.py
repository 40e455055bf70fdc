"""scikit-learn's embedded 8x8 images of handwritten digits."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from mixco_lightly.data.images import DatasetSpec, ImageArray, ImageFacts


def open_digits(root: Path, *, train: bool, download: bool = False) -> ImageArray:
    """Opens scikit-learn's 1,797 digits in ten classes.

    scikit-learn has no split. Here every fourth image is a test image: 1,348 images for training
    and 449 for testing.

    Args:
        root: Not used.
        train: Whether to open the training images or the test images.
        download: Not used.
    """
    # Imported here because it takes a second.
    from sklearn.datasets import load_digits

    images, targets = load_digits(return_X_y=True)
    chosen = (np.arange(len(images)) % 4 != 3) == train
    # Grey values are 0 to 16.
    pixels = (images[chosen].reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
    return ImageArray(pixels, targets[chosen].tolist(), [str(digit) for digit in range(10)])


DIGITS = DatasetSpec(
    "digits",
    # A mirrored digit is another sign, and so is one that is turned or cropped too far.
    ImageFacts(
        mean=(0.305, 0.305, 0.305),
        std=(0.376, 0.376, 0.376),
        has_colour=False,
        can_flip=False,
        max_rotation=15,
        min_scale=0.5,
    ),
    open_digits,
    image_size=32,
    backbone="test_resnet",
    stem="timm",
    is_embedded=True,
)
