"""Adds mixtures to a batch of views, and finds views and mixtures in a batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import default_collate

from mixco_lightly.data.mixture import Mixture, check_alpha, mix_pairs


class MixCollate:
    """Collates samples of several views and appends mixtures of chosen views.

    Keeps what the inner collate function returns: ``batch[0]`` is the list of views, ``batch[1]``
    the targets and, with a LightlyDataset, ``batch[2]`` the file names. Appends a list of
    :class:`Mixture`, one for each view in ``views``.

    The mixer draws from torch's global generator. In worker processes, the DataLoader seeds that
    generator for every worker and epoch from its own ``generator``. So each worker and epoch draws
    other weights, and the same loader seed draws the same weights again. With ``num_workers=0`` it
    is the main process's generator, which ``torch.manual_seed`` seeds.

    Args:
        mixer: Called with a view's images (N, C, H, W), returns their :class:`Mixture`; usually a
            :class:`Mixer`.
        views: Indices of the views to mix. MoCo mixes the query view only, ``(0,)``; SimCLR
            mixes both, ``(0, 1)``.
        collate_fn: Collates the samples first. torch's default accepts torchvision's
            (views, target) and Lightly's (views, target, filename).

    Raises:
        TypeError: If ``mixer`` is not callable, or ``views`` is not a sequence of integers.
        ValueError: If ``views`` is empty, negative, names a view twice, or names a view that the
            samples do not have; if the samples or the collated batch do not start with a list of
            views; if the images of a view differ in size; or if a batch has fewer than two samples.

    Examples:
        >>> import torch
        >>> from mixco_lightly import MixCollate, Mixer
        >>> samples = [([torch.rand(3, 8, 8), torch.rand(3, 8, 8)], 0) for _ in range(4)]
        >>> views, targets, (mixture,) = MixCollate(Mixer.unmix())(samples)
        >>> views[0].shape, mixture.images.shape
        (torch.Size([4, 3, 8, 8]), torch.Size([4, 3, 8, 8]))
    """

    def __init__(
        self,
        mixer: Callable[[Tensor], Mixture],
        views: Sequence[int] = (0,),
        collate_fn: Callable[[list[Any]], Any] = default_collate,
    ) -> None:
        if not callable(mixer):
            raise TypeError(f"mixer must be callable, such as Mixer.unmix(), got {mixer!r}.")
        self.mixer = mixer
        self.views = _checked_views(views)
        self.collate_fn = collate_fn

    def __call__(self, batch: list[Any]) -> list[Any]:
        """Collates a batch of samples and appends its mixtures."""
        try:
            collated = self.collate_fn(batch)
        except RuntimeError as error:
            if message := _find_sizes(batch):
                raise ValueError(message) from error
            raise
        if not isinstance(collated, Sequence) or not collated:
            raise ValueError(
                f"The collated batch must start with the list of views, got {_kind(collated)}. "
                "Use samples (views, target), or a collate_fn that makes such a batch of them."
            )
        views = collated[0]
        if not isinstance(views, (list, tuple)):
            raise ValueError(
                "Each sample must start with a list of views, as Lightly's transforms return "
                f"it; the collated first element is {_kind(views)}."
            )
        for view in self.views:
            if view >= len(views):
                raise ValueError(
                    f"views names view {view}, but each sample has {len(views)} views."
                )
        return [*collated, [self.mixer(views[view]) for view in self.views]]


class MixCoCollate(MixCollate):
    """Collates samples of several views and appends MixCo's mixtures of chosen views.

    It is :class:`MixCollate` with :func:`mix_pairs`, which mixes the halves of the batch.

    Args:
        views: Indices of the views to mix. MoCo mixes the query view only, ``(0,)``; SimCLR
            mixes both, ``(0, 1)``.
        alpha: The weights follow Beta(alpha, alpha); 1 is the paper's uniform distribution.
        collate_fn: Collates the samples first. torch's default accepts torchvision's
            (views, target) and Lightly's (views, target, filename).

    Raises:
        TypeError: As :class:`MixCollate`.
        ValueError: As :class:`MixCollate`, or if ``alpha`` is not positive and finite.

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
        super().__init__(partial(mix_pairs, alpha=alpha), views, collate_fn)
        check_alpha(alpha)


def _checked_views(views: Sequence[int]) -> tuple[int, ...]:
    if not isinstance(views, Sequence):
        raise TypeError(
            f"views must be a sequence of view indices such as (0,), got {views!r}. "
            "To set the distribution of the weights, pass alpha=."
        )
    if not views:
        raise ValueError("views must name at least one view to mix, such as (0,).")
    if not all(isinstance(view, int) and not isinstance(view, bool) for view in views):
        raise TypeError(f"views must be view indices such as (0,), got {views!r}.")
    if min(views) < 0:
        raise ValueError(f"views must not be negative, got {min(views)}: they count from 0.")
    if len(set(views)) < len(views):
        raise ValueError(f"views must name each view once, got {tuple(views)}.")
    return tuple(views)


def _kind(value: Any) -> str:
    """Describes a value, for an error."""
    if isinstance(value, Mapping):
        return f"a dict with the keys {list(value)}"
    is_empty = isinstance(value, Sequence) and not value
    return f"an empty {type(value).__name__}" if is_empty else f"a {type(value).__name__}"


