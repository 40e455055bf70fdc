"""Trains MoCo v2 with MixCo, as a LightningModule."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from lightly.models.modules import MoCoProjectionHead
from lightly.models.utils import batch_shuffle, batch_unshuffle, deactivate_requires_grad
from lightly.utils import dist
from lightly.utils.scheduler import cosine_schedule
from pytorch_lightning import LightningModule
from pytorch_lightning.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, distributed
from torch.optim.swa_utils import get_ema_multi_avg_fn

from mixco_lightly.backbones.backbone import Backbone
from mixco_lightly.data.collate import find_mixtures, find_views
from mixco_lightly.loss.gather import check_equal_sizes
from mixco_lightly.loss.mixco_loss import MixCoLoss
from mixco_lightly.models.optimizer import OptimizerName, count_steps, create_optimizer
from mixco_lightly.models.step_log import (
    is_first_batch_of_step,
    is_logged_step,
    log_step,
    queue_similarities,
)
from mixco_lightly.models.sync_batchnorm import keep_activations


class MoCo(LightningModule):
    """MoCo v2 [0] with MixCo [1]: a query encoder, a momentum encoder and a queue of keys.

    View 0 is the query view, which is also mixed. The momentum encoder computes the keys from
    view 1. As in the authors' code, queries and mixtures share one forward of the query encoder,
    so its BatchNorm statistics are computed over 1.5 batches.

    BatchNorm statistics can reveal which keys were computed in the same batch as a query's
    positive. On several devices, images are therefore shuffled over the devices before the keys
    are computed, as in MoCo. On one device keys are not shuffled, nor are they in the authors'
    code, whose split BatchNorm is never used in pretraining.

    On several devices, set ``gather_distributed=True`` in the loss: the queue then holds the keys
    of all processes and is equal on all of them. Otherwise each process has a queue of its own
    keys, and a checkpoint saves only the first process's.

    - [0]: MoCo v2, 2020, https://arxiv.org/abs/2003.04297
    - [1]: MixCo, 2020, https://arxiv.org/abs/2010.06300

    Args:
        backbone: From :func:`mixco_lightly.create_backbone`.
        criterion: Loss with a queue, whose dimension is also that of the projections. With
            ``mix_weight=0`` this is plain MoCo v2 and batches need no mixtures.
        momentum: Fraction of its weights that the momentum encoder keeps in each step. The
            default 0.999 is MoCo's; short runs need less, such as 0.99.
        final_momentum: Momentum in the last step; it follows half a cosine from ``momentum``, as in
            BYOL and MoCo v3, whose final momentum is 1. Default: it does not change.
        learning_rate: Highest learning rate. The default 0.03 is MoCo's for batches of 256.
        weight_decay: The default 1e-4 is MoCo's and the authors'.
        warmup_epochs: Epochs of linear warm-up; the authors use none.
        optimizer: "sgd", the authors'; "adamw" for attention and LayerNorm; or "lars" for large
            batches.

    Raises:
        ValueError: If the criterion has no queue, or a momentum is not in [0, 1].

    Examples:
        >>> from mixco_lightly import MixCoLoss, create_backbone
        >>> from mixco_lightly.models import MoCo
        >>> backbone = create_backbone("test_resnet", image_size=32)
        >>> model = MoCo(backbone, MixCoLoss(memory_bank_size=(4096, 128)))
    """

    def __init__(
        self,
        backbone: Backbone,
        criterion: MixCoLoss,
        momentum: float = 0.999,
        learning_rate: float = 0.03,
        weight_decay: float = 1e-4,
        warmup_epochs: float = 0,
        optimizer: OptimizerName = "sgd",
        final_momentum: float | None = None,
    ) -> None:
        super().__init__()
        if criterion.queue is None:
            raise ValueError("MoCo needs a loss with a queue: set its memory_bank_size=(n, dim).")
        if not 0 <= momentum <= 1:
            raise ValueError(f"momentum must be in [0, 1], got {momentum}.")
        if final_momentum is not None and not 0 <= final_momentum <= 1:
            raise ValueError(f"final_momentum must be in [0, 1], got {final_momentum}.")
        dim = backbone.feature_dim
        self.backbone = backbone
        self.projection_head = MoCoProjectionHead(dim, dim, criterion.queue.keys.shape[1])
        self.backbone_momentum = copy.deepcopy(self.backbone)
        self.projection_head_momentum = copy.deepcopy(self.projection_head)
        deactivate_requires_grad(self.backbone_momentum)
        deactivate_requires_grad(self.projection_head_momentum)
        self.criterion = criterion
        # DDP would broadcast rank 0's queue in each forward. That is not needed with gathered keys,
        # which keep the queues equal, and wrong without them, as each rank has its own queue.
        self._ddp_params_and_buffers_to_ignore = [
            f"criterion.queue.{name}" for name, _ in criterion.queue.named_buffers()
        ]
        self.momentum = momentum
        self.final_momentum = momentum if final_momentum is None else final_momentum
        self._steps = 0  # of the whole training; known when it starts
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

    def on_train_start(self) -> None:
        """Counts the steps; broadcasts rank 0's queue if gathered keys keep the queues equal."""
        self._steps, _ = count_steps(self.trainer, 0)
        if self.criterion.gather_distributed and dist.world_size() > 1:
            assert self.criterion.queue is not None
            for buffer in self.criterion.queue.buffers():
                distributed.broadcast(buffer, src=0)

    def training_step(self, batch: Sequence[Any], batch_idx: int) -> Tensor:
        """Runs one step: momentum update, queries with mixtures, keys, loss.

        With accumulated gradients, the momentum encoder is updated once per optimiser step, before
        its first batch.
        """
        query_images, key_images = find_views(batch, count=2)
        if is_first_batch_of_step(self, batch_idx):
            self._update_momentum_encoder()

        if self.criterion.mix_weight > 0:
            (mixture,) = find_mixtures(batch, count=1, check_views=batch_idx == 0)
            images = torch.cat([query_images, mixture.images])  # 1.5n x C x H x W
            projections = self.projection_head(self.backbone(images))
            queries, mixed = projections.split([len(query_images), len(mixture.images)])
        else:
            queries = self.projection_head(self.backbone(query_images))
            mixed, mixture = None, None
        keys = self._keys(key_images)

        similarities: dict[str, Tensor] = {}
        if is_logged_step(self):
            assert self.criterion.queue is not None
            # Before the loss, which adds these keys to the queue.
            similarities = queue_similarities(queries, keys, self.criterion.queue.keys)
        loss = self.criterion.forward_components(queries, keys, mixed, mixture)
        if similarities:
            log_step(self, loss, similarities, [mixture] if mixture else [])
        return loss.total

    def current_momentum(self) -> float:
        """Returns the momentum of the trainer's current step; ``momentum`` without a trainer."""
        if self.final_momentum == self.momentum or not self._steps:
            return self.momentum
        step = self.trainer.global_step
        return cosine_schedule(step, self._steps, self.momentum, self.final_momentum)

    def _update_momentum_encoder(self) -> None:
        # Does what Lightly's update_momentum does, in one fused call for all parameters.
        pairs = [
            (self.backbone, self.backbone_momentum),
            (self.projection_head, self.projection_head_momentum),
        ]
        new = [p.detach() for module, _ in pairs for p in module.parameters()]
        old = [p for _, module in pairs for p in module.parameters()]
        get_ema_multi_avg_fn(self.current_momentum())(old, new, None)

    @torch.no_grad()
    def _keys(self, images: Tensor) -> Tensor:
        is_distributed = dist.world_size() > 1
        if is_distributed:
            # The shuffle gathers the images; gloo aborts the processes if batches are unequal.
            check_equal_sizes(len(images))
            images, shuffle = batch_shuffle(images, distributed=True)
        keys: Tensor = self.projection_head_momentum(self.backbone_momentum(images))
        return batch_unshuffle(keys, shuffle, distributed=True) if is_distributed else keys

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """Returns the optimiser with a cosine schedule."""
        return create_optimizer(
            self, self.optimizer, self.learning_rate, self.weight_decay, self.warmup_epochs
        )
