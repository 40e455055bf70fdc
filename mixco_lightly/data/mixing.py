"""Mixing of a batch's images: pairings, mixup, cutmix, masks, and two views cut together.

The random numbers come from a generator on the images' device, and no value is read back, so that
mixing does not make the CPU wait for a GPU.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mixco_lightly.data.mixture import Mixture, beta_weights, check_images, weight_dtype

# BEiT's and MixMask's blocks: cells of the smallest one, and height / width of the flattest one.
_MIN_CELLS = 4
_MIN_ASPECT = 0.3
# Blocks drawn for each mask. They nearly always cover as many cells as are needed.
_BLOCKS = 12


def pair_halves(count: int, device: torch.device | str | None = None) -> tuple[Tensor, Tensor]:
    """Pairs the first half of a batch with its second half, as MixCo does.

    Args:
        count: Number of images.
        device: Device of the indices. Default: the CPU.

    Returns:
        first and second, int64 of shape (count // 2,). For an odd count the last image has no pair.

    Examples:
        >>> from mixco_lightly.data import pair_halves
        >>> pair_halves(5)
        (tensor([0, 1]), tensor([2, 3]))
    """
    first = torch.arange(count // 2, device=device)
    return first, first + count // 2


def pair_permuted(
    count: int,
    device: torch.device | str | None = None,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """Pairs each image with one of a random permutation, as i-Mix does.

    A random permutation leaves one image in its place on average. Such an image is paired with
    itself, as in the authors' code.

    Args:
        count: Number of images.
        device: Device of the indices. Default: the CPU.
        generator: Random generator on that device. Default: torch's global one.

    Returns:
        first and second, int64 of shape (count,).
    """
    first = torch.arange(count, device=device)
    return first, torch.randperm(count, device=device, generator=generator)


def pair_reversed(count: int, device: torch.device | str | None = None) -> tuple[Tensor, Tensor]:
    """Pairs each image with that of the reversed batch, as Un-Mix does.

    Args:
        count: Number of images.
        device: Device of the indices. Default: the CPU.

    Returns:
        first and second, int64 of shape (count,). For an odd count the middle image is paired with
        itself.

    Examples:
        >>> from mixco_lightly.data import pair_reversed
        >>> pair_reversed(4)
        (tensor([0, 1, 2, 3]), tensor([3, 2, 1, 0]))
    """
    first = torch.arange(count, device=device)
    return first, first.flip(0)


@torch.no_grad()
def mixup(images: Tensor, first: Tensor, second: Tensor, lam: Tensor) -> Mixture:
    """Mixes each pair of images by a weighted sum, as mixup [0] does.

    - [0]: mixup: Beyond Empirical Risk Minimization, 2017, https://arxiv.org/abs/1710.09412

    Args:
        images: Batch of images, shape (N, C, H, W), floating point.
        first: Index of each pair's first image, int64 of shape (M,).
        second: Index of each pair's second image, int64 of shape (M,).
        lam: Weights of the first images in [0, 1], shape (M,), or (1,) for all pairs.

    Returns:
        M mixtures ``lam * images[first] + (1 - lam) * images[second]``.

    Raises:
        TypeError: If ``images`` is not a tensor.
        ValueError: If the images cannot be mixed, or the shapes do not fit together.

    Examples:
        >>> import torch
        >>> from mixco_lightly.data import mixup, pair_halves
        >>> mixup(torch.rand(6, 3, 8, 8), *pair_halves(6), torch.rand(3)).images.shape
        torch.Size([3, 3, 8, 8])
    """
    _check_pairs(images, first, second, lam)
    weight = lam.to(images.dtype).view(-1, 1, 1, 1)
    mixed = torch.lerp(images[second], images[first], weight)
    return Mixture(mixed, first, second, _one_each(lam, first))


@torch.no_grad()
def cutmix(
    images: Tensor,
    first: Tensor,
    second: Tensor,
    lam: Tensor,
    generator: torch.Generator | None = None,
) -> Mixture:
    """Pastes a box of each pair's second image into the first, as CutMix [0] does.

    The sides of the box are those of the image times sqrt(1 - lam), rounded down to even numbers.
    Its centre is uniform over the image, and what lies outside the image is cut off. So the first
    image keeps at least lam of the area. The mixture's ``lam`` is the part that it keeps.

    - [0]: CutMix: Regularization Strategy to Train Strong Classifiers with Localizable Features,
      2019, https://arxiv.org/abs/1905.04899

    Args:
        images: Batch of images, shape (N, C, H, W), floating point.
        first: Index of each pair's first image, int64 of shape (M,).
        second: Index of each pair's second image, int64 of shape (M,).
        lam: Weights in [0, 1], shape (M,) for one box for each pair, or (1,) for one box for all.
        generator: Random generator on the images' device. Default: torch's global one.

    Returns:
        M mixtures.

    Raises:
        TypeError: As :func:`mixup`.
        ValueError: As :func:`mixup`.
    """
    _check_pairs(images, first, second, lam)
    is_first = _outside_a_box(lam, images.shape[-2:], generator)
    mixed = torch.where(is_first, images[first], images[second])
    return Mixture(mixed, first, second, _one_each(_area(is_first, lam), first))


@torch.no_grad()
def mask_mix(
    images: Tensor,
    first: Tensor,
    second: Tensor,
    lam: Tensor,
    generator: torch.Generator | None = None,
    grid: int = 8,
) -> Mixture:
    """Shows each pair's first image in random blocks and the second elsewhere, as MixMask [0] does.

    The image is divided into ``grid x grid`` cells. As in BEiT [1], blocks have at least four cells
    and aspect ratios from 0.3 to 1 / 0.3. They are added until the first image has
    ``round(lam * grid**2)`` cells. The mixture's ``lam`` is the part of the area that it has.

    The authors' code drops a block that is too large, and may stop before it has all cells. Here
    the last block is cut along a line of random direction, and the number of cells is exact.

    - [0]: MixMask: Revisiting Masking Strategy for Siamese ConvNets, 2022,
      https://arxiv.org/abs/2210.11456
    - [1]: BEiT: BERT Pre-Training of Image Transformers, 2021, https://arxiv.org/abs/2106.08254

    Args:
        images: Batch of images, shape (N, C, H, W), floating point.
        first: Index of each pair's first image, int64 of shape (M,).
        second: Index of each pair's second image, int64 of shape (M,).
        lam: Weights in [0, 1], shape (M,) for one mask for each pair, or (1,) for one mask for all.
        generator: Random generator on the images' device. Default: torch's global one.
        grid: Number of cells in each direction. The default is that of the authors' command.

    Returns:
        M mixtures.

    Raises:
        TypeError: As :func:`mixup`.
        ValueError: As :func:`mixup`, or if ``grid`` is not positive.
    """
    _check_pairs(images, first, second, lam)
    if grid < 1:
        raise ValueError(f"grid must be at least 1, got {grid}.")
    is_first = _in_blocks(lam, images.shape[-2:], grid, generator)
    mixed = torch.where(is_first, images[first], images[second])
    return Mixture(mixed, first, second, _one_each(_area(is_first, lam), first))


@torch.no_grad()
def mixup_or_cutmix(
    images: Tensor,
    first: Tensor,
    second: Tensor,
    lam: Tensor,
    generator: torch.Generator | None = None,
) -> Mixture:
    """Mixes a batch by mixup or by cutmix, each with probability 1/2, as Un-Mix does.

    Args:
        images: Batch of images, shape (N, C, H, W), floating point.
        first: Index of each pair's first image, int64 of shape (M,).
        second: Index of each pair's second image, int64 of shape (M,).
        lam: Weights in [0, 1], shape (M,), or (1,) for all pairs.
        generator: Random generator on the images' device. Default: torch's global one.

    Returns:
        M mixtures, all by mixup or all by cutmix.

    Raises:
        TypeError: As :func:`mixup`.
        ValueError: As :func:`mixup`.
    """
    _check_pairs(images, first, second, lam)
    is_first = _outside_a_box(lam, images.shape[-2:], generator)
    # Both are drawn and one is chosen on the device: an `if` would wait for the GPU.
    is_mixup = torch.rand((), device=lam.device, generator=generator) < 0.5
    weight = torch.where(is_mixup, lam.view(-1, 1, 1, 1), is_first)
    mixed = torch.lerp(images[second], images[first], weight.to(images.dtype))
    chosen = torch.where(is_mixup, lam, _area(is_first, lam))
    return Mixture(mixed, first, second, _one_each(chosen, first))


@torch.no_grad()
def cut_views(
    view0: Tensor,
    view1: Tensor,
    alpha: float = 1.0,
    generator: torch.Generator | None = None,
) -> Mixture:
    """Pastes a box of one view of each image into another view of it, as ScaleMix [0] does.

    The result is a view of the same image, so its target is one-hot: ``first`` and ``second`` are
    equal, and the losses do not depend on ``lam``. Use its images in place of the query view, and
    a third view for the keys.

    - [0]: On the Importance of Asymmetry for Siamese Representation Learning, 2022,
      https://arxiv.org/abs/2204.00613

    Args:
        view0: Views of a batch of images, shape (N, C, H, W), floating point.
        view1: Other views of the same images, of the same shape.
        alpha: The boxes' sizes follow Beta(alpha, alpha) as in :func:`cutmix`; the default 1 is
            the authors' setting.
        generator: Random generator on the views' device. Default: torch's global one.

    Returns:
        N mixtures; ``lam`` is the part of the area that is ``view0``.

    Raises:
        ValueError: If the views have different shapes or dtypes, or ``alpha`` is not positive.

    Examples:
        >>> import torch
        >>> from mixco_lightly.data import cut_views
        >>> view0, view1, key_view = (torch.rand(4, 3, 32, 32) for _ in range(3))
        >>> query_view = cut_views(view0, view1)
        >>> query_view.images.shape, query_view.first.tolist(), query_view.second.tolist()
        (torch.Size([4, 3, 32, 32]), [0, 1, 2, 3], [0, 1, 2, 3])
    """
    if view0.dim() != 4 or view0.shape != view1.shape or view0.dtype != view1.dtype:
        raise ValueError(
            "view0 and view1 must have one dtype and one shape (N, C, H, W), got "
            f"{view0.dtype} of shape {tuple(view0.shape)} and "
            f"{view1.dtype} of shape {tuple(view1.shape)}."
        )
    dtype, device = weight_dtype(view0), view0.device
    lam = beta_weights(len(view0), alpha, dtype=dtype, device=device, generator=generator)
    is_first = _outside_a_box(lam, view0.shape[-2:], generator)
    image = torch.arange(len(view0), device=device)
    return Mixture(torch.where(is_first, view0, view1), image, image, _area(is_first, lam))


def _outside_a_box(lam: Tensor, size: tuple[int, ...], generator: torch.Generator | None) -> Tensor:
    """Draws a box for each weight; True outside it, shape (len(lam), 1, H, W)."""
    side = (1 - lam).sqrt()
    inside = []
    for length in size:
        centre = torch.randint(length, lam.shape, device=lam.device, generator=generator)
        # As in the authors' code, both halves are rounded down.
        half = (length * side / 2).floor()
        # The pixels' grid cuts off what lies outside the image.
        offset = torch.arange(length, device=lam.device) - centre[:, None]  # b h or b w
        inside.append((offset >= -half[:, None]) & (offset < half[:, None]))
    rows, columns = inside
    return ~(rows[:, None, :, None] & columns[:, None, None, :])  # b 1 h w


def _in_blocks(
    lam: Tensor, size: tuple[int, ...], grid: int, generator: torch.Generator | None
) -> Tensor:
    """Draws a mask of blocks for each weight; True in its blocks, shape (len(lam), 1, H, W)."""
    device = lam.device
    count = (lam * grid**2).round()[:, None]  # b 1
    uniform = torch.rand((4, len(lam), _BLOCKS), device=device, generator=generator)
    area = _MIN_CELLS + (count - _MIN_CELLS).clamp(min=0) * uniform[0]  # b k
    aspect = _MIN_ASPECT ** (2 * uniform[1] - 1)
    cell = torch.arange(grid, device=device)
    inside = []
    for side, place in [((area * aspect).sqrt(), uniform[2]), ((area / aspect).sqrt(), uniform[3])]:
        length = side.round().clamp(1, max(grid - 1, 1))
        start = ((grid - length + 1) * place).floor()
        end = start + length
        inside.append((cell >= start[..., None]) & (cell < end[..., None]))  # b k r or b k c
    rows, columns = inside
    is_covered = rows[..., :, None] & columns[..., None, :]  # b k r c

    # The cells in the order in which they are filled: by the first block that covers each, and
    # within a block along a line of random direction, which cuts the last one.
    block = (is_covered.cumsum(1) == 0).sum(1)  # b r c
    angle = 2 * math.pi * torch.rand((len(lam), 1, 1), device=device, generator=generator)
    along = angle.cos() * cell[:, None] + angle.sin() * cell  # b r c, within 1.5 * grid of 0
    rank = (4 * grid * block + along).flatten(1).argsort().argsort()
    is_first = (rank < count).view(-1, grid, grid)

    row, column = (torch.arange(x, device=device) * grid // x for x in size)  # cells of pixels
    return is_first[:, row][:, :, column][:, None]  # b 1 h w


def _area(is_first: Tensor, lam: Tensor) -> Tensor:
    """Returns the part of each image that is True, in float32 or in the weights' float64."""
    dtype = torch.promote_types(lam.dtype, torch.float32)
    return is_first.flatten(1).to(dtype).mean(1)


def _one_each(lam: Tensor, first: Tensor) -> Tensor:
    """Returns one weight for each pair, also where all pairs share one."""
    return lam.expand(len(first)).contiguous()


def _check_pairs(images: Tensor, first: Tensor, second: Tensor, lam: Tensor) -> None:
    check_images(images)
    if first.dim() != 1 or first.shape != second.shape:
        raise ValueError(
            "first and second must have one shape (M,), got "
            f"{tuple(first.shape)} and {tuple(second.shape)}."
        )
    if lam.shape not in {first.shape, (1,)} or not lam.is_floating_point():
        raise ValueError(
            f"lam must be a floating point tensor of shape {tuple(first.shape)}, or (1,) for all "
            f"pairs, got {lam.dtype} of shape {tuple(lam.shape)}."
        )
