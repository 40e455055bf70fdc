"""Trains MoCo v2 with MixCo or Un-Mix, as a LightningModule."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mixco_lightly.backbones.backbone import Backbone
from mixco_lightly.data.collate import find_mixtures, find_views
from mixco_lightly.data.mixture import Mixture
from mixco_lightly.loss.plain_and_mixed_loss import PlainAndMixedLoss
from mixco_lightly.models.momentum_module import MomentumModule
from mixco_lightly.models.optimizer import OptimizerName
from mixco_lightly.models.step_log import is_logged_step, log_step, queue_similarities


class MoCo(MomentumModule):
    """MoCo v2 [0] with MixCo [1] or Un-Mix [2]: query encoder, momentum encoder, queue of keys.

    View 0 is the query view, which is also mixed. The momentum encoder computes the keys from
    view 1. Queries and mixtures share one forward of the query encoder. With MixCo's n / 2
    mixtures its BatchNorm statistics are computed over 1.5 batches, as in the authors' code.

    Un-Mix's code runs queries and its n mixtures through the encoder one after the other, and its
    CIFAR script also splits each batch into eight for BatchNorm. Here they share a forward too: it
    costs the same, and MixCo and Un-Mix then differ only in their mixtures and their loss.

    BatchNorm statistics can reveal which keys were computed in the same batch as a query's
    positive. On several devices, images are therefore shuffled over the devices before the keys
    are computed, as in MoCo. On one device keys are not shuffled, nor are they in the authors'
    code, whose split BatchNorm is never used in pretraining.

    On several devices, set ``gather_distributed=True`` in the loss: the queue then holds the keys
    of all processes and is equal on all of them. Otherwise each process has a queue of its own
    keys, and a checkpoint saves only the first process's.

    - [0]: MoCo v2, 2020, https://arxiv.org/abs/2003.04297
    - [1]: MixCo, 2020, https://arxiv.org/abs/2010.06300
    - [2]: Un-Mix, AAAI 2022, https://arxiv.org/abs/2003.05438

    Args:
        backbone: From :func:`mixco_lightly.create_backbone`.
        criterion: :class:`mixco_lightly.MixCoLoss` or :class:`mixco_lightly.UnMixLoss` with a
            queue, whose dimension is also that of the projections. With ``mix_weight=0``
            this is plain MoCo v2 and batches need no mixtures. A batch whose list of mixtures is
            empty has no mixtures' term.
        momentum: Fraction of its weights that the momentum encoder keeps in each step. The
            default 0.999 is MoCo's; short runs need less, such as 0.99.
        final_momentum: Momentum in the last step; it follows half a cosine from ``momentum``, as in
            BYOL and MoCo v3, whose final momentum is 1. Default: it does not change.
        learning_rate: Highest learning rate. The default 0.03 is MoCo's for batches of 256.
        weight_decay: The default 1e-4 is MoCo's and the authors'.
        warmup_epochs: Epochs of linear warm-up; the authors use none.
        optimizer: "sgd", the authors'; "adamw" for attention and LayerNorm; or "lars" for large
            batches.

    Attributes:
        step_features: The backbone's features (N, feature_dim) of view 0 in the last training step,
            without gradient, for a probe beside the training.

    Raises:
        TypeError: If the criterion is another loss.
        ValueError: If the criterion has no queue, or a momentum is not in [0, 1].

    Examples:
        >>> from mixco_lightly import MixCoLoss, create_backbone
        >>> from mixco_lightly.models import MoCo
        >>> backbone = create_backbone("test_resnet", image_size=32)
        >>> model = MoCo(backbone, MixCoLoss(memory_bank_size=(4096, 128)))
    """

    criterion: PlainAndMixedLoss

    def __init__(
        self,
        backbone: Backbone,
        criterion: PlainAndMixedLoss,
        momentum: float = 0.999,
        learning_rate: float = 0.03,
        weight_decay: float = 1e-4,
        warmup_epochs: float = 0,
        optimizer: OptimizerName = "sgd",
        final_momentum: float | None = None,
    ) -> None:
        if not isinstance(criterion, PlainAndMixedLoss):
            raise TypeError(
                f"MoCo needs a MixCoLoss or an UnMixLoss, got {type(criterion).__name__}. For an "
                "IMixLoss use IMixMoCo."
            )
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
        """Runs one step: momentum update, queries with mixtures, keys, loss.

        With accumulated gradients, the momentum encoder is updated once per optimiser step, before
        its first batch.
        """
        query_images, key_images = find_views(batch, count=2)
        self.update_momentum_encoder(batch_idx)

        mixtures: list[Mixture] = []
        if self.criterion.mix_weight > 0:
            check_views = batch_idx == 0
            mixtures = find_mixtures(batch, count=1, check_views=check_views, may_be_plain=True)
        if mixtures:
            (mixture,) = mixtures
            images = torch.cat([query_images, mixture.images])  # (n + m) x C x H x W
            features = self.backbone(images)
            projections = self.projection_head(features)
            queries, mixed = projections.split([len(query_images), len(mixture.images)])
        else:
            features = self.backbone(query_images)
            queries = self.projection_head(features)
            mixed, mixture = None, None
        self.step_features = features[: len(query_images)].detach()
        keys = self.compute_keys(key_images)

        similarities: dict[str, Tensor] = {}
        if is_logged_step(self):
            assert self.criterion.queue is not None
            # Before the loss, which adds these keys to the queue.
            similarities = queue_similarities(queries, keys, self.criterion.queue.keys)
        loss = self.criterion.forward_components(queries, keys, mixed, mixture)
        if similarities:
            log_step(self, loss, similarities, mixtures)
        return loss.total
