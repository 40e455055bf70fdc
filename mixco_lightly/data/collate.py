"""A collate function that adds mixtures to a batch of views."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch.utils.data import default_collate

from mixco_lightly.data.mixture import Mixture, mix_pairs


class MixCoCollate:
    """Collates samples of several views and appends the mixtures of chosen views.

    What the inner collate function returns stays as it is: ``batch[0]`` is the list of
    views, ``batch[1]`` the targets and, with a LightlyDataset, ``batch[2]`` the file names.
    The last element of the batch becomes a list of :class:`Mixture`, one for each view
    named in ``views``.

    The weights are drawn from torch's global generator. In worker processes the DataLoader seeds
    it for every worker and epoch from its own ``generator``: each worker and epoch draws weights
    of its own, and the same loader seed draws the same ones again. With ``num_workers=0`` it is
    the main process's generator, which ``torch.manual_seed`` seeds.

    Args:
        views: Indices of the views to mix. MoCo mixes the query view only, ``(0,)``; SimCLR
            mixes both, ``(0, 1)``.
        alpha: The weights follow Beta(alpha, alpha); 1 is the uniform law of the paper.
        collate_fn: Collates the samples first. torch's default takes torchvision's
            (views, target) and Lightly's (views, target, filename).

    Raises:
        ValueError: If ``views`` is empty or names a view that the samples do not have, if a
            sample is not a list of views, or if a batch has fewer than two samples.

    Examples:
        >>> import torch
        >>> from mixco_lightly import MixCoCollate
        >>> samples = [([torch.rand(3, 8, 8), torch.rand(3, 8, 8)], 0) for _ in range(4)]
        >>> views, targets, (mixture,) = MixCoCollate()(samples)
        >>> views[0].shape, mixture.images.shape
        (torch.Size([4, 3, 8, 8]), torch.Size([2, 3, 8, 8]))
    """

    def __init__(
        self,
        views: Sequence[int] = (0,),
        alpha: float = 1.0,
        collate_fn: Callable[[list[Any]], Any] = default_collate,
    ) -> None:
        if not views:
            raise ValueError("views must name at least one view to mix.")
        if not 0 < alpha < float("inf"):
            raise ValueError(f"alpha must be positive and finite, got {alpha}.")
        self.views = tuple(views)
        self.alpha = alpha
        self.collate_fn = collate_fn

    def __call__(self, batch: list[Any]) -> list[Any]:
        """Collates a batch of samples and appends its mixtures."""
        collated = self.collate_fn(batch)
        views = collated[0]
        if not isinstance(views, (list, tuple)):
            raise ValueError(
                "Each sample must start with a list of views, as Lightly's transforms return "
                f"it; the collated first element is a {type(views).__name__}."
            )
        for view in self.views:
            if not 0 <= view < len(views):
                raise ValueError(
                    f"views names view {view}, but each sample has {len(views)} views."
                )
        return [*collated, [mix_pairs(views[view], alpha=self.alpha) for view in self.views]]


def find_mixtures(batch: Sequence[Any], count: int) -> list[Mixture]:
    """Takes the mixtures out of a batch.

    Args:
        batch: A batch of :class:`MixCoCollate`.
        count: How many mixed views are needed.

    Returns:
        The first ``count`` mixtures.

    Raises:
        ValueError: If the batch does not end with that many mixtures.
    """
    mixtures = batch[-1]
    if not isinstance(mixtures, list) or not all(isinstance(m, Mixture) for m in mixtures):
        raise ValueError(
            "The batch has no mixtures. Give the DataLoader collate_fn=MixCoCollate(), or set "
            "mix_weight=0 to train without them."
        )
    if len(mixtures) < count:
        raise ValueError(
            f"The batch has mixtures of {len(mixtures)} view(s), {count} are needed: set views "
            f"of MixCoCollate to {tuple(range(count))}."
        )
    return mixtures[:count]
