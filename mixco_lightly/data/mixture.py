"""Mixes pairs of images, with the weights and indices that the loss needs."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

# Copies to these devices must finish before they return. Lightning has the same two.
_BLOCKING_DEVICES = ("cpu", "mps")


class Mixture(NamedTuple):
    """Images that are each mixed from two images of one batch.

    ``images[m] = lam[m] * x[first[m]] + (1 - lam[m]) * x[second[m]]`` for the batch ``x``
    that the mixture was made from. If images are cut or masked, ``lam[m]`` is the part of the area
    that shows ``x[first[m]]``.

    Attributes:
        images: Mixed images, shape (M, C, H, W), dtype of the batch.
        first: Index in the batch of each pair's first image, int64 of shape (M,).
        second: Index in the batch of each pair's second image, int64 of shape (M,).
        lam: Weight of the first image in [0, 1], float of shape (M,).
    """

    images: Tensor
    first: Tensor
    second: Tensor
    lam: Tensor

    def to(self, device: torch.device | str, non_blocking: bool | None = None) -> Mixture:
        """Copies all four tensors to a device; Lightning calls this for each batch.

        Args:
            device: The device.
            non_blocking: Whether to return before the copies finish. Default: True for a GPU, whose
                later work waits for them; False for the CPU and MPS, where values could be read too
                early.

        Returns:
            The mixture on the device.
        """
        if non_blocking is None:  # Lightning passes a value only for tensors
            non_blocking = torch.device(device).type not in _BLOCKING_DEVICES
        return Mixture(*(tensor.to(device, non_blocking=non_blocking) for tensor in self))


def check_alpha(alpha: float) -> None:
    """Raises a ValueError if alpha is not a parameter of a Beta distribution."""
    is_number = isinstance(alpha, (int, float)) and not isinstance(alpha, bool)
    if not (is_number and 0 < alpha < math.inf):
        raise ValueError(f"alpha must be positive and finite, got {alpha!r}.")


def check_images(images: Tensor) -> None:
    """Raises an error if the images are not a batch that can be mixed."""
    if not isinstance(images, Tensor):
        raise TypeError(f"images must be a tensor (N, C, H, W), got a {type(images).__name__}.")
    if images.dim() != 4 or not images.is_floating_point():
        raise ValueError(
            "images must be a floating point tensor of shape (N, C, H, W), "
            f"got {images.dtype} of shape {tuple(images.shape)}."
        )
    if len(images) < 2:
        raise ValueError(
            f"Mixing needs a batch of at least 2 images, got {len(images)}. If it is the last "
            "batch of an epoch, give the DataLoader drop_last=True."
        )


def weight_dtype(images: Tensor) -> torch.dtype:
    """Returns the dtype of the weights: float32, or float64 for float64 images."""
    return torch.float64 if images.dtype == torch.float64 else torch.float32


def beta_weights(
    count: int,
    alpha: float = 1.0,
    folded: bool = False,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Draws weights from Beta(alpha, alpha).

    Args:
        count: Number of weights.
        alpha: The default 1 gives uniform weights; smaller values draw weights nearer to 0 and 1,
            larger values nearer to 1/2. ``math.inf`` gives 1/2 itself, without drawing.
        folded: Whether to replace lam by max(lam, 1 - lam), so that the first image of each pair
            has the larger weight, as in i-Mix.
        dtype: float32 or float64.
        device: Device of the weights. Default: the CPU.
        generator: Random generator on that device. Default: torch's global one.

    Returns:
        Weights in [0, 1], shape (count,).

    Raises:
        ValueError: If ``alpha`` is not positive.

    Examples:
        >>> import torch
        >>> from mixco_lightly.data import beta_weights
        >>> lam = beta_weights(4, folded=True, generator=torch.Generator().manual_seed(0))
        >>> lam.shape, bool((lam >= 0.5).all())
        (torch.Size([4]), True)
    """
    if alpha == math.inf:
        return torch.full((count,), 0.5, dtype=dtype, device=device)
    check_alpha(alpha)
    if alpha == 1.0:
        lam = torch.rand(count, dtype=dtype, device=device, generator=generator)
    else:
        # Beta(alpha, alpha) is the first coordinate of a two-dimensional Dirichlet distribution.
        # torch.distributions.Beta samples with the same operator, but accepts no generator.
        concentration = torch.full((count, 2), alpha, dtype=dtype, device=device)
        lam = torch._sample_dirichlet(concentration, generator=generator)[:, 0]
    return torch.maximum(lam, 1 - lam) if folded else lam


@torch.no_grad()
def mix_pairs(
    images: Tensor, alpha: float = 1.0, generator: torch.Generator | None = None
) -> Mixture:
    """Mixes the first half of a batch with its second half.

    Image m is mixed with image m + N // 2, with its own weight, as in Eq. 2 of MixCo [0] and in the
    authors' code, which draws ``lam ~ U(0, 1)`` for each pair.

    - [0]: MixCo: Mix-up Contrastive Learning for Visual Representation, 2020,
      https://arxiv.org/abs/2010.06300

    Args:
        images: Batch of images, shape (N, C, H, W), floating point, on any device.
        alpha: The weights follow Beta(alpha, alpha). The default 1 is the paper's uniform
            distribution; smaller values draw weights nearer to 0 and 1.
        generator: Random generator on the images' device. Default: torch's global one.

    Returns:
        M = N // 2 mixtures. For an odd N the last image is not mixed.

    Raises:
        TypeError: If ``images`` is not a tensor.
        ValueError: If there are fewer than two images, if they are not a floating point
            tensor of four dimensions, or if ``alpha`` is not positive and finite.

    Examples:
        >>> import torch
        >>> from mixco_lightly import mix_pairs
        >>> mixture = mix_pairs(torch.rand(6, 3, 32, 32))
        >>> mixture.images.shape, mixture.first.tolist(), mixture.second.tolist()
        (torch.Size([3, 3, 32, 32]), [0, 1, 2], [3, 4, 5])
    """
    check_images(images)
    check_alpha(alpha)

    num_pairs = len(images) // 2
    first = torch.arange(num_pairs, device=images.device)
    second = first + num_pairs
    dtype = weight_dtype(images)
    lam = beta_weights(num_pairs, alpha, dtype=dtype, device=images.device, generator=generator)
    weight = lam.to(images.dtype).view(-1, 1, 1, 1)
    mixed = torch.lerp(images[num_pairs : 2 * num_pairs], images[:num_pairs], weight)
    return Mixture(images=mixed, first=first, second=second, lam=lam)
