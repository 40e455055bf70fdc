"""Contrastive cross-entropies as pure functions of projections.

They compute in log space and at least in float32, whatever the dtype of the projections: at
MixCo's temperatures a softmax in half precision is wrong or NaN.

Shapes in the comments: n queries, m keys of the batch, k keys in the queue, c dimensions.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mixco_lightly.loss.blockwise import mean_cross_entropy

# A shorter row has no direction. It becomes a zero row without a gradient.
_MIN_NORM = 1e-6


def unit_rows(x: Tensor) -> Tensor:
    """Scales each row to unit length, in float32 at least.

    Args:
        x: Projections, shape (n, c), any floating point dtype.

    Returns:
        Unit rows in float32, or float64 for float64 input. A row shorter than 1e-6 has no
        direction: it becomes a zero row with zero gradient.
    """
    x = x if x.dtype == torch.float64 else x.float()
    # Dividing by the largest value first keeps the squares of huge rows finite. It does not change
    # the direction, so it needs no gradient.
    scale = x.detach().abs().amax(dim=1, keepdim=True).clamp_min(_MIN_NORM)  # n x 1
    x = x / scale
    norm = torch.linalg.vector_norm(x, dim=1, keepdim=True)  # n x 1
    return x / norm.clamp_min(_MIN_NORM) * (norm * scale > _MIN_NORM)


def key_cross_entropy(
    queries: Tensor, keys: Tensor, temperature: float, queue_lse: Tensor
) -> Tensor:
    """Computes the cross-entropy of each query with its own key: InfoNCE as in MoCo.

    MixCo, Eq. 1, with the candidates of the authors' MoCo code: the query's own key and the
    queue, not the other keys of the batch.

    Args:
        queries: Unit rows, shape (n, c).
        keys: Unit rows, shape (n, c). Row i is the positive of query i.
        temperature: Divides all similarities.
        queue_lse: ``queue_logsumexp(queries / temperature, queue)``, shape (n,).

    Returns:
        Mean over the queries, scalar.
    """
    return _key_cross_entropies(queries, keys, temperature, queue_lse).mean()


def _key_cross_entropies(
    queries: Tensor, keys: Tensor, temperature: float, queue_lse: Tensor
) -> Tensor:
    """Returns the cross-entropies of :func:`key_cross_entropy`, one for each query."""
    positive = (queries * keys).sum(dim=1) / temperature  # nc,nc->n
    return torch.logaddexp(queue_lse, positive) - positive


def weighted_key_cross_entropy(
    queries: Tensor,
    keys: Tensor,
    first: Tensor,
    second: Tensor,
    lam: Tensor,
    temperature: float,
    queue_lse: Tensor,
) -> Tensor:
    """Computes the weighted cross-entropies of mixtures with the keys of their two images.

    Un-Mix, with the candidates of the authors' MoCo code: each of a mixture's two keys alone
    against the queue. The two keys do not compete with each other, nor with the other keys of the
    batch, so the minimum is 0.

    Args:
        queries: Unit rows of the mixtures, shape (n, c).
        keys: Unit rows of the other view's images, shape (m, c).
        first: Row in ``keys`` of each mixture's first image, shape (n,).
        second: Row in ``keys`` of each mixture's second image, shape (n,).
        lam: Weight of the first key's term, shape (n,). The second key's has ``1 - lam``.
        temperature: Divides all similarities.
        queue_lse: ``queue_logsumexp(queries / temperature, queue)``, shape (n,).

    Returns:
        Mean over the mixtures, scalar.
    """
    lam = lam.to(queries)
    first_loss, second_loss = (
        _key_cross_entropies(queries, keys[source], temperature, queue_lse)  # n
        for source in (first, second)
    )
    return (lam * first_loss + (1 - lam) * second_loss).mean()


def mixed_cross_entropy(
    queries: Tensor,
    keys: Tensor,
    first: Tensor,
    second: Tensor,
    lam: Tensor,
    temperature: float,
    queue_lse: Tensor | None = None,
) -> Tensor:
    """Computes the soft cross-entropy of mixtures with the keys of their two images.

    MixCo, Eq. 3, with the candidates of the authors' code: all keys of the batch and, for
    MoCo, the queue. The minimum is not 0 but the entropy of (lam, 1 - lam), on average 0.5 nat
    for uniform weights.

    Args:
        queries: Unit rows of the mixtures, shape (n, c).
        keys: Unit rows of the other view's images, shape (m, c), with or without a gradient.
        first: Row in ``keys`` of each mixture's first image, shape (n,).
        second: Row in ``keys`` of each mixture's second image, shape (n,).
        lam: Weight of the first key, shape (n,). The second key has ``1 - lam``.
        temperature: Divides all similarities.
        queue_lse: ``queue_logsumexp(queries / temperature, queue)``, shape (n,), or None
            if there is no queue.

    Returns:
        Mean over the mixtures, scalar.
    """
    # The targets sum to 1, so -sum(target * log_softmax) = lse - sum(target * logits). That last
    # sum is the similarity with the mixture of the two keys.
    target_key = torch.lerp(keys[second], keys[first], lam.to(keys).unsqueeze(1))  # n x c
    target_logit = (queries * target_key).sum(dim=1) / temperature  # nc,nc->n
    return mean_cross_entropy(queries / temperature, keys, target_logit, None, queue_lse)


def nt_xent(
    z0: Tensor, z1: Tensor, all_z0: Tensor, all_z1: Tensor, offset: int, temperature: float
) -> Tensor:
    """Computes SimCLR's normalised temperature-scaled cross-entropy of two views.

    SimCLR, 2020, https://arxiv.org/abs/2002.05709, Eq. 1. Each of the 2n projections is an
    anchor. Its candidates are all other projections of both views.

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
    row = torch.arange(len(z0), device=z0.device) + offset
    itself = torch.cat([row, row + len(all_z0)])  # 2n
    anchors = torch.cat([z0, z1]) / temperature
    positive = (z0 * z1).sum(dim=1) / temperature  # nc,nc->n
    candidates = torch.cat([all_z0, all_z1])
    # The two anchors of an image are each other's positive: they share one similarity.
    return mean_cross_entropy(anchors, candidates, torch.cat([positive, positive]), itself)


