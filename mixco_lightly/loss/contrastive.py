"""Contrastive cross-entropies as pure functions of projections.

Shapes in the comments: n queries, m keys of the batch, k keys in the queue, c dimensions.
All maths is in log space and at least in float32, whatever the dtype of the projections and
whether autocast is on: at the temperatures of MixCo a softmax in half precision is wrong or NaN.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

# Rows shorter than this have no direction: they become zero vectors without a gradient.
_MIN_NORM = 1e-6
# Keys of the queue per step of the streamed log-sum-exp: the n x chunk logits stay in the cache.
_QUEUE_CHUNK = 2048


def unit_rows(x: Tensor) -> Tensor:
    """Scales each row to unit length, in float32 at least.

    Args:
        x: Projections, shape (n, c), any floating point dtype.

    Returns:
        Unit rows in float32, or float64 for float64 input. A row shorter than 1e-6 has no
        direction and becomes a zero row with zero gradient.
    """
    x = x if x.dtype == torch.float64 else x.float()
    # Dividing by the largest value first keeps the squares of huge rows finite. The direction does
    # not depend on it, so it needs no gradient.
    scale = x.detach().abs().amax(dim=1, keepdim=True).clamp_min(_MIN_NORM)  # n x 1
    x = x / scale
    norm = torch.linalg.vector_norm(x, dim=1, keepdim=True)  # n x 1
    return x / norm.clamp_min(_MIN_NORM) * (norm * scale > _MIN_NORM)


class _QueueLogSumExp(torch.autograd.Function):
    """log sum_k exp(query . key_k), streamed over the queue in chunks.

    The gradient with respect to the queries is the softmax-weighted mean of the keys, which the
    same pass accumulates. So nothing of size n x k is held, and the queue may be overwritten
    between forward and backward, as MoCo does.
    """

    @staticmethod
    def forward(ctx: Any, queries: Tensor, queue: Tensor) -> Tensor:
        maximum = queries.new_full((len(queries), 1), -torch.inf)
        total = torch.zeros_like(maximum)
        mean_key = torch.zeros_like(queries)
        for keys in queue.split(_QUEUE_CHUNK):
            logits = queries @ keys.T  # nc,kc->nk
            new_maximum = torch.maximum(maximum, logits.amax(dim=1, keepdim=True))
            weights = logits.sub_(new_maximum).exp_()
            rescale = (maximum - new_maximum).exp_()
            total.mul_(rescale).add_(weights.sum(dim=1, keepdim=True))
            mean_key.mul_(rescale).addmm_(weights, keys)  # nk,kc->nc
            maximum = new_maximum
        ctx.save_for_backward(mean_key.div_(total))
        return (maximum + total.log()).squeeze(1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        # once_differentiable would not do: it lets a second derivative pass that does not reach
        # the queries through this function alone, and the value is then wrong.
        if torch.is_grad_enabled():  # only with create_graph=True
            raise RuntimeError("The log-sum-exp over the queue can be differentiated only once.")
        (mean_key,) = ctx.saved_tensors
        return grad.unsqueeze(1) * mean_key, None


def queue_logsumexp(queries: Tensor, queue: Tensor) -> Tensor:
    """Log-sum-exp of the similarities of queries with constant keys.

    Args:
        queries: Queries already divided by their temperature, shape (n, c).
        queue: Keys, shape (k, c). They get no gradient.

    Returns:
        ``log(sum_k(exp(queries @ queue.T)))``, shape (n,). Differentiable once; a second
        derivative raises an error.
    """
    log_sum_exp: Tensor = _QueueLogSumExp.apply(queries, queue.detach().to(queries))
    return log_sum_exp


def key_cross_entropy(
    queries: Tensor, keys: Tensor, temperature: float, queue_lse: Tensor
) -> Tensor:
    """Cross-entropy of each query with its own key, among the queue: InfoNCE as in MoCo.

    MixCo, Eq. 1, with the candidates of the authors' MoCo code: the query's own key and the
    queue, not the other keys of the batch.

    Args:
        queries: Unit rows, shape (n, c).
        keys: Unit rows, shape (n, c); row i is the positive of query i.
        temperature: Divides all similarities.
        queue_lse: ``queue_logsumexp(queries / temperature, queue)``, shape (n,).

    Returns:
        Mean over the queries, scalar.
    """
    positive = (queries * keys).sum(dim=1) / temperature  # nc,nc->n
    return (torch.logaddexp(queue_lse, positive) - positive).mean()


def mixed_cross_entropy(
    queries: Tensor,
    keys: Tensor,
    first: Tensor,
    second: Tensor,
    lam: Tensor,
    temperature: float,
    queue_lse: Tensor | None = None,
) -> Tensor:
    """Cross-entropy of mixed queries with two soft targets each, among all keys.

    MixCo, Eq. 3, with the candidates of the authors' code: all keys of the batch and, for
    MoCo, the queue. Its smallest possible value is not 0 but the entropy of (lam, 1 - lam),
    which is 0.5 nat on average for uniform weights.

    Args:
        queries: Unit rows of the mixtures, shape (n, c).
        keys: Unit rows of the other view's images, shape (m, c). They may need a gradient.
        first: Row in ``keys`` of each mixture's first image, shape (n,).
        second: Row in ``keys`` of each mixture's second image, shape (n,).
        lam: Target of the first key, shape (n,); the second key's is ``1 - lam``.
        temperature: Divides all similarities.
        queue_lse: ``queue_logsumexp(queries / temperature, queue)``, shape (n,), or None
            without a queue.

    Returns:
        Mean over the mixtures, scalar.
    """
    logits = queries @ keys.T / temperature  # nc,mc->nm
    lse = logits.logsumexp(dim=1)
    if queue_lse is not None:
        lse = torch.logaddexp(lse, queue_lse)
    # The targets sum to one, so -sum(target * log_softmax) = lse - sum(target * logits).
    first_logit = logits.gather(1, first.unsqueeze(1)).squeeze(1)
    second_logit = logits.gather(1, second.unsqueeze(1)).squeeze(1)
    return (lse - torch.lerp(second_logit, first_logit, lam.to(logits))).mean()


def nt_xent(
    z0: Tensor, z1: Tensor, all_z0: Tensor, all_z1: Tensor, offset: int, temperature: float
) -> Tensor:
    """Normalised temperature-scaled cross-entropy of two views: SimCLR.

    SimCLR, 2020, https://arxiv.org/abs/2002.05709, Eq. 1. Each of the 2n projections is an
    anchor; its candidates are all projections of both views but itself.

    Args:
        z0: Unit rows of the first view on this process, shape (n, c).
        z1: Unit rows of the second view on this process, shape (n, c).
        all_z0: The first view's rows of all processes, shape (m, c).
        all_z1: The second view's rows of all processes, shape (m, c).
        offset: Row of ``all_z0`` at which this process's rows start.
        temperature: Divides all similarities.

    Returns:
        Mean over the 2n anchors, scalar.
    """
    n, m = len(z0), len(all_z0)
    row = torch.arange(n, device=z0.device) + offset
    itself = torch.cat([row, row + m]).unsqueeze(1)  # 2n x 1
    positive = torch.cat([row + m, row]).unsqueeze(1)  # 2n x 1
    logits = torch.cat([z0, z1]) @ torch.cat([all_z0, all_z1]).T / temperature  # nc,mc->nm
    logits = logits.scatter(1, itself, -torch.inf)
    return (logits.logsumexp(dim=1) - logits.gather(1, positive).squeeze(1)).mean()
