"""Trains i-Mix, on MoCo and as N-pair, as LightningModules."""

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
from mixco_lightly.loss.imix_loss import IMixLoss
from mixco_lightly.models.momentum_module import MomentumModule
from mixco_lightly.models.optimizer import OptimizerName, create_optimizer
from mixco_lightly.models.step_log import is_logged_step, queue_similarities
from mixco_lightly.models.sync_batchnorm import keep_activations


class IMixMoCo(MomentumModule):
    """i-Mix [0] on MoCo v2 [1]: mixtures are the queries, plain images the keys.

    View 0 is mixed, and only its mixtures go through the query encoder. The momentum encoder
    computes the keys from view 1, shuffled over the devices as in :class:`MoCo`. A step therefore
    costs as much as one of plain MoCo.

    The query encoder never sees a plain image in training. The BatchNorm statistics that it uses
    afterwards are those of mixtures, as in the authors' code.

    - [0]: i-Mix, ICLR 2021, https://arxiv.org/abs/2010.08887
    - [1]: MoCo v2, 2020, https://arxiv.org/abs/2003.04297

    Args:
        backbone: From :func:`mixco_lightly.create_backbone`.
        criterion: Loss with a queue, whose dimension is also that of the projections.
        momentum: As in :class:`MoCo`. The default 0.999 is the authors'.
        learning_rate: Highest learning rate. The default 0.125 is the authors' for batches of 256.
        weight_decay: The default 1e-4 is the authors'.
        warmup_epochs: Epochs of linear warm-up. The authors use 10, and 5 in runs of at most 500
            epochs.
        optimizer: "sgd", the authors'; "adamw" for attention and LayerNorm; or "lars" for large
            batches.
        final_momentum: As in :class:`MoCo`. Default: it does not change.

    Attributes:
        step_features: The backbone's features of the mixtures in the last training step, without
            gradient, for a probe beside the training. With the pairs of i-Mix, row i is the mixture
            in which image i has the larger weight.

    Raises:
        TypeError: If the criterion is another loss.
        ValueError: If the criterion has no queue, or a momentum is not in [0, 1].

    Examples:
        >>> from mixco_lightly import IMixLoss, create_backbone
        >>> from mixco_lightly.models import IMixMoCo
        >>> backbone = create_backbone("test_resnet", image_size=32)
        >>> model = IMixMoCo(backbone, IMixLoss(memory_bank_size=(4096, 128)))
    """

    criterion: IMixLoss

    def __init__(
        self,
        backbone: Backbone,
        criterion: IMixLoss,
        momentum: float = 0.999,
        learning_rate: float = 0.125,
        weight_decay: float = 1e-4,
        warmup_epochs: float = 0,
        optimizer: OptimizerName = "sgd",
        final_momentum: float | None = None,
    ) -> None:
        _check_loss("IMixMoCo", criterion)
        super().__init__(
            backbone,
            criterion,
            momentum,
            final_momentum,
            learning_rate,
            weight_decay,
            warmup_epochs,
            optimizer,
        )

    def training_step(self, batch: Sequence[Any], batch_idx: int) -> Tensor:
        """Runs one step: momentum update, mixtures as queries, keys, loss.

        With accumulated gradients, the momentum encoder is updated once per optimiser step, before
        its first batch.
        """
        _, key_images = find_views(batch, count=2)
        (mixture,) = find_mixtures(batch, count=1, check_views=batch_idx == 0)
        self.update_momentum_encoder(batch_idx)
        features = self.backbone(mixture.images)
        self.step_features = features.detach()
        mixed = self.projection_head(features)
        keys = self.compute_keys(key_images)

        similarities: dict[str, Tensor] = {}
        if is_logged_step(self):
            assert self.criterion.queue is not None
            # Of a mixture and the key of its first image; before the loss, which adds the keys.
            similarities = queue_similarities(mixed, keys[mixture.first], self.criterion.queue.keys)
        loss: Tensor = self.criterion(mixed, keys, mixture)
        if similarities:
            values = {"loss": loss, "lam": mixture.lam.mean(), **similarities}
            self.log_dict(values, sync_dist=True)
        return loss


