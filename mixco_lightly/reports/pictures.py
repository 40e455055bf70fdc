"""Images as parts of a page."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision.transforms.v2 import functional

from mixco_lightly.data.images import ImageFacts

# Longest side of a picture in a page, in pixels. A page has hundreds of them.
PICTURE_SIDE = 48
_QUALITY = 85


class Sheet(NamedTuple):
    """Pictures in the rows of one image, which takes less than an image for each.

    Attributes:
        uri: The image.
        lefts: Left edge of each picture.
        tops: Upper edge of each picture.
        side: Height and width of a picture.
        width: Width of the image.
    """

    uri: str
    lefts: list[int]
    tops: list[int]
    side: int
    width: int


def to_pixels(images: Tensor, facts: ImageFacts) -> Tensor:
    """Makes pictures of a network's input.

    Args:
        images: Normalised images, shape (N, C, H, W); a single channel is grey.
        facts: Has the statistics that the images were normalised by.

    Returns:
        uint8 of shape (N, 3, H', W'), at most ``PICTURE_SIDE`` high and wide.
    """
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (facts.mean, facts.std))
    pixels = (images.float().cpu() * std + mean).clamp(0, 1)
    if pixels.shape[1] == 1:
        pixels = pixels.expand(-1, 3, -1, -1)
    if max(pixels.shape[2:]) > PICTURE_SIDE:
        pixels = functional.resize(pixels, [PICTURE_SIDE, PICTURE_SIDE], antialias=True)
    return (255 * pixels).round().to(torch.uint8)


def load_pixels(images: Any, facts: ImageFacts) -> Tensor:
    """Makes pictures of a dataset, whose transform normalises its images.

    Args:
        images: The dataset of images and targets.
        facts: Has the statistics that the images are normalised by.

    Returns:
        uint8 of shape (N, 3, H, W).
    """
    batches: Iterable[Any] = DataLoader(images, batch_size=64)
    return torch.cat([to_pixels(batch, facts) for batch, *_ in batches])


def to_uri(pixels: Tensor, format: str = "JPEG") -> str:
    """Returns an image (3, H, W) as a text that a page can contain."""
    file = io.BytesIO()
    image = Image.fromarray(pixels.permute(1, 2, 0).numpy())
    options = {"quality": _QUALITY, "subsampling": 0} if format == "JPEG" else {"optimize": True}
    image.save(file, format, **options)
    return f"data:image/{format.lower()};base64,{base64.b64encode(file.getvalue()).decode()}"


def to_sheet(pixels: Tensor) -> Sheet:
    """Puts square pictures (N, 3, S, S) into the rows of one image."""
    count, channels, side, _ = pixels.shape
    columns = math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    cells = pixels.new_zeros(rows * columns, channels, side, side)
    cells[:count] = pixels
    cells = cells.view(rows, columns, channels, side, side).permute(2, 0, 3, 1, 4)
    return Sheet(
        to_uri(cells.reshape(channels, rows * side, columns * side)),
        [index % columns * side for index in range(count)],
        [index // columns * side for index in range(count)],
        side,
        columns * side,
    )
