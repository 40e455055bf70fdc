"""A fixed part of a training set, for training on fewer images or with fewer labels."""

from __future__ import annotations

import torch
from torch import Tensor


def choose_part(targets: Tensor, fraction: float, seed: int = 0) -> Tensor:
    """Chooses a part of each class of a training set.

    The seed puts the images of each class into an order, of which the first are taken. The choice
    depends on nothing else, and a larger fraction contains a smaller one.

    Args:
        targets: Class indices of shape (N,).
        fraction: Part of the images of each class, in (0, 1]. It is rounded to whole images, of
            which every class that has any gets at least one.
        seed: Seed of the choice.

    Returns:
        Indices of the chosen images, rising; for a fraction of 1 all.

    Raises:
        ValueError: If the fraction is not in (0, 1], or so small that there are fewer images than
            classes.

    Examples:
        >>> import torch
        >>> from mixco_lightly.data.subset import choose_part
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
            f"A fraction of {fraction:g} of {len(targets):,} images is less than one for each of "
            f"the {num_classes} classes."
        )
    order = torch.randperm(len(targets), generator=torch.Generator().manual_seed(seed))
    order = order[targets[order].argsort(stable=True)]  # by class, at random within it
    classes = targets[order]
    rank = torch.arange(len(targets)) - (counts.cumsum(dim=0) - counts)[classes]  # in its class
    kept = (fraction * counts.double()).round().clamp(min=1)
    return order[rank < kept[classes]].sort().values
