"""Lightly's augmentations for a whole batch at once, on the images' device."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from lightly.transforms.gaussian_blur import GaussianBlur
from lightly.transforms.multi_view_transform import MultiViewTransform
from lightly.transforms.rotation import RandomRotate, RandomRotateDegrees
from lightly.transforms.torchvision_v2_compatibility import ToTensor
from torch import Tensor, nn
from torchvision.transforms import InterpolationMode, v2

_Step = Callable[[Tensor], Tensor]


class DeviceTransform(nn.Module):
    """Creates the views of Lightly's transform for a batch of images on any device.

    Lightly augments one image at a time in Pillow. This module does the same to a batch of tensors,
    with the parameters of the given transform. kornia draws the boxes and factors, and changes
    colours and rotates. Resizing and blur are products with one matrix per image, because kornia
    does not smooth when it shrinks a crop, and its blur with a small sigma is weaker than Pillow's.
    The hue is turned here too, in a quarter of kornia's time.

    Differences from Lightly:

    - Values are not rounded to 256 levels after each step.
    - All images of a batch share the order of brightness, contrast, saturation and hue, drawn anew
      for each view and call. Each image has its own factors.
    - If ten tries find no crop for an image, because it is too long for the crop's ratios, a random
      part of it is cropped instead of its centre.

    All random numbers come from torch's global CPU generator, even for images on a GPU, so a seed
    gives the same augmentations on every device. The CPU draws the parameters, decides which images
    each step changes, and sends both to the GPU without waiting for it. The module has no
    parameters, no buffers and no gradient.

    Args:
        transform: Lightly's transform, as
            :func:`~mixco_lightly.data.transforms.create_pretrain_transform` returns it. Each of its
            views is a ``Compose``, or has one as ``.transform``. Steps with probability 0 are
            skipped.

    Raises:
        ValueError: If a step is not one of Lightly's, or has options that are not supported here.
        ImportError: If kornia is not installed.

    Examples:
        >>> import torch
        >>> from mixco_lightly.data import DeviceTransform, create_pretrain_transform, get_dataset
        >>> facts = get_dataset("cifar10").facts
        >>> transform = DeviceTransform(create_pretrain_transform("moco", facts, 32))
        >>> images = torch.randint(256, (4, 3, 32, 32), dtype=torch.uint8)
        >>> [tuple(view.shape) for view in transform(images)]
        [(4, 3, 32, 32), (4, 3, 32, 32)]
    """

    def __init__(self, transform: MultiViewTransform) -> None:
        super().__init__()
        # Not in a ModuleList: on a device, kornia's modules would draw their random numbers there.
        self.views = [_translate_view(view) for view in transform.transforms]

    @torch.no_grad()
    def forward(self, images: Tensor) -> list[Tensor]:
        """Draws the views of each image.

        Args:
            images: uint8 of shape (N, 3, H, W).

        Returns:
            The views, float32 of shape (N, 3, size, size) each, on the device of the images.

        Raises:
            ValueError: If the images are not uint8 or not of that shape.
        """
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
            raise ValueError(
                "images must be uint8 of shape (N, 3, H, W), got "
                f"{images.dtype} of shape {tuple(images.shape)}."
            )
        # Half precision has fewer levels than the images.
        with torch.autocast(images.device.type, enabled=False):
            # Each view gets its own float copy, because steps may change it in place.
            return [_in_turn(steps, images.float().div_(255)) for steps in self.views]


def _translate_view(view: Any) -> list[_Step]:
    compose = view if isinstance(view, v2.Compose) else getattr(view, "transform", None)
    if not isinstance(compose, v2.Compose):
        raise ValueError(f"A view must be a torchvision.transforms.v2.Compose, got {view!r}.")
    return _translate_all(compose.transforms)


def _translate_all(transforms: Sequence[Any]) -> list[_Step]:
    steps = (_translate(transform) for transform in transforms)
    return [step for step in steps if step is not None]


def _translate(transform: Any) -> _Step | None:
    """Returns the step for a batch in [0, 1], or None if there is nothing to do."""
    augmentation = _kornia().augmentation
    match transform:
        case ToTensor():
            return None
        case v2.RandomResizedCrop(interpolation="bilinear" | InterpolationMode.BILINEAR):
            height, width = transform.size
            crop = augmentation.RandomResizedCrop((height, width), transform.scale, transform.ratio)
            return partial(_crop, crop=crop)
        case v2.RandomHorizontalFlip():
            return _sometimes(transform.p, partial(torch.flip, dims=(-1,)))
        case v2.RandomVerticalFlip():
            return _sometimes(transform.p, partial(torch.flip, dims=(-2,)))
        case v2.RandomApply():
            steps = _translate_all(transform.transforms)
            return _sometimes(transform.p, partial(_in_turn, steps)) if steps else None
        case RandomRotateDegrees():
            return _translate(transform.transform)
        case RandomRotate():
            angles = (float(transform.angle), float(transform.angle))
            return _sometimes(transform.prob, _rotation(angles))
        case v2.RandomRotation(
            interpolation="nearest" | InterpolationMode.NEAREST,
            expand=False,
            center=None,
            fill=0,
        ):
            return _rotation(transform.degrees)
        case v2.ColorJitter():
            # torchvision uses None for a factor that changes nothing.
            factors = [transform.brightness, transform.contrast, transform.saturation]
            ranges = [(1.0, 1.0) if factor is None else factor for factor in factors]
            jitter = augmentation.ColorJitter(*ranges, transform.hue or (0.0, 0.0))
            return partial(_jitter, jitter=jitter)
        case v2.RandomGrayscale():
            return _sometimes(transform.p, augmentation.RandomGrayscale(p=1.0))
        case GaussianBlur():
            low, high = transform.sigmas
            return _sometimes(transform.prob, partial(_blur, low=low, high=high))
        case v2.Normalize():
            return augmentation.Normalize(tuple(transform.mean), tuple(transform.std))
    raise ValueError(f"There is no device version of the transform {transform!r}.")


def _kornia() -> Any:
    # Imported here because it is slow and only these transforms need it.
    try:
        return importlib.import_module("kornia")
    except ImportError as error:
        raise ImportError("Augmenting on the device needs kornia: pip install kornia") from error


def _rotation(degrees: Sequence[float]) -> _Step:
    # Nearest is torchvision's default. Aligned corners rotate about the centre, as Pillow does.
    return _kornia().augmentation.RandomRotation(
        tuple(degrees), resample="nearest", align_corners=True, p=1.0
    )


def _send(drawn: Tensor, images: Tensor) -> Tensor:
    """Copies parameters from the CPU to the images' device without waiting for it.

    CUDA stages such small copies itself, so they need no pinned memory.
    """
    return drawn.to(images.device, non_blocking=True)


def _in_turn(steps: Sequence[_Step], images: Tensor) -> Tensor:
    for step in steps:
        images = step(images)
    return images


def _sometimes(probability: float, step: _Step) -> _Step | None:
    return partial(_apply_to_some, probability=probability, step=step) if probability > 0 else None


def _apply_to_some(images: Tensor, probability: float, step: _Step) -> Tensor:
    """Changes each image in place with the given probability."""
    chosen = (torch.rand(len(images)) < probability).nonzero().flatten()
    if len(chosen) == 0:
        return images
    chosen = _send(chosen, images)
    return images.index_copy_(0, chosen, step(images[chosen]))


def _crop(images: Tensor, crop: Any) -> Tensor:
    """Crops a box for each image and resizes it as Pillow does."""
    corners = _send(crop.generate_parameters(images.shape)["src"], images)
    start, length = corners[:, 0], corners[:, 2] - corners[:, 0] + 1  # (N, 2), x before y
    height, width = crop.flags["size"]
    rows = _resize_weights(start[:, 1], length[:, 1], images.shape[2], height)
    columns = _resize_weights(start[:, 0], length[:, 0], images.shape[3], width)
    return _multiply(images, rows, columns)


def _resize_weights(start: Tensor, length: Tensor, size: int, resized: int) -> Tensor:
    """Returns the weight of each pixel for each resized pixel, shape (N, resized, size).

    Pillow's bilinear filter is a triangle. When an image shrinks, it is as wide as a resized pixel.
    It ignores pixels outside the box.
    """
    pixel = torch.arange(size, device=start.device) + 0.5
    scale = (length / resized)[:, None, None]
    centre = (torch.arange(resized, device=start.device)[:, None] + 0.5) * scale
    distance = (pixel - start[:, None, None] - centre).abs() / scale.clamp(min=1)
    outside = (pixel < start[:, None]) | (pixel > (start + length)[:, None])
    weights = (1 - distance).clamp_(min=0).masked_fill_(outside[:, None], 0)
    return weights / weights.sum(dim=2, keepdim=True)


def _jitter(images: Tensor, jitter: Any) -> Tensor:
    """Jitters the colours of images (N, 3, H, W) with torchvision's formulas."""
    drawn = jitter.generate_parameters(images.shape)
    enhance = _kornia().enhance
    # kornia's names for torchvision's formulas: its plain ones add to the brightness, for example.
    changes: list[tuple[str, Callable[[Tensor, Tensor], Tensor]]] = [
        ("brightness_factor", enhance.adjust_brightness_accumulative),
        ("contrast_factor", enhance.adjust_contrast_with_mean_subtraction),
        ("saturation_factor", enhance.adjust_saturation_with_gray_subtraction),
        ("hue_factor", _turn_hue),
    ]
    for index in drawn["order"].tolist():
        name, change = changes[index]
        images = change(images, _send(drawn[name], images))
    return images


