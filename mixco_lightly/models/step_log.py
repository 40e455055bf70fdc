"""Where a training step stands in the training, and what is logged of it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from pytorch_lightning import LightningModule
from torch import Tensor

from mixco_lightly.data.mixture import Mixture
from mixco_lightly.loss.contrastive import unit_rows
from mixco_lightly.loss.mixco_loss import MixCoLossComponents


def is_logged_step(module: LightningModule) -> bool:
    """Whether Lightning hands the values of this step to its loggers.

    Args:
        module: The module in its training step.

    Returns:
        True in every ``log_every_n_steps``-th step of the trainer; False without a trainer.
    """
    try:
        trainer = module.trainer
    except RuntimeError:  # it is not attached to one
        return False
    every: int = trainer.log_every_n_steps  # type: ignore[attr-defined]
    return every > 0 and (trainer.global_step + 1) % every == 0


def is_first_batch_of_step(module: LightningModule, batch_idx: int) -> bool:
    """Returns whether a batch is the first whose gradient goes into its optimiser step.

    Args:
        module: The module in its training step.
        batch_idx: Index of the batch in its epoch.

    Returns:
        False in the further batches of ``accumulate_grad_batches``, otherwise True; always True
        without a trainer.
    """
    try:
        # Lightning counts from the start of each epoch, and steps after an epoch's last batch.
        return batch_idx % module.trainer.accumulate_grad_batches == 0
    except RuntimeError:  # it is not attached to one
        return True


@torch.no_grad()
def queue_similarities(queries: Tensor, keys: Tensor, queue: Tensor) -> dict[str, Tensor]:
    """Mean cosine similarity of queries with their keys and with the keys of a queue.

    Args:
        queries: Projections of shape (n, c).
        keys: Projections of the other view, (n, c).
        queue: Unit rows (k, c).

    Returns:
        ``positive_similarity``, the mean over n pairs, and ``negative_similarity``, the mean over
        n * k, scalars.
    """
    queries = unit_rows(queries)
    positive = (queries * unit_rows(keys)).sum(dim=1).mean()
    # The mean of all products is the product of the means: no n x k matrix.
    negative = queries.mean(dim=0) @ queue.to(queries.dtype).mean(dim=0)  # c,c->
    return {"positive_similarity": positive, "negative_similarity": negative}


@torch.no_grad()
def batch_similarities(out0: Tensor, out1: Tensor) -> dict[str, Tensor]:
    """Mean cosine similarity of the two views of an image, and of views of different images.

    Args:
        out0: Projections of the first view, shape (n, c), n at least 2.
        out1: Projections of the second view, (n, c).

    Returns:
        ``positive_similarity``, the mean over n pairs, and ``negative_similarity``, the mean over
        the 2n * (2n - 2) ordered pairs of two images' views, scalars.
    """
    z0, z1 = unit_rows(out0), unit_rows(out1)
    n = len(z0)
    positive = (z0 * z1).sum()
    both = torch.cat([z0, z1])  # 2n x c
    # All pairs, but for each view with itself and with the other view of its image.
    negative = both.sum(dim=0).square().sum() - both.square().sum() - 2 * positive
    return {
        "positive_similarity": positive / n,
        "negative_similarity": negative / (2 * n * (2 * n - 2)),
    }


def log_step(
    module: LightningModule,
    loss: MixCoLossComponents,
    similarities: dict[str, Tensor],
    mixtures: Sequence[Mixture],
) -> None:
    """Logs the loss, its terms, similarities and the mean weight of mixtures as ``lam``.

    They are means over all processes. (Without ``prog_bar``: Lightning would then wait for the
    values in every step, logged or not.)

    Args:
        module: The module in its training step.
        loss: Of the step.
        similarities: Of the step.
        mixtures: Of the step; empty for the plain baseline.
    """
    values = {"loss": loss.total, "contrast": loss.contrast, "mix": loss.mix, **similarities}
    if mixtures:
        values["lam"] = torch.cat([mixture.lam for mixture in mixtures]).mean()
    module.log_dict(values, sync_dist=True)
