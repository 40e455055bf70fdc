"""Lower bounds of mutual information, from the scores of a critic.

A critic scores a pair (x, y); a high score means that the two belong together. Each bound compares
the scores of the K positive pairs of a batch with those of the K (K - 1) negative pairs, whose x
and y come from different pairs. Shapes in the comments: k rows of x, l rows of y.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor


class ScoreSums(NamedTuple):
    """The scores of K x K pairs, reduced to what the bounds need.

    Attributes:
        positive: Score of each x with its own y, shape (K,).
        negative_lse: Log-sum-exp of the scores of each x with the K - 1 other y, shape (K,).
    """

    positive: Tensor
    negative_lse: Tensor


def sum_scores(scores: Tensor, offset: int = 0) -> ScoreSums:
    """Reduces rows of scores.

    Args:
        scores: Score of each x with each y, shape (k, l).
        offset: Column of the first row's own y.

    Returns:
        The reduced scores of these k rows.
    """
    own = torch.arange(len(scores), device=scores.device).unsqueeze(1) + offset  # k x 1
    positive = scores.gather(1, own).squeeze(1)
    return ScoreSums(positive, scores.scatter(1, own, -math.inf).logsumexp(dim=1))


def log_mean_negative(sums: ScoreSums) -> Tensor:
    """Computes the logarithm of the mean of exp(score) over all negative pairs, a scalar."""
    k = len(sums.positive)
    return sums.negative_lse.logsumexp(dim=0) - math.log(k * (k - 1))


def infonce_bound(sums: ScoreSums) -> Tensor:
    """Computes InfoNCE, 2018, https://arxiv.org/abs/1807.03748: at most ln K, low variance."""
    k = len(sums.positive)
    log_sum = torch.logaddexp(sums.negative_lse, sums.positive)
    return math.log(k) + (sums.positive - log_sum).mean()


def nwj_bound(sums: ScoreSums) -> Tensor:
    """Computes NWJ, 2010, https://arxiv.org/abs/0809.0853: variance exponential in the MI."""
    return sums.positive.mean() - (log_mean_negative(sums) - 1).exp()


def donsker_varadhan_bound(sums: ScoreSums) -> Tensor:
    """Computes the Donsker-Varadhan bound of MINE, 2018, https://arxiv.org/abs/1801.04062.

    With finitely many pairs its expectation may exceed the bound, because it takes the logarithm
    of an estimated mean.
    """
    return sums.positive.mean() - log_mean_negative(sums)


def symmetric_infonce(scores: Tensor) -> Tensor:
    """Computes the mean of InfoNCE over rows and over columns, the objective of the warm-up.

    InfoNCE over rows determines the critic up to a function of x, over columns up to a function of
    y, and both together up to a constant.

    Args:
        scores: Score of each x with each y, shape (k, k).

    Returns:
        Scalar.
    """
    return (infonce_bound(sum_scores(scores)) + infonce_bound(sum_scores(scores.T))) / 2


BOUNDS = {"infonce": infonce_bound, "nwj": nwj_bound, "mine": donsker_varadhan_bound}


def mine_objective(sums: ScoreSums, log_running_mean: Tensor) -> Tensor:
    """Computes MINE's objective, whose gradient is the bound's with a running mean.

    The bound's own gradient is biased, because it divides by the mean of the batch. MINE (Section
    3.2) divides by a running mean instead.

    Args:
        sums: Scores of a batch.
        log_running_mean: Logarithm of the running mean of exp(score) over negatives, scalar.

    Returns:
        Scalar; only its gradient has a meaning.
    """
    return sums.positive.mean() - (log_mean_negative(sums) - log_running_mean).exp()
