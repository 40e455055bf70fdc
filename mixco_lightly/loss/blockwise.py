"""Log-sum-exps and cross-entropies over many candidates, computed in blocks.

The logits of all queries with all keys are never in memory at once. Each function walks over them
in blocks and computes the gradients in the same pass. The functions are custom operators
(``torch.library.custom_op``): torch.compile does not trace into them.

Shapes in the comments: n queries, m keys of the batch, k keys in the queue, c dimensions.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

# The operators compute logits in units of ln 2, because exp2 takes half the time of exp.
_LOG2_E = math.log2(math.e)
# In float32, exp of a logit up to this size neither overflows nor underflows, summed over any
# queue. The log-sum-exp then needs no running maximum, which saves a seventh of the time.
_MAX_PLAIN_LOGIT = 60.0


@contextlib.contextmanager
def _full_precision() -> Iterator[None]:
    """Computes float32 products in full precision, whatever the user set for matrix products.

    The targets' similarities are sums, not matrix products, so lower precision would round only
    the log-sum-exp. At temperature 0.05, with positives near 1, the gradient would then be wrong
    by 0.1% in TensorFloat-32 and by 1% in bfloat16, and the loss could become negative.
    """
    mkldnn_matmul = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    backends = torch.backends.cuda.matmul, mkldnn_matmul
    before = [backend.fp32_precision for backend in backends]
    if all(precision in ("ieee", "none") for precision in before):
        yield
        return
    try:
        # Set both interfaces: PyTorch refuses to multiply if they contradict each other.
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
    """Returns how many rows a block of logits has.

    On a CPU a block stays in the cache: measured on two cores for 96 to 6,144 columns. On an
    accelerator blocks are larger, because starting a small product takes longer than the product.
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
    """Returns the log-sum-exp (n,) and its gradient, the softmax-weighted mean key (n, c)."""
    dtype = torch.bfloat16 if bfloat16 else queries.dtype
    columns = (queries * _LOG2_E).T.to(dtype).contiguous()  # c x n
    total = queries.new_zeros(len(queries))
    mean_key = torch.zeros_like(queries)
    needs_maximum = max_logit > _MAX_PLAIN_LOGIT
    maximum = torch.full_like(total, -math.inf if needs_maximum else 0.0)
    block_rows = min(len(queue), _block_rows(len(queries), queries.device))
    # All products share one block: allocating one for each takes a tenth of the time.
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
    # The operators return the first derivatives. A gradient for these is a second derivative.
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
    """Computes the log-sum-exp of the similarities between queries and a queue of constant keys.

    One pass over the keys computes the gradient for the queries too. The queue may therefore be
    overwritten between forward and backward, as MoCo does.

    Args:
        queries: Queries divided by their temperature, shape (n, c).
        queue: Keys, shape (k, c). They get no gradient.
        max_logit: Bound on the absolute similarities. For unit rows it is the inverse of the
            smallest temperature. The pass is faster with a bound of at most 60.
        bfloat16: If True, products are in bfloat16, sums and exponentials in the queries' dtype.
            If False, float32 products have full precision.

    Returns:
        ``log(sum_k(exp(queries @ queue.T)))``, shape (n,). A second derivative raises an error.
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
    """Returns the mean cross-entropy and its gradients for queries, keys and queue_lse."""
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
        # The target is subtracted first: at low temperatures it is close to the maximum.
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
    """Computes the mean cross-entropy of queries among the keys of the batch.

    It returns the mean, not one value a query, because a single pass over the logits can then
    compute the gradients too, up to a factor.

    Args:
        queries: Queries divided by their temperature, shape (n, c).
        keys: Keys, shape (m, c). They get a gradient too.
        target_logits: Similarity of each query with its target, shape (n,). For soft targets it
            is the weighted mean of their similarities.
        itself: Row of ``keys`` that each query leaves out of its candidates, shape (n,).
        queue_lse: Log-sum-exp of each query's similarities with further candidates, shape (n,).
        query_weights: Weight of each query in the mean, shape (n,), without a gradient. The
            weights should sum to 1. The default is 1 / n each.

    Returns:
        Mean of log-sum-exp minus target, scalar. A second derivative raises an error.
    """
    return _mean_cross_entropy(queries, keys, target_logits, itself, queue_lse, query_weights)[0]


@torch.library.custom_op(
    "mixco_lightly::product", mutates_args=(), schema="(Tensor constant, Tensor rows) -> Tensor"
)
@_full_precision()
def _product(constant: Tensor, rows: Tensor) -> Tensor:
    # The backward pass may run under autocast.
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
    """Multiplies by a constant matrix in full precision, also in the backward pass.

    Args:
        constant: Matrix without a gradient, shape (n, m).
        rows: Rows of the same dtype, shape (m, c).

    Returns:
        ``constant @ rows``, shape (n, c).
    """
    return _product(constant.detach(), rows)
