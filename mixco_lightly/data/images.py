"""What is known of a dataset's images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from mixco_lightly.data.datasets import (
    LabelledImages as LabelledImages,
    broken_images as broken_images,
    have_one_size as have_one_size,
)


@dataclass(frozen=True)
class ImageFacts:
    """What transforms need to know of a dataset's images.

    Attributes:
        mean: Mean of each channel, images in [0, 1].
        std: Standard deviation of each channel.
        has_colour: Whether the images have colours.
        can_flip: Whether a flipped image has the same class.
        min_scale: Smallest area of a random crop, as a part of the image's.
    """

    mean: Sequence[float]
    std: Sequence[float]
    has_colour: bool = True
    can_flip: bool = True
    min_scale: float = 0.2

    def normalised(
        self, mean: Sequence[float] | None = None, std: Sequence[float] | None = None
    ) -> ImageFacts:
        """Returns the facts with another mean and standard deviation, where they are given."""
        return replace(self, mean=mean or self.mean, std=std or self.std)
