"""Linear classifiers on the exits of one network, and their ensemble."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mixco_lightly.evaluation.features import Features
from mixco_lightly.evaluation.linear import linear_scores
from mixco_lightly.evaluation.probe_result import ProbeResult, rank_scores


def exit_probe(train: Features, test: Features, **options: Any) -> list[ProbeResult]:
    """Trains a linear classifier on each exit's features and tests each and their ensemble.

    The classifiers are those of :func:`mixco_lightly.linear_probe`. The ensemble averages their
    scores: logits with solver "torch", as in the code of SelfCon's authors [0], probabilities
    with "sklearn". The authors train on augmented images and report, for each exit and for the
    ensemble, the epoch that is best on the test images. Here features are extracted once, and the
    last epoch counts.

    - [0]: SelfCon, 2021, https://arxiv.org/abs/2106.15499; raymin0223/self-contrastive-learning at
      commit 5e7c2c5

    Args:
        train: Features of E exits to fit, of shapes (N, E, D) and (N,).
        test: Features to classify, of shapes (M, E, D) and (M,).
        **options: Options of ``linear_probe``, such as ``solver``, ``learning_rate`` and ``seed``.
            A choice between several values is made separately for each exit.

    Returns:
        E + 1 results in percent, the exits' in their order, then the ensemble's.

    Raises:
        ValueError: If the features have no exits, or as :func:`mixco_lightly.linear_probe`.

    Examples:
        >>> import torch
        >>> from mixco_lightly import Features
        >>> from mixco_lightly.evaluation.exits import exit_probe
        >>> features = torch.eye(4).repeat(8, 1).unsqueeze(1).expand(-1, 2, -1)
        >>> train = Features(features, torch.arange(4).repeat(8))
        >>> [result.top1 for result in exit_probe(train, train, epochs=5)]
        [100.0, 100.0, 100.0]
    """
    for part in (train, test):
        if part.features.dim() != 3 or not part.features.shape[1]:
            raise ValueError(
                "Features of several exits must have shape (N, E, D), got "
                f"{tuple(part.features.shape)}."
            )
    if train.features.shape[1] != test.features.shape[1]:
        raise ValueError(
            f"The training features have {train.features.shape[1]} exits, the test features "
            f"{test.features.shape[1]}."
        )
    logits, notes = zip(
        *(
            linear_scores(select_exit(train, index), select_exit(test, index), **options)
            for index in range(train.features.shape[1])
        ),
        strict=True,
    )
    targets = test.targets.cpu()
    results = [rank_scores(x, targets, note) for x, note in zip(logits, notes, strict=True)]
    return [*results, rank_scores(average_scores(logits), targets)]


def average_scores(scores: Sequence[Tensor]) -> Tensor:
    """Computes the scores of an ensemble, which averages its classifiers' scores (N, classes)."""
    return torch.stack(tuple(scores)).mean(dim=0)


def select_exit(features: Features, index: int) -> Features:
    """Selects the features of one exit.

    Args:
        features: Features of all exits, of shapes (N, E, D) and (N,).
        index: Index of the exit; -1 is the last.

    Returns:
        Features of shapes (N, D) and (N,).
    """
    return Features(features.features[:, index].contiguous(), features.targets)
