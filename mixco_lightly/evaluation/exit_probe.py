"""Linear classifiers on the exits of one network, and their ensemble."""

from __future__ import annotations

from typing import Any

import torch

from mixco_lightly.evaluation.features import Features
from mixco_lightly.evaluation.linear import ProbeResult, linear_scores, rank_scores


def exit_probe(train: Features, test: Features, **options: Any) -> list[ProbeResult]:
    """Trains a linear classifier on each exit's features and tests each and their ensemble.

    The classifiers are those of :func:`mixco_lightly.linear_probe`. The ensemble is the mean of
    their scores: with solver "torch" of their logits, as in SelfCon's authors' code [0], with
    "sklearn" of their probabilities. (The authors train on augmented images and report the best
    epoch on the test images for each exit and for the ensemble. Here features are extracted once,
    and the last epoch counts.)

    - [0]: SelfCon, 2021, https://arxiv.org/abs/2106.15499; raymin0223/self-contrastive-learning at
      commit 5e7c2c5

    Args:
        train: Features of E exits to fit, of shapes (N, E, D) and (N,).
        test: Features to classify, of shapes (M, E, D) and (M,).
        **options: Of ``linear_probe``, such as ``solver``, ``learning_rate`` and ``seed``. A choice
            between several values is made for each exit.

    Returns:
        E + 1 results, in percent: those of the exits in their order, and the ensemble's.

    Raises:
        ValueError: If the features do not have an exit, or as ``linear_probe`` does.

    Examples:
        >>> import torch
        >>> from mixco_lightly import Features
        >>> from mixco_lightly.evaluation.exit_probe import exit_probe
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
    return [*results, rank_scores(torch.stack(logits).mean(dim=0), targets)]


def select_exit(features: Features, index: int) -> Features:
    """Selects the features of one exit.

    Args:
        features: Of shapes (N, E, D) and (N,).
        index: The exit; -1 is the last.

    Returns:
        Of shapes (N, D) and (N,).
    """
    return Features(features.features[:, index].contiguous(), features.targets)