def _turn_hue(images: Tensor, turns: Tensor) -> Tensor:
    """Turns the hue of images (N, 3, H, W) by fractions of the circle (N,).

    Hue is measured in sixths of the circle: red is at 0, green at 2, blue at 4. A channel has the
    highest value up to a distance of 1 from its own hue, the lowest from 2 on, and is linear in
    between. This equals a conversion to HSV and back, without its table of six cases.
    """
    red, green, blue = images.unbind(1)
    highest = images.amax(1)
    spread = highest - images.amin(1)
    divisor = spread.masked_fill(spread == 0, 1)
    hue = torch.where(
        highest == red,
        (green - blue) / divisor,
        torch.where(highest == green, (blue - red) / divisor + 2, (red - green) / divisor + 4),
    )
    hue += 6 * turns[:, None, None]
    turned = torch.empty_like(images)
    for channel in range(3):
        distance = hue - 2 * channel
        distance -= 6 * torch.round(distance / 6)
        turned[:, channel] = highest - spread * distance.abs_().sub_(1).clamp_(0, 1)
    return turned


def _blur(images: Tensor, low: float, high: float) -> Tensor:
    """Blurs each image as Pillow does, with its own sigma in [low, high]."""
    sigma = _send(torch.empty(len(images)).uniform_(low, high), images)
    height, width = images.shape[2:]
    rows = _blur_weights(sigma, height, high)
    columns = rows if height == width else _blur_weights(sigma, width, high)
    return _multiply(images, rows, columns)


