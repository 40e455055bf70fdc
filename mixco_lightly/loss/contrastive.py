"""Contrastive cross-entropies as pure functions of projections.

Shapes in the comments: n queries, m keys of the batch, k keys in the queue, c dimensions.
All maths is in log space and at least in float32, whatever the dtype of the projections: at the
temperatures of MixCo a softmax in half precision is wrong or NaN.

Neither the n x k logits of the queue nor the n x m logits of the batch are ever held. Both
log-sum-exps walk over them in blocks and compute their gradients in the same pass. They are
custom operators (``torch.library.custom_op``), which torch.compile does not look into.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

# Rows shorter than this have no direction: they become zero vectors without a gradient.
_MIN_NORM = 1e-6
# Inside the operators logits are in units of ln 2: exp2 takes half the time of exp.
_LOG2_E = math.log2(math.e)
# exp of a logit up to this size, summed over any queue, neither overflows nor underflows in
# float32: then the running maximum of the log-sum-exp is not needed, a seventh of the time.
_MAX_PLAIN_LOGIT = 60.0


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


@contextlib.contextmanager
def _full_precision() -> Iterator[None]:
    """Keeps float32 products in full precision whatever ``set_float32_matmul_precision`` was given.

    The targets' similarities are sums, not matrix products. With lower precision the log-sum-exp
    would be rounded differently from them: at temperature 0.05, with positives near 1, the gradient
    is wrong by 0.1% in TensorFloat-32 and by 1% in bfloat16, and the loss can become negative.
    """
    mkldnn_matmul = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    backends = torch.backends.cuda.matmul, mkldnn_matmul
    before = [backend.fp32_precision for backend in backends]
    if all(precision in ("ieee", "none") for precision in before):
        yield
        return
    try:
        # Set by both interfaces: PyTorch refuses to multiply where they contradict each other.
        legacy = torch.get_float32_matmul_precision()
    except RuntimeError:  # the user set only the newer one
        legacy = None
    try:
        if legacy is not None:
            torch.set_float32_matmul_precision("highest")
        for backend in backends:
            backend.fp32_precision = "ieee"
        yield
    finally:
        if legacy is not None:
            torch.set_float32_matmul_precision(legacy)
        for backend, precision in zip(backends, before, strict=True):
            backend.fp32_precision = precision


def _block_rows(columns: int, device: torch.device) -> int:
    """How many rows a block of logits has, so that it stays in a processor's cache.

    Measured on two cores for 96 to 6,144 columns. An accelerator is given larger blocks: there
    the start of each product would take longer than the product.
    """
    most, elements = (2048, 2**22) if device.type == "cpu" else (16384, 2**25)
    return max(512, min(most, elements // max(columns, 1)))


@torch.library.custom_op(
    "mixco_lightly::queue_logsumexp",
    mutates_args=(),
    schema="(Tensor queries, Tensor queue, float max_logit, bool bfloat16) -> (Tensor, Tensor)",
)
@_full_precision()
def _queue_logsumexp(
    queries: Tensor, queue: Tensor, max_logit: float, bfloat16: bool
) -> tuple[Tensor, Tensor]:
    """Log-sum-exp, shape (n,), and its gradient: the softmax-weighted mean key, shape (n, c)."""
    dtype = torch.bfloat16 if bfloat16 else queries.dtype
    columns = (queries * _LOG2_E).T.to(dtype).contiguous()  # c x n
    total = queries.new_zeros(len(queries))
    mean_key = torch.zeros_like(queries)
    needs_maximum = max_logit > _MAX_PLAIN_LOGIT
    maximum = torch.full_like(total, -math.inf if needs_maximum else 0.0)
    block_rows = min(len(queue), _block_rows(len(queries), queries.device))
    # One block for all products: to take fresh memory for each costs a tenth of the time.
    block = columns.new_empty(block_rows, len(queries))
    for keys in queue.split(block_rows):
        keys = keys.to(dtype)
        weights = torch.mm(keys, columns, out=block[: len(keys)])  # kc,cn->kn
        weights = weights.to(queries.dtype)
        if needs_maximum:
            new_maximum = torch.maximum(maximum, weights.amax(dim=0))
            rescale = (maximum - new_maximum).exp2_()
            total *= rescale
            mean_key *= rescale.unsqueeze(1)
            maximum = new_maximum
            weights -= maximum
        weights.exp2_()
        total += weights.sum(dim=0)
        mean_key += weights.T.to(dtype) @ keys  # nk,kc->nc
    return (maximum + total.log2()) / _LOG2_E, mean_key.div_(total.unsqueeze(1))


@_queue_logsumexp.register_fake
def _(queries: Tensor, queue: Tensor, max_logit: float, bfloat16: bool) -> tuple[Tensor, Tensor]:
    return queries.new_empty(len(queries)), torch.empty_like(queries)


def _save_gradients(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*output[1:])


def _refuse_second_derivative(*grads: Tensor | None) -> None:
    # The first derivatives are outputs of the operators: somebody differentiates them.
    if any(grad is not None for grad in grads):
        raise RuntimeError("This contrastive loss can be differentiated only once.")


def _queue_logsumexp_backward(
    ctx: Any, grad: Tensor | None, grad_mean_key: Tensor | None
) -> tuple[Tensor | None, None, None, None]:
    _refuse_second_derivative(grad_mean_key)
    (mean_key,) = ctx.saved_tensors
    return None if grad is None else grad.unsqueeze(1) * mean_key, None, None, None


_queue_logsumexp.register_autograd(_queue_logsumexp_backward, setup_context=_save_gradients)


def queue_logsumexp(
    queries: Tensor, queue: Tensor, max_logit: float = math.inf, bfloat16: bool = False
) -> Tensor:
    """Log-sum-exp of the similarities of queries with constant keys, in one pass over the keys.

    The pass computes the gradient for the queries too, so the queue may be overwritten between
    forward and backward, as MoCo does.

    Args:
        queries: Queries already divided by their temperature, shape (n, c).
        queue: Keys, shape (k, c). They get no gradient.
        max_logit: Bound on the size of all similarities, if one is known: for unit rows the
            inverse of the smallest temperature. Up to 60 the pass is faster.
        bfloat16: Multiplies in bfloat16; sums and exponentials stay in the queries' dtype.
            Otherwise float32 products have full precision.

    Returns:
        ``log(sum_k(exp(queries @ queue.T)))``, shape (n,). Differentiable once; a second
        derivative raises an error.
    """
    log_sum_exp, _ = _queue_logsumexp(queries, queue.detach(), max_logit, bfloat16)
    return log_sum_exp


@torch.library.custom_op(
    "mixco_lightly::mean_cross_entropy",
    mutates_args=(),
    schema=(
        "(Tensor queries, Tensor keys, Tensor target_logits, Tensor? itself, Tensor? queue_lse, "
        "Tensor? query_weights) -> (Tensor, Tensor, Tensor, Tensor)"
    ),
)
@_full_precision()
def _mean_cross_entropy(
    queries: Tensor,
    keys: Tensor,
    target_logits: Tensor,
    itself: Tensor | None,
    queue_lse: Tensor | None,
    query_weights: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Mean cross-entropy and its gradients for queries, keys and queue_lse."""
    n = len(queries)
    columns = keys.T.contiguous()  # c x m
    cross_entropy = queries.new_empty(n)
    grad_queries = torch.empty_like(queries)
    grad_keys = torch.zeros_like(keys)
    grad_queue_lse = queries.new_empty(0 if queue_lse is None else n)
    block_rows = min(n, _block_rows(len(keys), queries.device))
    block = queries.new_empty(block_rows, len(keys))
    for start in range(0, n, block_rows):
        rows = slice(start, min(start + block_rows, n))
        # Relative to the targets: at low temperatures their difference is far smaller than both.
        target = target_logits[rows].unsqueeze(1) * _LOG2_E  # n x 1
        weights = torch.mm(queries[rows] * _LOG2_E, columns, out=block[: rows.stop - start])
        if itself is not None:
            weights.scatter_(1, itself[rows].unsqueeze(1), -math.inf)
        maximum = weights.amax(dim=1, keepdim=True)  # n x 1
        if queue_lse is not None:
            queue = queue_lse[rows].unsqueeze(1) * _LOG2_E  # n x 1
            maximum = torch.maximum(maximum, queue)
        weights.sub_(maximum).exp2_()  # n x m
        total = weights.sum(dim=1, keepdim=True)  # n x 1
        if queue_lse is not None:
            queue = (queue - maximum).exp2_()
            total += queue
        cross_entropy[rows] = (maximum - target + total.log2()).squeeze(1) / _LOG2_E
        share = 1 / (n * total) if query_weights is None else query_weights[rows, None] / total
        if queue_lse is not None:
            grad_queue_lse[rows] = (queue * share).squeeze(1)
        grad_queries[rows] = (weights @ keys).mul_(share)  # nm,mc->nc
        grad_keys.addmm_(weights.T, queries[rows] * share)  # nm,nc->mc
    mean = cross_entropy.mean() if query_weights is None else (cross_entropy * query_weights).sum()
    return mean, grad_queries, grad_keys, grad_queue_lse


