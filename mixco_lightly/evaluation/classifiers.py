"""Accuracies of classifiers that a run trained itself."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from mixco_lightly.evaluation.exits import average_scores
from mixco_lightly.evaluation.features import Features
from mixco_lightly.evaluation.probe_result import ProbeResult, rank_scores


@torch.no_grad()
def measure_classifiers(classifiers: Iterable[nn.Module], test: Features) -> list[ProbeResult]:
    """Measures the classifiers of all exits, and the ensemble that averages their logits.

    Args:
        classifiers: A classifier for each exit; they are moved to the CPU.
        test: Features of E exits (N, E, D), or of one backbone (N, D).

    Returns:
        The results of the exits in their order, then the ensemble's if there are several exits.

    Examples:
        >>> import torch
        >>> from mixco_lightly.evaluation import Features, measure_classifiers
        >>> test = Features(torch.eye(4), torch.arange(4))
        >>> [result.top1 for result in measure_classifiers([torch.nn.Identity()], test)]
        [100.0]
    """
    exits = test.features.unbind(1) if test.features.dim() == 3 else [test.features]
    logits = [classifier.cpu()(x) for classifier, x in zip(classifiers, exits, strict=True)]
    results = [rank_scores(x, test.targets) for x in logits]
    if len(logits) == 1:
        return results
    return [*results, rank_scores(average_scores(logits), test.targets)]