def mixed_nt_xent(
    mixed: Tensor,
    keys: Tensor,
    all_mixed: Tensor,
    first: Tensor,
    second: Tensor,
    lam: Tensor,
    offset: int,
    temperature: float,
) -> Tensor:
    """Computes SimCLR's loss of mixtures and the keys of their images, weighted as in Un-Mix.

    It is ``lam * nt_xent(mixed, keys[first]) + (1 - lam) * nt_xent(mixed, keys[second])``, with
    each mixture's own weight. The anchors are the mixtures and their keys; an anchor's candidates
    are all keys and all mixtures without itself. A mixture's two terms have one softmax, in which
    its two keys compete.

    Args:
        mixed: Unit rows of this process's mixtures, shape (n, c).
        keys: Unit rows of the other view's images, of all processes, shape (m, c).
        all_mixed: Unit rows of the mixtures of all processes.
        first: Row in ``keys`` of each mixture's first image, shape (n,).
        second: Row in ``keys`` of each mixture's second image, shape (n,).
        lam: Weight of the first key's terms, shape (n,). The second key's have ``1 - lam``.
        offset: Row of ``all_mixed`` at which this process's mixtures start.
        temperature: Divides all similarities.

    Returns:
        Mean over the mixtures and their keys, scalar.
    """
    lam = lam.to(mixed)
    row = torch.arange(len(mixed), device=mixed.device) + offset + len(keys)
    anchors = torch.cat([mixed, keys[first], keys[second]]) / temperature  # 3n x c
    itself = torch.cat([row, first, second])  # 3n
    first_logit, second_logit = (
        (mixed * keys[source]).sum(dim=1) / temperature  # nc,nc->n
        for source in (first, second)
    )
    target_logits = torch.cat(
        [torch.lerp(second_logit, first_logit, lam), first_logit, second_logit]
    )
    weights = torch.cat([torch.ones_like(lam), lam, 1 - lam]) / (2 * len(lam))  # 3n
    candidates = torch.cat([keys, all_mixed])
    return mean_cross_entropy(anchors, candidates, target_logits, itself, query_weights=weights)
