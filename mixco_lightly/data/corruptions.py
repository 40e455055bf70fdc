"""Corruptions of test images after ImageNet-C: six kinds, each at three strengths.

- [0]: Benchmarking Neural Network Robustness to Common Corruptions and Perturbations, 2019,
  https://arxiv.org/abs/1903.12261
"""

from __future__ import annotations

import copy
import io
import math
from collections.abc import Callable

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate
from torch.utils.data import Dataset
from torchvision.transforms.v2 import functional

from mixco_lightly.data.images import ImageFacts, LabelledImages

# Called with pixels in [0, 1] of shape (3, H, W), a strength, and a source of noise.
Corruption = Callable[[Tensor, float, np.random.Generator], Tensor]


def add_noise(pixels: Tensor, strength: float, rng: np.random.Generator) -> Tensor:
    """Adds Gaussian noise with the standard deviation ``strength``."""
    noise = rng.standard_normal(tuple(pixels.shape), dtype=np.float32)
    return pixels + strength * torch.from_numpy(noise)


def blur(pixels: Tensor, strength: float, rng: np.random.Generator) -> Tensor:
    """Blurs by a Gaussian whose standard deviation is the part ``strength`` of the shorter side."""
    sigma = strength * min(pixels.shape[1:])
    return functional.gaussian_blur(pixels, [2 * math.ceil(3 * sigma) + 1] * 2, [sigma] * 2)


def reduce_contrast(pixels: Tensor, strength: float, rng: np.random.Generator) -> Tensor:
    """Multiplies the distance of each channel to its mean by ``strength``."""
    mean = pixels.mean(dim=(1, 2), keepdim=True)
    return mean + strength * (pixels - mean)


def brighten(pixels: Tensor, strength: float, rng: np.random.Generator) -> Tensor:
    """Adds ``strength`` to the largest channel of each pixel; hue and saturation are kept."""
    value = pixels.amax(dim=0)
    brighter = (value + strength).clamp(max=1)
    # A black pixel becomes grey.
    return torch.where(value > 0, pixels * (brighter / value), brighter)


def compress(pixels: Tensor, strength: float, rng: np.random.Generator) -> Tensor:
    """Compresses by JPEG with the quality ``strength``."""
    file = io.BytesIO()
    whole = (pixels * 255).round().byte()  # to_pil_image would round down
    functional.to_pil_image(whole).save(file, format="JPEG", quality=round(strength))
    return functional.pil_to_tensor(Image.open(file)).float() / 255


def pixelate(pixels: Tensor, strength: float, rng: np.random.Generator) -> Tensor:
    """Reduces height and width to the part ``strength``, and enlarges them again."""
    size = pixels.shape[1:]
    small = [max(1, round(strength * side)) for side in size]
    reduced = interpolate(pixels.unsqueeze(0), small, mode="area")
    return interpolate(reduced, size, mode="nearest")[0]


# The strengths lie between the authors' for CIFAR-10 and for ImageNet. Lengths are parts of the
# image, so that they suit every size.
CORRUPTIONS: dict[str, tuple[Corruption, tuple[float, float, float]]] = {
    "noise": (add_noise, (0.04, 0.08, 0.12)),
    "blur": (blur, (1 / 64, 1 / 43, 1 / 32)),
    "contrast": (reduce_contrast, (0.75, 0.5, 0.3)),
    "brightness": (brighten, (0.1, 0.2, 0.3)),
    "jpeg": (compress, (80, 50, 25)),
    "pixelate": (pixelate, (0.75, 0.5, 0.33)),
}


class CorruptedImages(Dataset[tuple[Tensor, int]]):
    """A seeded part of some images, corrupted in each way and at each strength.

    They are corrupted after they are resized and cropped, and rounded to 8 bits afterwards.

    Args:
        images: The images; their transform is ignored.
        facts: The facts whose statistics :attr:`transform` normalises by.
        max_images: The number of images that are chosen; all if there are fewer.
        seed: Seed of the choice and of the noise.

    Attributes:
        classes: Class names.
        targets: Target of each corrupted image: all of the first kind and strength come first, then
            those of its second strength.
        transform: Transform to a normalised tensor (3, H, W), to be set.
    """

    def __init__(
        self, images: LabelledImages, facts: ImageFacts, *, max_images: int, seed: int
    ) -> None:
        self._images = copy.copy(images)
        self._images.transform = None
        self._mean, self._std = (torch.tensor(x).view(3, 1, 1) for x in (facts.mean, facts.std))
        self._seed = seed
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
        self._chosen: list[int] = order[:max_images].sort().values.tolist()
        self._conditions = [
            (corrupt, strength)
            for corrupt, strengths in CORRUPTIONS.values()
            for strength in strengths
        ]
        self.classes = images.classes
        self.targets = [images.targets[index] for index in self._chosen] * len(self._conditions)
        self.transform: Callable[[Image.Image], Tensor] | None = None

    def __len__(self) -> int:
        """Returns the number of corrupted images."""
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """Returns a corrupted image, normalised, and its target."""
        assert self.transform is not None
        condition, row = divmod(index, len(self._chosen))
        corrupt, strength = self._conditions[condition]
        image, target = self._images[self._chosen[row]]
        pixels = (self.transform(image) * self._std + self._mean).clamp(0, 1)
        # The same noise whatever the worker and the batch.
        rng = np.random.default_rng([self._seed, condition, self._chosen[row]])
        corrupted = corrupt(pixels, strength, rng).clamp(0, 1)
        rounded = (corrupted * 255).round() / 255
        return (rounded - self._mean) / self._std, target