@_mean_cross_entropy.register_fake
def _(
    queries: Tensor,
    keys: Tensor,
    target_logits: Tensor,
    itself: Tensor | None,
    queue_lse: Tensor | None,
    query_weights: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    grad_queue_lse = queries.new_empty(0 if queue_lse is None else len(queue_lse))
    return queries.new_empty(()), torch.empty_like(queries), torch.empty_like(keys), grad_queue_lse


def _save_gradients_and_weights(
    ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]
) -> None:
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*output[1:], inputs[-1])


def _mean_cross_entropy_backward(
    ctx: Any, grad: Tensor | None, *grad_grads: Tensor | None
) -> tuple[Tensor | None, Tensor | None, Tensor | None, None, Tensor | None, None]:
    _refuse_second_derivative(*grad_grads)
    if grad is None:
        return None, None, None, None, None, None
    grad_queries, grad_keys, grad_queue_lse, query_weights = ctx.saved_tensors
    n = len(grad_queries)
    return (
        grad * grad_queries,
        grad * grad_keys,
        (-grad / n).expand(n) if query_weights is None else -grad * query_weights,
        None,
        grad * grad_queue_lse if len(grad_queue_lse) else None,
        None,
    )


_mean_cross_entropy.register_autograd(
    _mean_cross_entropy_backward, setup_context=_save_gradients_and_weights
)


