"""Measures nearest neighbours while a run trains, to see whether it learns."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from torch.utils.data import DataLoader, Subset

from mixco_lightly.data.batches import in_batches
from mixco_lightly.data.images import LabelledImages
from mixco_lightly.evaluation.features import extract_features
from mixco_lightly.evaluation.knn import knn_probe
from mixco_lightly.training.processes import print_on_rank_zero

if TYPE_CHECKING:
    from mixco_lightly.training.online_probe import OnlineProbe

# A forward of a fifth of the images is about 4% of an epoch's work; every fifth epoch, about 1%.
_SHARE = 0.2
_MAX_IMAGES = 5000
# The bank may have a few hundred images; 200 neighbours, as at the end, would be nearly all.
_NEIGHBOURS = 20


def choose_images(targets: Sequence[int], seed: int) -> tuple[list[int], list[int]]:
    """Chooses images that vote and images that are classified, as many of each class.

    Args:
        targets: Targets of all training images.
        seed: Decides which images.

    Returns:
        The indices of a bank and of queries, one query for four images of the bank; at most a fifth
        of all images and at most 5,000. A class with a single chosen image has no query.
    """
    count = min(int(len(targets) * _SHARE), _MAX_IMAGES)
    order = np.random.default_rng(seed).permutation(len(targets))
    rank_in_class = np.empty(len(targets), dtype=np.int64)
    shuffled = np.asarray(targets)[order]
    for target in np.unique(shuffled):
        members = shuffled == target
        rank_in_class[members] = np.arange(members.sum())
    # The first image of each class, then the second of each.
    chosen = np.argsort(rank_in_class, kind="stable")[:count]
    is_query = rank_in_class[chosen] % 5 == 1
    bank, queries = order[chosen[~is_query]], order[chosen[is_query]]
    return sorted(bank.tolist()), sorted(queries.tolist())


class TrainingKNN(Callback):
    """Logs the accuracy of nearest neighbours as ``knn_top1`` every few epochs and at the end.

    The images are a small part of the training images, without augmentation. Training never sees
    their labels, and the bank that votes never includes the queries. (The images themselves are
    trained on, without labels. The test images are left for the end.) The callback changes neither
    weights nor BatchNorm's statistics nor any random number of the training.

    A failed measurement never ends a run: with too few images or a single class it prints a line at
    the start, with features that are not finite a line in that epoch.

    Args:
        images: The training images.
        transform: Makes an image a tensor.
        every_n_epochs: How often.
        batch_size: Images in a batch.
        num_workers: Processes that load images.
        seed: Decides which images are taken.
        probe: A linear classifier that is measured on the same queries, logged as ``online_top1``.
    """

    def __init__(
        self,
        images: LabelledImages,
        transform: Any,
        every_n_epochs: int,
        batch_size: int,
        num_workers: int,
        seed: int,
        probe: OnlineProbe | None = None,
    ) -> None:
        self._probe = probe
        self._every_n_epochs = every_n_epochs
        self._batch_size = batch_size
        self._num_workers = num_workers
        plain = copy.copy(images)
        plain.transform = transform
        targets: Sequence[int] = images.targets
        bank, queries = choose_images(targets, seed)
        self._bank: Subset[Any] = Subset(in_batches(plain), bank)
        self._queries: Subset[Any] = Subset(in_batches(plain), queries)
        self._missing = ""
        if not queries:
            self._missing = "a fifth of the images is not two of any class"
        elif len({targets[index] for index in bank}) < 2:
            self._missing = "all images are of one class"

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Prints a line if there is nothing to classify."""
        if self._missing:
            print_on_rank_zero(f"No kNN while training: {self._missing}.")

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Measures it in the first process, whose backbone is exported."""
        epochs = trainer.current_epoch + 1
        is_due = epochs % self._every_n_epochs == 0 or epochs == trainer.max_epochs
        if self._missing or not (is_due and trainer.is_global_zero):
            return
        backbone: Any = pl_module.backbone
        # In float32, as at the end of the run: no autocast is active here. Compiling again for eval
        # mode would take longer than it saves.
        with torch.compiler.set_stance("force_eager"):
            bank, queries = (
                extract_features(backbone, self._loader(images))
                for images in (self._bank, self._queries)
            )
        if not all(torch.isfinite(part.features).all() for part in (bank, queries)):
            print_on_rank_zero(f"No kNN in epoch {epochs}: there are features that are not finite.")
            return
        top1 = knn_probe(bank, queries, k=min(_NEIGHBOURS, len(self._bank))).top1
        metrics = {"epoch": trainer.current_epoch, "knn_top1": top1}
        if self._probe is not None and self._probe.is_trained:
            metrics["online_top1"] = self._probe.measure(queries)
        # Not self.log, which writes after the checkpoint: a kill in between would lose the value.
        for logger in trainer.loggers:
            logger.log_metrics(metrics, trainer.global_step - 1)

    def _loader(self, images: Subset[Any]) -> DataLoader[Any]:
        # A loader draws its workers' seed, so it gets a generator of its own.
        return DataLoader(
            images,
            batch_size=self._batch_size,
            num_workers=self._num_workers,
            generator=torch.Generator(),
        )
