"""Few-shot classification by class means."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import normalize

from mixco_lightly.evaluation.features import Features, check_features


def few_shot_accuracies(
    train: Features, test: Features, shots: int, episodes: int, seed: int = 0
) -> Tensor:
    """Classifies test features by the nearest mean of a few training features of each class.

    In each episode it draws ``shots`` training features of every class without replacement, and
    classifies all test features by the nearest class mean [0]. Features are normalised before the
    mean is taken [1].

    - [0]: Prototypical Networks, 2017, https://arxiv.org/abs/1703.05175
    - [1]: SimpleShot, 2019, https://arxiv.org/abs/1911.04623

    Args:
        train: Features to draw from, of shapes (N, D) and (N,).
        test: Features to classify, of shapes (M, D) and (M,).
        shots: Number of training features of each class.
        episodes: Number of draws.
        seed: Seed of the draws.

    Returns:
        The accuracy of each episode in percent, shape (episodes,).

    Raises:
        ValueError: If a class has fewer training features than ``shots``, a number is not positive,
            or the features do not match.

    Examples:
        >>> import torch
        >>> from mixco_lightly import Features
        >>> from mixco_lightly.evaluation.few_shot import few_shot_accuracies
        >>> train = Features(torch.eye(4).repeat(8, 1), torch.arange(4).repeat(8))
        >>> few_shot_accuracies(train, train, shots=2, episodes=3)
        tensor([100., 100., 100.], dtype=torch.float64)
    """
    check_features(train, test)
    if min(shots, episodes) < 1:
        raise ValueError(f"shots and episodes must be positive, got {shots} and {episodes}.")
    classes, counts = train.targets.unique(return_counts=True)
    if counts.min() < shots:
        raise ValueError(
            f"{shots} shots need {shots} training images of each class, but a class has "
            f"{counts.min()}: give fewer --few_shots, or more labels."
        )
    train_x, test_x = (normalize(part.features, dim=1) for part in (train, test))
    members = [(train.targets == label).nonzero().flatten() for label in classes]
    generator = torch.Generator().manual_seed(seed)
    accuracies = []
    for _ in range(episodes):
        drawn = [rows[torch.randperm(len(rows), generator=generator)[:shots]] for rows in members]
        means = train_x[torch.stack(drawn)].mean(dim=1)  # c x d
        # The nearest mean: |x - mean|^2 without |x|^2, which is the same for all classes.
        distances = means.square().sum(dim=1) - 2 * test_x @ means.T  # m x c
        correct = classes[distances.argmin(dim=1)] == test.targets
        accuracies.append(100 * correct.double().mean())
    return torch.stack(accuracies)


def summarise_episodes(accuracies: Sequence[float] | Tensor) -> tuple[float, float]:
    """Returns the mean of several episodes, and half of its 95% interval (1.96 standard errors)."""
    values = torch.as_tensor(accuracies)
    return values.mean().item(), 1.96 * values.std().item() / math.sqrt(len(values))