def mean_cross_entropy(
    queries: Tensor,
    keys: Tensor,
    target_logits: Tensor,
    itself: Tensor | None = None,
    queue_lse: Tensor | None = None,
    query_weights: Tensor | None = None,
) -> Tensor:
    """Mean cross-entropy of queries among the keys of the batch, given their targets' logits.

    It returns the mean, because one pass over the logits can then compute the gradients too, up
    to a factor.

    Args:
        queries: Queries already divided by their temperature, shape (n, c).
        keys: Keys, shape (m, c). They get a gradient too.
        target_logits: Similarity of each query with its target; with soft targets their weighted
            mean. Shape (n,).
        itself: Row in ``keys`` of each query itself, shape (n,), which is no candidate for it.
        queue_lse: Log-sum-exp of the similarities with further candidates, shape (n,).
        query_weights: Weight of each query in the mean, shape (n,), without a gradient. The
            weights should sum to 1. Default: 1 / n each.

    Returns:
        Mean of log-sum-exp minus target, scalar. Differentiable once; a second derivative raises
        an error.
    """
    return _mean_cross_entropy(queries, keys, target_logits, itself, queue_lse, query_weights)[0]


@torch.library.custom_op(
    "mixco_lightly::product", mutates_args=(), schema="(Tensor constant, Tensor rows) -> Tensor"
)
@_full_precision()
def _product(constant: Tensor, rows: Tensor) -> Tensor:
    # The backward may run where autocast is enabled.
    with torch.autocast(rows.device.type, enabled=False):
        return constant @ rows


@_product.register_fake
def _(constant: Tensor, rows: Tensor) -> Tensor:
    return rows.new_empty(len(constant), rows.shape[1])


def _save_constant(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(inputs[0])


def _product_backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor]:
    (constant,) = ctx.saved_tensors
    return None, _product(constant.T, grad)


_product.register_autograd(_product_backward, setup_context=_save_constant)


def product(constant: Tensor, rows: Tensor) -> Tensor:
    """Multiplies by a constant matrix in full precision, forwards and backwards.

    Args:
        constant: Matrix without a gradient, shape (n, m).
        rows: Shape (m, c), of the same dtype.

    Returns:
        ``constant @ rows``, shape (n, c).
    """
    return _product(constant.detach(), rows)


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
    # The targets sum to one: -sum(target * log_softmax) = lse - sum(target * logits), and the sum
    # is the logit of the mixture of the two keys.
    target_key = torch.lerp(keys[second], keys[first], lam.to(keys).unsqueeze(1))  # n x c
    target_logit = (queries * target_key).sum(dim=1) / temperature  # nc,nc->n
    return mean_cross_entropy(queries / temperature, keys, target_logit, None, queue_lse)


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
    row = torch.arange(len(z0), device=z0.device) + offset
    itself = torch.cat([row, row + len(all_z0)])  # 2n
    anchors = torch.cat([z0, z1]) / temperature
    positive = (z0 * z1).sum(dim=1) / temperature  # nc,nc->n
    candidates = torch.cat([all_z0, all_z1])
    # Both anchors of an image have the same positive similarity.
    return mean_cross_entropy(anchors, candidates, torch.cat([positive, positive]), itself)