def _find_sizes(batch: list[Any]) -> str:
    """Describes which view has images of several sizes; empty if none has."""
    views = [sample[0] for sample in batch if isinstance(sample, Sequence) and sample]
    if not all(isinstance(images, Sequence) for images in views):
        return ""
    for view, images in enumerate(zip(*views, strict=False)):
        shapes = sorted({tuple(image.shape) for image in images if isinstance(image, Tensor)})
        if len(shapes) > 1:
            return (
                f"View {view} has images of the shapes {shapes[0]} and {shapes[1]} in one batch: "
                "crop or resize each view to one size in the transform."
            )
    return ""


def find_views(batch: Any, count: int | None = None) -> list[Tensor] | tuple[Tensor, ...]:
    """Returns the views of a batch.

    Args:
        batch: A batch that starts with a list of views (N, C, H, W).
        count: Number of views that the caller needs. None: any number, all of one size.

    Raises:
        ValueError: If the batch does not start with a list of views, if their number is not
            ``count``, or, without a count, if they have several sizes.
    """
    views = batch[0] if isinstance(batch, Sequence) and batch else None
    if not isinstance(views, (list, tuple)):
        raise ValueError(
            "The batch must start with a list of views, as Lightly's transforms return it, got "
            f"{_kind(batch if views is None else views)}."
        )
    if count is not None and len(views) != count:
        raise ValueError(
            f"The batch has {len(views)} views of each image, but {count} are needed: use a "
            f"transform that returns {count}."
        )
    shapes = [tuple(view.shape[1:]) for view in views]
    if count is None and len(set(shapes)) > 1:
        raise ValueError(
            "All views go through the network in one batch and must have one size, got "
            f"{', '.join(map(str, shapes))}."
        )
    return views


def find_mixtures(
    batch: Sequence[Any], count: int, check_views: bool = False, may_be_plain: bool = False
) -> list[Mixture]:
    """Returns the mixtures of the first ``count`` views of a batch.

    Args:
        batch: A batch of :class:`MixCollate`.
        count: Number of mixed views that the caller needs.
        check_views: Whether to check that the mixtures come from these views in their order. The
            check compares the first mixed image with the views. It makes the CPU wait for a GPU, so
            the modules check only in the first step of each epoch.
        may_be_plain: Whether an empty list of mixtures is a batch that is not mixed.

    Returns:
        ``count`` mixtures, or none if the batch is not mixed.

    Raises:
        ValueError: If the batch does not end with that many mixtures, if one of them is empty, or,
            with ``check_views``, if one comes from another view or another batch.
    """
    mixtures = batch[-1]
    if not isinstance(mixtures, list) or not all(isinstance(m, Mixture) for m in mixtures):
        raise ValueError(
            "The batch has no mixtures. Give the DataLoader collate_fn=MixCoCollate() or "
            "MixCollate(mixer). A loss with mix_weight=0 needs none."
        )
    if may_be_plain and not mixtures:
        return []
    if len(mixtures) < count:
        raise ValueError(
            f"The batch has mixtures of {len(mixtures)} view(s), but {count} are needed: set views "
            f"of MixCoCollate or MixCollate to {tuple(range(count))}."
        )
    mixtures = mixtures[:count]
    for view, mixture in enumerate(mixtures):
        if not len(mixture.images):
            raise ValueError(
                f"The Mixture of view {view} is empty. Mix at least 2 images. A loss with "
                "mix_weight=0 needs no mixtures."
            )
        if check_views:
            _check_view(mixture, view, batch[0], count)
    return mixtures


@torch.no_grad()
def _check_view(mixture: Mixture, expected: int, views: Sequence[Tensor], count: int) -> None:
    """Raises a ValueError if a mixture comes from another batch or view than expected.

    A mixed image that fits no view passes, because it may be cut or masked.
    """
    pairs = torch.stack([mixture.first, mixture.second]).tolist()
    used = [index for indices in pairs for index in indices]
    n = len(views[expected])
    if min(used) < 0 or max(used) >= n:
        wrong = min(used) if min(used) < 0 else max(used)
        raise ValueError(
            f"The Mixture of view {expected} names image {wrong} of a batch of {n}: it belongs to "
            "another batch."
        )
    # On the CPU, because Apple's MPS has no float64.
    image, lam = mixture.images[0].cpu().double(), mixture.lam[0].cpu().double()
    epsilon = torch.finfo(mixture.images.dtype).eps  # the images were mixed in this precision

    def is_of(view: Tensor) -> bool:
        if view.shape[1:] != image.shape:
            return False
        first, second = (view[indices[0]].cpu().double() for indices in pairs)
        mixed = torch.lerp(second, first, lam)
        scale = torch.maximum(first.abs().amax(), second.abs().amax())
        return bool((image - mixed).abs().amax() <= 4 * epsilon * scale)

    if is_of(views[expected]):
        return
    for other, view in enumerate(views):
        if is_of(view):
            raise ValueError(
                f"Mixtures of view {expected} are needed, but the batch has mixtures of view "
                f"{other}: set views of MixCoCollate or MixCollate to {tuple(range(count))}."
            )
