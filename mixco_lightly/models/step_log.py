"""Which training steps are logged or update the momentum encoder, and what they log."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from pytorch_lightning import LightningModule
from torch import Tensor

from mixco_lightly.data.mixture import Mixture
from mixco_lightly.loss.contrastive import unit_rows
from mixco_lightly.loss.plain_and_mixed_loss import MixCoLossComponents


def is_logged_step(module: LightningModule) -> bool:
    """Returns whether Lightning passes the values of this step to its loggers.

    Args:
        module: The module in its training step.

    Returns:
        True in every ``log_every_n_steps``-th step of the trainer. False without a trainer.
    """
    try:
        trainer = module.trainer
    except RuntimeError:  # there is no trainer
        return False
    every: int = trainer.log_every_n_steps  # type: ignore[attr-defined]
    return every > 0 and (trainer.global_step + 1) % every == 0


def is_first_batch_of_step(module: LightningModule, batch_idx: int) -> bool:
    """Returns whether a batch is the first of its optimiser step.

    Args:
        module: The module in its training step.
        batch_idx: Index of the batch in its epoch.

    Returns:
        False for all but the first of ``accumulate_grad_batches`` batches. Always True without a
        trainer.
    """
    try:
        # Lightning counts batches anew in each epoch, and always steps after the last one.
        return batch_idx % module.trainer.accumulate_grad_batches == 0
    except RuntimeError:  # there is no trainer
        return True


@torch.no_grad()
def queue_similarities(queries: Tensor, keys: Tensor, queue: Tensor) -> dict[str, Tensor]:
    """Computes mean cosine similarities of queries with their keys and with a queue's.

    Args:
        queries: Projections of shape (n, c).
        keys: Projections of the other view, shape (n, c).
        queue: Normalised keys of shape (k, c).

    Returns:
        Two scalars: ``positive_similarity``, the mean over n pairs, and ``negative_similarity``,
        the mean over n * k pairs.
    """
    queries = unit_rows(queries)
    positive = (queries * unit_rows(keys)).sum(dim=1).mean()
    # The mean of all products is the product of the means, without an n x k matrix.
    negative = queries.mean(dim=0) @ queue.to(queries.dtype).mean(dim=0)  # c,c->
    return {"positive_similarity": positive, "negative_similarity": negative}


@torch.no_grad()
def batch_similarities(out0: Tensor, out1: Tensor) -> dict[str, Tensor]:
    """Computes mean cosine similarities of the same image's views and of different images' views.

    Args:
        out0: Projections of the first view, shape (n, c), where n is at least 2.
        out1: Projections of the second view, shape (n, c).

    Returns:
        Two scalars: ``positive_similarity``, the mean over n pairs, and ``negative_similarity``,
        the mean over the 2n * (2n - 2) ordered pairs of different images' views.
    """
    z0, z1 = unit_rows(out0), unit_rows(out1)
    n = len(z0)
    positive = (z0 * z1).sum()
    both = torch.cat([z0, z1])  # 2n x c
    # All pairs, without those of a view with itself and with the other view of its image.
    negative = both.sum(dim=0).square().sum() - both.square().sum() - 2 * positive
    return {
        "positive_similarity": positive / n,
        "negative_similarity": negative / (2 * n * (2 * n - 2)),
    }


def forget_mixed_step(module: LightningModule) -> None:
    """Keeps Lightning from logging ``mix`` and ``lam`` of an earlier step again.

    Until the end of an epoch Lightning logs the last value of every name in every logged step.

    Args:
        module: The module in its training step, which is logged.
    """
    results: dict[str, Any] = module.trainer._results or {}
    for name in ("mix", "lam"):
        results.pop(f"training_step.{name}", None)


def log_step(
    module: LightningModule,
    loss: MixCoLossComponents,
    similarities: dict[str, Tensor],
    mixtures: Sequence[Mixture],
) -> None:
    """Logs a step's loss and its terms, similarities and the mean weight of mixtures as ``lam``.

    Values are averaged over all processes.

    Args:
        module: The module in its training step.
        loss: The loss and its terms.
        similarities: From :func:`queue_similarities` or :func:`batch_similarities`.
        mixtures: The mixtures; empty for the plain baseline, whose ``mix`` is 0, and for a step
            that is not mixed, whose ``mix`` is not logged.
    """
    values = {"loss": loss.total, "contrast": loss.contrast, "mix": loss.mix, **similarities}
    criterion: Any = module.criterion
    if mixtures:
        values["lam"] = torch.cat([mixture.lam for mixture in mixtures]).mean()
    elif criterion.mix_weight > 0:
        del values["mix"]
        forget_mixed_step(module)
    # Without prog_bar, for which Lightning would wait for the values in every step.
    module.log_dict(values, sync_dist=True)
