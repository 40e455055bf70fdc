"""Out-of-distribution detection by the distance to the nearest training features."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import normalize

# Number of images that are compared with all training images at a time.
_CHUNK = 512


class Detection(NamedTuple):
    """How well distances separate test images from outliers, in percent.

    Attributes:
        auroc: Area under the ROC curve: the chance that an outlier is farther away than a test
            image.
        fpr95: Share of the outliers that are accepted where 95% of the test images are.
    """

    auroc: float
    fpr95: float


def nearest_distances(train: Tensor, features: Tensor, k: int) -> Tensor:
    """Computes the distance of each feature to its k-th nearest training feature [0].

    Features are normalised.

    - [0]: Out-of-Distribution Detection with Deep Nearest Neighbors, 2022,
      https://arxiv.org/abs/2204.06507

    Args:
        train: Shape (N, D).
        features: Shape (M, D).
        k: Which neighbour, from 1; at most N.

    Returns:
        Euclidean distances of shape (M,).

    Raises:
        ValueError: If ``k`` is not in 1..N.

    Examples:
        >>> import torch
        >>> from mixco_lightly.evaluation.outliers import nearest_distances
        >>> nearest_distances(torch.eye(2), torch.tensor([[3.0, 0.0]]), k=1)
        tensor([0.])
    """
    if not 1 <= k <= len(train):
        raise ValueError(f"k must be in 1..{len(train)}, the number of training images, got {k}.")
    bank = normalize(train, dim=1).T.contiguous()  # d x n
    nearest = [
        (normalize(chunk, dim=1) @ bank).topk(k, dim=1).values[:, -1]
        for chunk in features.split(_CHUNK)
    ]
    return (2 - 2 * torch.cat(nearest)).clamp(min=0).sqrt()


def detect_outliers(test: Tensor, outliers: Tensor) -> Detection:
    """Computes how well a score separates test images from outliers.

    Args:
        test: Distances of test images, shape (M,).
        outliers: Distances of outliers, shape (L,).

    Returns:
        AUROC and FPR95.

    Examples:
        >>> import torch
        >>> from mixco_lightly.evaluation.outliers import detect_outliers
        >>> detect_outliers(torch.tensor([0.1, 0.2]), torch.tensor([0.3, 0.4]))
        Detection(auroc=100.0, fpr95=0.0)
    """
    from sklearn.metrics import roc_auc_score

    is_outlier = torch.cat([torch.zeros_like(test), torch.ones_like(outliers)])
    auroc = roc_auc_score(is_outlier.numpy(), torch.cat([test, outliers]).numpy())
    accepted = -(-95 * len(test) // 100)  # rounded up
    threshold = test.sort().values[accepted - 1]
    return Detection(100 * float(auroc), 100 * (outliers <= threshold).double().mean().item())