def _blur_weights(sigma: Tensor, size: int, high: float) -> Tensor:
    """Returns the weight of each pixel for each blurred pixel, shape (N, size, size).

    Pillow blurs three times with a box of a third of the variance. A box of radius r has weight 1
    up to the distance floor(r), and weight r - floor(r) one pixel further out.
    """
    variance = sigma**2 / 3
    whole = ((12 * variance + 1).sqrt().sub(1) / 2).floor()
    rest = (2 * whole + 1) * (whole * (whole + 1) - 3 * variance)
    radius = (whole + rest / (6 * (variance - (whole + 1) ** 2)))[:, None, None]
    # The radius never exceeds sigma.
    pad = math.ceil(high)
    pixel = torch.arange(size, device=sigma.device)[:, None]
    neighbour = torch.arange(-pad, size + pad, device=sigma.device)
    weights = (radius + 1 - (neighbour - pixel).abs()).clamp_(0, 1) / (2 * radius + 1)
    # Outside the image, its border is repeated.
    box = weights[:, :, pad : pad + size].clone()
    box[:, :, 0] += weights[:, :, :pad].sum(dim=2)
    box[:, :, -1] += weights[:, :, pad + size :].sum(dim=2)
    return box @ box @ box


def _multiply(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Resamples images (N, C, H, W) with rows (N, H', H) and columns (N, W', W)."""
    n, channels, height, width = images.shape
    new_height, new_width = rows.shape[1], columns.shape[1]
    wide = images.reshape(n, channels * height, width) @ columns.mT
    # With the channels beside the columns, one product per image is enough, not one per channel.
    wide = wide.view(n, channels, height, new_width).transpose(1, 2)
    tall = rows @ wide.reshape(n, height, channels * new_width)
    return tall.view(n, new_height, channels, new_width).transpose(1, 2).contiguous()
