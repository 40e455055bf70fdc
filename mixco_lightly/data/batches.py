"""Images of one size, taken out of their array a batch at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import datasets, transforms

from mixco_lightly.data.datasets import Digits, LabelledImages
from mixco_lightly.data.decoded import DecodedImages


class PixelBatches(Dataset[tuple[Tensor, int]]):
    """Images of one size as tensors, without an object of Pillow's for each of them.

    A DataLoader takes a batch by one call of ``__getitems__``; the samples are the same as one by
    one.

    Args:
        images: Images whose pixels are one array.
        change: Called with the pixels of a batch, uint8 of shape (N, 3, H, W). Default: nothing is
            changed.
    """

    def __init__(
        self,
        images: DecodedImages | datasets.CIFAR10 | Digits,
        change: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        self.images = images
        self.change = change

    def __len__(self) -> int:
        """Number of images."""
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """The image as a tensor, and its target."""
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[tuple[Tensor, int]]:
        """The images as views of one tensor, and their targets."""
        rows = np.asarray(indices)
        pixels = torch.from_numpy(np.ascontiguousarray(_array(self.images)[rows]))
        if pixels.ndim == 3:  # grey
            pixels = pixels.unsqueeze(3).expand(-1, -1, -1, 3)
        batch = pixels.permute(0, 3, 1, 2).contiguous()  # n x 3 x h x w
        if self.change is not None:
            batch = self.change(batch)
        targets = [self.images.targets[index] for index in indices]
        return list(zip(batch.unbind(), targets, strict=True))


def in_batches(images: LabelledImages) -> Dataset[Any]:
    """The same samples, taken out a batch at a time where that is possible.

    It is where the images have one size and their transform does the same to each of them: nothing
    (``PILToTensor``), or what :func:`~mixco_lightly.data.transforms.create_test_transform` does at
    the images' own size. At other sizes each image is resized by Pillow.

    Args:
        images: A dataset of :func:`~mixco_lightly.data.datasets.create_dataset`.

    Returns:
        A dataset with the same samples for a DataLoader; ``images`` where it is not possible.

    Examples:
        >>> from torchvision.transforms import PILToTensor
        >>> from mixco_lightly.data.batches import in_batches
        >>> from mixco_lightly.data.datasets import create_dataset
        >>> images = in_batches(create_dataset("digits", "data", True, PILToTensor()))
        >>> [tuple(image.shape) for image, _ in images.__getitems__([5, 7])]
        [(3, 8, 8), (3, 8, 8)]
    """
    if isinstance(images, (DecodedImages, datasets.CIFAR10, Digits)):
        if isinstance(images.transform, transforms.PILToTensor):
            return PixelBatches(images)
        match getattr(images.transform, "transforms", None):
            case [
                transforms.Resize(size=size),
                transforms.CenterCrop(size=(height, width)),
                transforms.ToTensor(),
                transforms.Normalize() as normalize,
            ] if _array(images).shape[1:3] == (size, size) == (height, width):
                return PixelBatches(images, partial(_normalize, normalize=normalize))
    return images  # type: ignore[return-value]


def _normalize(pixels: Tensor, normalize: Callable[[Tensor], Tensor]) -> Tensor:
    return normalize(pixels.float().div_(255))  # as ToTensor


def _array(images: DecodedImages | datasets.CIFAR10 | Digits) -> np.ndarray[Any, Any]:
    """Pixels, uint8 of shape (N, H, W, 3), or (N, H, W) in grey."""
    return images.data if isinstance(images, datasets.CIFAR10) else images.images
