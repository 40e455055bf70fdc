"""Which classes the nearest neighbours take for which."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from mixco_lightly.reports.pictures import to_uri

# A table of more classes is not readable; it becomes a picture.
MAX_TABLE_CLASSES = 20
_MAX_MISTAKES = 10
_COLOUR = (42, 127, 212)


class ClassAccuracy(NamedTuple):
    """Accuracy on the test images of a class.

    Attributes:
        name: The class.
        images: Number of its test images.
        top1: The accuracy in percent; None without test images.
    """

    name: str
    images: int
    top1: float | None


class Mistake(NamedTuple):
    """A pair of classes.

    Attributes:
        true: The class of the images.
        predicted: What they are taken for.
        images: How many are.
    """

    true: str
    predicted: str
    images: int


class Confusion(NamedTuple):
    """Predictions by class.

    Attributes:
        top1: Accuracy in percent, on all images.
        images: Number of images.
        counts: Number of images by true class (rows) and predicted class, for a table; empty if
            there are too many classes.
        picture: The same as an image, each row divided by its sum; empty where there is a table.
        classes: The accuracy on each class.
        mistakes: The most frequent mistakes.
    """

    top1: float
    images: int
    counts: list[list[int]]
    picture: str
    classes: list[ClassAccuracy]
    mistakes: list[Mistake]


def count_confusions(targets: Tensor, predicted: Tensor, classes: Sequence[str]) -> Confusion:
    """Counts how often each class is taken for each.

    Args:
        targets: True classes, shape (N,).
        predicted: Predicted classes, shape (N,).
        classes: Names of the classes.

    Examples:
        >>> import torch
        >>> from mixco_lightly.reports.confusion import count_confusions
        >>> targets, predicted = torch.tensor([0, 0, 1]), torch.tensor([0, 1, 1])
        >>> count_confusions(targets, predicted, ["cat", "dog"]).counts
        [[1, 1], [0, 1]]
    """
    size = len(classes)
    counts = torch.bincount(targets * size + predicted, minlength=size * size).view(size, size)
    sums, right = counts.sum(dim=1), counts.diagonal()
    accuracies = [
        ClassAccuracy(name, n, 100 * hits / n if n else None)
        for name, n, hits in zip(classes, sums.tolist(), right.tolist(), strict=True)
    ]
    wrong = counts - torch.diag(right)
    # Stable, so that equally frequent ones are in the order of the classes.
    order = wrong.flatten().argsort(descending=True, stable=True)[:_MAX_MISTAKES].tolist()
    mistakes = [
        Mistake(classes[at // size], classes[at % size], int(wrong[at // size, at % size]))
        for at in order
        if wrong[at // size, at % size]
    ]
    is_table = size <= MAX_TABLE_CLASSES
    return Confusion(
        100 * right.sum().item() / len(targets),
        len(targets),
        counts.tolist() if is_table else [],
        "" if is_table else _draw(counts / sums.clamp(min=1).unsqueeze(1)),
        accuracies,
        mistakes,
    )


def _draw(shares: Tensor) -> str:
    """Draws shares (C, C) in [0, 1] as the opacity of one colour, so that the page shows through.

    The square root makes rare mistakes visible.
    """
    colour = torch.tensor(_COLOUR, dtype=torch.uint8).view(3, 1, 1).expand(3, *shares.shape)
    alpha = (255 * shares.sqrt()).round().to(torch.uint8).unsqueeze(0)
    return to_uri(torch.cat([colour, alpha]), "PNG")
