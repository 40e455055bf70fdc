"""Images of one size, read from their array a batch at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import transforms

from mixco_lightly.data.images import ImageArray, LabelledImages


class PixelBatches(Dataset[tuple[Tensor, int]]):
    """Images of one size as tensors, without a Pillow image for each of them.

    A DataLoader reads a batch by one call of ``__getitems__``. The samples are the same as when
    they are read one by one.

    Args:
        images: Images whose pixels are one array.
        change: Called with the pixels of a batch, uint8 of shape (N, 3, H, W). Default: the pixels
            are returned unchanged.
    """

    def __init__(
        self,
        images: ImageArray,
        change: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        self.images = images
        self.change = change

    def __len__(self) -> int:
        """Returns the number of images."""
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """Returns the image as a tensor, and its target."""
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[tuple[Tensor, int]]:
        """Returns the images as views of one tensor, and their targets."""
        rows = np.asarray(indices)
        pixels = torch.from_numpy(np.ascontiguousarray(self.images.pixels[rows]))
        if pixels.ndim == 3:  # grey
            pixels = pixels.unsqueeze(3).expand(-1, -1, -1, 3)
        batch = pixels.permute(0, 3, 1, 2).contiguous()  # n x 3 x h x w
        if self.change is not None:
            batch = self.change(batch)
        targets = [self.images.targets[index] for index in indices]
        return list(zip(batch.unbind(), targets, strict=True))


def in_batches(images: LabelledImages) -> Dataset[Any]:
    """Returns the same samples, read a batch at a time where that is possible.

    This needs an :class:`~mixco_lightly.data.images.ImageArray`, and a transform that needs no
    Pillow: ``PILToTensor``, or what
    :func:`~mixco_lightly.data.transforms.create_test_transform` returns for the images' own size.
    At other sizes Pillow resizes each image.

    Args:
        images: A dataset of :func:`~mixco_lightly.data.catalogue.create_dataset`.

    Returns:
        A dataset with the same samples for a DataLoader, or ``images`` itself.

    Examples:
        >>> from torchvision.transforms import PILToTensor
        >>> from mixco_lightly.data import create_dataset, in_batches
        >>> images = in_batches(create_dataset("digits", "data", True, PILToTensor()))
        >>> [tuple(image.shape) for image, _ in images.__getitems__([5, 7])]
        [(3, 8, 8), (3, 8, 8)]
    """
    if isinstance(images, ImageArray):
        if isinstance(images.transform, transforms.PILToTensor):
            return PixelBatches(images)
        match getattr(images.transform, "transforms", None):
            case [
                transforms.Resize(size=size),
                transforms.CenterCrop(size=(height, width)),
                transforms.ToTensor(),
                transforms.Normalize() as normalize,
            ] if images.pixels.shape[1:3] == (size, size) == (height, width):
                return PixelBatches(images, partial(_normalize, normalize=normalize))
    return images  # type: ignore[return-value]


def _normalize(pixels: Tensor, normalize: Callable[[Tensor], Tensor]) -> Tensor:
    return normalize(pixels.float().div_(255))  # as ToTensor
