"""Trains a linear classifier beside a run, to see whether its features separate the classes."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
import torch
from lightly.utils.benchmarking import OnlineLinearClassifier
from pytorch_lightning.callbacks import Callback
from torch import Tensor, nn

from mixco_lightly.data.images import LabelledImages
from mixco_lightly.evaluation.features import Features
from mixco_lightly.training.processes import print_on_rank_zero
from mixco_lightly.training.training_knn import choose_images

# Of Adam, whose steps do not depend on the size of the features, which differs between networks.
_LEARNING_RATE = 1e-2


class OnlineProbe(Callback):
    """Trains Lightly's ``OnlineLinearClassifier`` on the features of the training steps.

    The features are those that the step has computed: of the plain query view, or of the mixtures
    where the network sees no plain images (i-Mix on MoCo); a mixture has the label of its first
    image, which has the larger weight. The classifier never sees the labels of the images that the
    nearest neighbours classify, and :class:`TrainingKNN` measures it on them.

    The first process trains it on its own part of each batch. The callback owns classifier and
    optimiser, and changes no weight and no random number of the training. A checkpoint has both.

    Args:
        images: The training images.
        seed: Decides which images are held out, as in :class:`TrainingKNN`.
    """

    def __init__(self, images: LabelledImages, seed: int) -> None:
        _, held_out = choose_images(images.targets, seed)
        self._may_train = torch.ones(len(images.targets), dtype=torch.bool)
        self._may_train[held_out] = False
        self._num_classes = len(images.classes)
        self._classifier: OnlineLinearClassifier | None = None
        self._optimizer: torch.optim.Optimizer | None = None
        self._restored: dict[str, Any] = {}
        self._rows: list[Tensor] = []  # of each batch of the epoch, those that may be trained on

    @property
    def is_trained(self) -> bool:
        """Whether this process has a classifier."""
        return self._classifier is not None

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Creates the classifier in the first process; without features it prints a line."""
        if not hasattr(pl_module, "step_features"):
            name = type(pl_module).__name__
            print_on_rank_zero(f"No online probe: {name} sets no step_features in its steps.")
            return
        if self._may_train.all() or not trainer.is_global_zero:
            return
        dim: Any = pl_module.backbone.feature_dim  # type: ignore[union-attr]
        # Its weights are drawn with the training's generator, and not used.
        with torch.random.fork_rng(devices=[]):
            self._classifier = OnlineLinearClassifier(dim, self._num_classes, topk=(1,))
        for parameter in self._classifier.parameters():
            nn.init.zeros_(parameter)
        self._classifier.to(trainer.strategy.root_device)
        self._optimizer = torch.optim.Adam(self._classifier.parameters(), lr=_LEARNING_RATE)
        if self._restored:
            self._classifier.load_state_dict(self._restored["classifier"])
            self._optimizer.load_state_dict(self._restored["optimizer"])

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Finds the rows to train on, from the sampler, so that no step waits for a GPU."""
        if self.is_trained:
            loader: Any = trainer.train_dataloader
            order = torch.tensor(loader.dataset.indices)[list(loader.sampler)]
            batches = self._may_train[order].split(loader.batch_size)
            self._rows = [batch.nonzero().flatten() for batch in batches]

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Runs a step of the classifier."""
        if self._classifier is None or self._optimizer is None:
            return
        features: Any = pl_module.step_features
        rows = self._rows[batch_idx]
        rows = rows[rows < len(features)]  # fewer mixtures than images
        if not len(rows):
            return
        rows = rows.to(features.device, non_blocking=True)
        # In 16-mixed, features may be infinite.
        known = features[rows].float().nan_to_num(0.0, 0.0, 0.0)
        loss, _ = self._classifier.training_step((known, batch[1][rows]), batch_idx)
        self._optimizer.zero_grad()
        loss.backward()
        self._optimizer.step()

    @torch.no_grad()
    def measure(self, features: Features) -> float:
        """Returns the top-1 accuracy in percent."""
        assert self._classifier is not None
        device = self._classifier.classification_head.weight.device
        batch = features.features.to(device), features.targets.to(device)
        _, logged = self._classifier.validation_step(batch, 0)
        return 100 * float(logged["val_online_cls_top1"])

    def state_dict(self) -> dict[str, Any]:
        """Returns classifier and optimiser."""
        if self._classifier is None or self._optimizer is None:
            return {}
        return {
            "classifier": self._classifier.state_dict(),
            "optimizer": self._optimizer.state_dict(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keeps both until the classifier is created."""
        self._restored = state_dict
