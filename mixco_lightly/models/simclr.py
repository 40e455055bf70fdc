"""Trains SimCLR with MixCo or Un-Mix, as a LightningModule."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from lightly.models.modules import SimCLRProjectionHead
from pytorch_lightning import LightningModule
from pytorch_lightning.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor

from mixco_lightly.backbones.backbone import Backbone
from mixco_lightly.data.collate import find_mixtures, find_views
from mixco_lightly.data.mixture import Mixture
from mixco_lightly.loss.plain_and_mixed_loss import PlainAndMixedLoss
from mixco_lightly.models.chunks import run_in_chunks
from mixco_lightly.models.optimizer import OptimizerName, create_optimizer
from mixco_lightly.models.step_log import batch_similarities, is_logged_step, log_step
from mixco_lightly.models.sync_batchnorm import keep_activations


class SimCLR(LightningModule):
    """SimCLR [0] with MixCo [1] or Un-Mix [2]: both views are mixed.

    As in MixCo's code, each view and the mixtures of each view have their own forward. A
    view's mixtures are contrasted with the plain projections of the other view, which get a
    gradient too, and the terms of the two views are averaged. (In a batch of two or three images
    each view has one mixture; the two share a forward, because BatchNorm needs at least two.)

    - [0]: SimCLR, 2020, https://arxiv.org/abs/2002.05709
    - [1]: MixCo, 2020, https://arxiv.org/abs/2010.06300
    - [2]: Un-Mix, AAAI 2022, https://arxiv.org/abs/2003.05438

    Args:
        backbone: From :func:`mixco_lightly.create_backbone`.
        criterion: :class:`mixco_lightly.MixCoLoss` or :class:`mixco_lightly.UnMixLoss` without a
            queue. With ``mix_weight=0`` this is plain SimCLR and batches need no mixtures. A
            batch whose list of mixtures is empty has no mixtures' term.
        projection_dim: Dimension of the projections; 128 in SimCLR and in the authors' code.
        learning_rate: Highest learning rate. The default 0.3 is the authors' for batches of 256.
        weight_decay: The default 1e-6 is SimCLR's and the authors'.
        warmup_epochs: Epochs of linear warm-up; the authors use none.
        optimizer: "sgd", the authors'; "adamw" for attention and LayerNorm; or "lars" for large
            batches.
        chunk_size: Most images that the backbone keeps activations of; see :func:`run_in_chunks`.
            The projection head always has the whole batch. Default: all images.

    Attributes:
        step_features: The backbone's features (N, feature_dim) of view 0 in the last training step,
            without gradient, for a probe beside the training.

    Raises:
        TypeError: If the criterion is another loss.
        ValueError: If the criterion has a queue.

    Examples:
        >>> from mixco_lightly import MixCoLoss, create_backbone
        >>> from mixco_lightly.models import SimCLR
        >>> backbone = create_backbone("test_resnet", image_size=32)
        >>> model = SimCLR(backbone, MixCoLoss(temperature=0.5, mix_temperature=0.5))
    """

    step_features: Tensor | None = None

    def __init__(
        self,
        backbone: Backbone,
        criterion: PlainAndMixedLoss,
        projection_dim: int = 128,
        learning_rate: float = 0.3,
        weight_decay: float = 1e-6,
        warmup_epochs: float = 0,
        optimizer: OptimizerName = "sgd",
        chunk_size: int = 0,
    ) -> None:
        super().__init__()
        if not isinstance(criterion, PlainAndMixedLoss):
            raise TypeError(
                f"SimCLR needs a MixCoLoss or an UnMixLoss, got {type(criterion).__name__}. For "
                "an IMixLoss use IMixNPair."
            )
        if criterion.queue is not None:
            raise ValueError("SimCLR needs a loss without a queue: set its memory_bank_size=0.")
        dim = backbone.feature_dim
        self.backbone = backbone
        self.projection_head = SimCLRProjectionHead(dim, dim, projection_dim)
        self.criterion = criterion
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.warmup_epochs = warmup_epochs
        self.optimizer = optimizer
        self.chunk_size = chunk_size

    def forward(self, images: Tensor) -> Tensor:
        """Computes features (N, feature_dim) of images (N, C, H, W)."""
        features: Tensor = self.backbone(images)
        return features

    def setup(self, stage: str) -> None:
        """Makes Lightning's ``sync_batchnorm`` keep the activations in timm's layers."""
        keep_activations(self)

    def training_step(self, batch: Sequence[Any], batch_idx: int) -> Tensor:
        """Runs one step: both views and, if there are any, both views' mixtures."""
        view0, view1 = find_views(batch, count=2)
        features0 = self._embed(view0)
        self.step_features = features0.detach()
        z0, z1 = self.projection_head(features0), self._project(view1)
        mixtures: list[Mixture] = []
        if self.criterion.mix_weight > 0:
            check_views = batch_idx == 0
            mixtures = find_mixtures(batch, count=2, check_views=check_views, may_be_plain=True)
        if mixtures:
            mixture0, mixture1 = mixtures
            mixed0, mixed1 = self._project_mixtures(mixture0.images, mixture1.images)
            loss = self.criterion.forward_components(z0, z1, mixed0, mixture0, mixed1, mixture1)
        else:
            loss = self.criterion.forward_components(z0, z1)
        if is_logged_step(self):
            log_step(self, loss, batch_similarities(z0, z1), mixtures)
        return loss.total

    def _embed(self, images: Tensor) -> Tensor:
        features: Tensor = run_in_chunks(self.backbone, images, self.chunk_size)
        return features

    def _project(self, images: Tensor) -> Tensor:
        projections: Tensor = self.projection_head(self._embed(images))
        return projections

    def _project_mixtures(self, images0: Tensor, images1: Tensor) -> tuple[Tensor, Tensor]:
        if len(images0) > 1:
            return self._project(images0), self._project(images1)
        # Batches of two and three have one mixture per view. BatchNorm raises for a single image.
        mixed0, mixed1 = self._project(torch.cat([images0, images1])).split(1)
        return mixed0, mixed1

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """Returns the optimiser with a cosine schedule."""
        return create_optimizer(
            self, self.optimizer, self.learning_rate, self.weight_decay, self.warmup_epochs
        )
