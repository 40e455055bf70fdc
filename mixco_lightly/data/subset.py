"""Chooses a fixed part of a training set, to train on fewer images or labels."""

from __future__ import annotations

import torch
from torch import Tensor


def choose_part(targets: Tensor, fraction: float, seed: int = 0) -> Tensor:
    """Chooses a part of each class of a training set.

    The seed alone decides the order of the images in each class, and the first ones are chosen. So
    a larger fraction contains a smaller one.

    Args:
        targets: Class indices of shape (N,).
        fraction: Part of the images of each class, in (0, 1]. The number is rounded, and each class
            that has images keeps at least one.
        seed: Seed of the choice.

    Returns:
        Indices of the chosen images, in rising order.

    Raises:
        ValueError: If the fraction is not in (0, 1], or too small for one image of each class.

    Examples:
        >>> import torch
        >>> from mixco_lightly.data import choose_part
        >>> targets = torch.tensor([0] * 20 + [1] * 10)
        >>> targets[choose_part(targets, 0.1)]
        tensor([0, 0, 1])
    """
    if not 0 < fraction <= 1:
        raise ValueError(f"A fraction must be in (0, 1], got {fraction}.")
    counts = targets.bincount()
    num_classes = int((counts > 0).sum())
    if round(fraction * len(targets)) < num_classes:
        raise ValueError(
            f"A fraction of {fraction:g} of {len(targets):,} images is less than one image for "
            f"each of the {num_classes} classes. Choose a larger fraction."
        )
    order = torch.randperm(len(targets), generator=torch.Generator().manual_seed(seed))
    order = order[targets[order].argsort(stable=True)]  # by class, at random within it
    classes = targets[order]
    rank = torch.arange(len(targets)) - (counts.cumsum(dim=0) - counts)[classes]  # in its class
    kept = (fraction * counts.double()).round().clamp(min=1)
    return order[rank < kept[classes]].sort().values