class IMixNPair(LightningModule):
    """i-Mix [0] with the N-pair loss: one encoder computes the mixtures and the keys.

    View 0 is mixed. Its mixtures and the plain images of view 1 share one forward, so their
    BatchNorm statistics are computed together, and both get a gradient. There is no queue and no
    momentum encoder.

    - [0]: i-Mix, ICLR 2021, https://arxiv.org/abs/2010.08887

    Args:
        backbone: From :func:`mixco_lightly.create_backbone`.
        criterion: Loss without a queue.
        projection_dim: Dimension of the projections. The default 128 is the authors'.
        learning_rate: Highest learning rate. The default 0.125 is the authors' for batches of 256.
        weight_decay: The default 1e-4 is the authors'.
        warmup_epochs: As in :class:`IMixMoCo`.
        optimizer: "sgd", the authors'; "adamw" for attention and LayerNorm; or "lars" for large
            batches.

    Attributes:
        step_features: The backbone's features (N, feature_dim) of view 1 in the last training step,
            without gradient, for a probe beside the training.

    Raises:
        TypeError: If the criterion is another loss.
        ValueError: If the criterion has a queue.

    Examples:
        >>> from mixco_lightly import IMixLoss, create_backbone
        >>> from mixco_lightly.models import IMixNPair
        >>> backbone = create_backbone("test_resnet", image_size=32)
        >>> model = IMixNPair(backbone, IMixLoss())
    """

    step_features: Tensor | None = None

    def __init__(
        self,
        backbone: Backbone,
        criterion: IMixLoss,
        projection_dim: int = 128,
        learning_rate: float = 0.125,
        weight_decay: float = 1e-4,
        warmup_epochs: float = 0,
        optimizer: OptimizerName = "sgd",
    ) -> None:
        super().__init__()
        _check_loss("IMixNPair", criterion)
        if criterion.queue is not None:
            raise ValueError("IMixNPair needs a loss without a queue: set its memory_bank_size=0.")
        dim = backbone.feature_dim
        self.backbone = backbone
        self.projection_head = SimCLRProjectionHead(dim, dim, projection_dim)
        self.criterion = criterion
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.warmup_epochs = warmup_epochs
        self.optimizer = optimizer

    def forward(self, images: Tensor) -> Tensor:
        """Computes features (N, feature_dim) of images (N, C, H, W)."""
        features: Tensor = self.backbone(images)
        return features

    def setup(self, stage: str) -> None:
        """Makes Lightning's ``sync_batchnorm`` keep the activations in timm's layers."""
        keep_activations(self)

    def training_step(self, batch: Sequence[Any], batch_idx: int) -> Tensor:
        """Runs one step: mixtures of view 0 and images of view 1 in one forward, loss."""
        _, key_images = find_views(batch, count=2)
        (mixture,) = find_mixtures(batch, count=1, check_views=batch_idx == 0)
        images = torch.cat([mixture.images, key_images])  # (m + n) x C x H x W
        features = self.backbone(images)
        self.step_features = features[len(mixture.images) :].detach()
        projections = self.projection_head(features)
        mixed, keys = projections.split([len(mixture.images), len(key_images)])
        loss: Tensor = self.criterion(mixed, keys, mixture)
        if is_logged_step(self):
            self.log_dict({"loss": loss, "lam": mixture.lam.mean()}, sync_dist=True)
        return loss

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """Returns the optimiser with a cosine schedule."""
        return create_optimizer(
            self, self.optimizer, self.learning_rate, self.weight_decay, self.warmup_epochs
        )


def _check_loss(module: str, criterion: IMixLoss) -> None:
    if not isinstance(criterion, IMixLoss):
        raise TypeError(f"{module} needs an IMixLoss, got {type(criterion).__name__}.")
