"""Weighted k-nearest-neighbour classification of features."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

from mixco_lightly.evaluation.features import Features, check_features
from mixco_lightly.evaluation.probe_result import ProbeResult, count_correct

# Number of test images that are compared with all training images at a time.
_CHUNK = 512
# exp(1 / 0.0125) = 5.5e34 can still be summed over neighbours in float32, whose maximum is 3.4e38.
_MIN_TEMPERATURE = 0.0125


def knn_probe(
    train: Features, test: Features, k: int = 200, temperature: float = 0.1
) -> ProbeResult:
    """Classifies test features by their nearest training features.

    It calls Lightly's ``knn_predict``, the weighted vote of InstDisc [0]: each of the k nearest
    neighbours by cosine similarity votes with weight ``exp(similarity / temperature)``.

    - [0]: InstDisc, 2018, https://arxiv.org/abs/1805.01978

    Args:
        train: Features that vote, of shapes (N, D) and (N,).
        test: Features to classify, of shapes (M, D) and (M,).
        k: Number of neighbours; the default 200 is InstDisc's. If the training set is smaller, all
            of it votes, and the result's ``note`` says so.
        temperature: Sharpness of the vote, at least 0.0125. The default 0.1 is Lightly's.

    Returns:
        Accuracies in percent.

    Raises:
        ValueError: If ``k`` is not positive, ``temperature`` is too small, or the features do not
            match.

    Examples:
        >>> import torch
        >>> from mixco_lightly import Features, knn_probe
        >>> train = Features(torch.eye(4), torch.tensor([0, 1, 2, 3]))
        >>> knn_probe(train, train, k=1).top1
        100.0
    """
    num_classes = check_features(train, test)
    if k < 1:
        raise ValueError(f"k must be positive, got {k}.")
    if not temperature >= _MIN_TEMPERATURE:
        raise ValueError(
            f"temperature must be at least {_MIN_TEMPERATURE}, got {temperature}: the vote "
            "exp(1 / temperature) overflows below."
        )
    note = ""
    if k > len(train.features):
        k = len(train.features)
        note = f"k is {k}, the number of training images"
    ranked = rank_classes(train, test.features, num_classes, k, temperature)
    return count_correct(ranked, test.targets, num_classes, note)


def rank_classes(
    train: Features, features: Tensor, num_classes: int, k: int, temperature: float = 0.1
) -> Tensor:
    """Ranks the classes of features by the vote of :func:`knn_probe`.

    Args:
        train: Features that vote.
        features: Features to classify, shape (M, D).
        num_classes: Number of classes.
        k: Number of neighbours, at most the number of training features.
        temperature: Sharpness of the vote.

    Returns:
        Classes by falling vote, the first five at most, shape (M, min(5, num_classes)).
    """
    from lightly.utils.benchmarking import knn_predict

    bank = normalize(train.features, dim=1).T.contiguous()  # c x n
    ranked: list[Tensor] = [
        knn_predict(
            feature=normalize(chunk, dim=1),
            feature_bank=bank,
            feature_labels=train.targets,
            num_classes=num_classes,
            knn_k=k,
            knn_t=temperature,
        )[:, :5]
        for chunk in features.split(_CHUNK)
    ]
    return torch.cat(ranked)
