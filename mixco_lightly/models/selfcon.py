"""Trains SelfCon, in one stage or two, and its baselines, as LightningModules."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from lightly.models.modules import MoCoProjectionHead
from pytorch_lightning import LightningModule
from pytorch_lightning.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from mixco_lightly.backbones.backbone import Backbone
from mixco_lightly.backbones.multi_exit import MultiExitBackbone
from mixco_lightly.data.collate import find_mixtures, find_views
from mixco_lightly.data.mixture import Mixture
from mixco_lightly.loss.mixco_loss import MixCoLoss
from mixco_lightly.loss.selfcon_loss import SelfConLoss
from mixco_lightly.models.chunks import run_in_chunks
from mixco_lightly.models.optimizer import OptimizerName, create_optimizer
from mixco_lightly.models.step_log import forget_mixed_step, is_logged_step
from mixco_lightly.models.sync_batchnorm import keep_activations

# The authors' cosine ends at this fraction of the highest learning rate.
_FINAL_FACTOR = 1e-3


class SelfCon(LightningModule):
    """SelfCon's first stage [0]: contrasts the exits of one network with each other.

    Each exit has its own projection head. A batch has one or more views of each image, and all
    views go through the network in one forward, as in the authors' code. Without sub-networks,
    this module trains SupCon (with labels) or SimCLR (two views, no labels, a criterion with
    ``num_views=2``); see :class:`mixco_lightly.SelfConLoss`.

    The learning rate follows a cosine in every step, after a linear warm-up from zero, and ends at
    a thousandth of the highest. The authors end there too, but change it once per epoch, and their
    warm-up for batches of 1024 starts at 0.01.

    Without labels, MixCo can be added: with a ``mix_criterion``, mixtures of the images join the
    forward, and MixCo's term for the backbone's projections is added to the loss. A view's
    mixtures are contrasted with the plain projections of the other view, or of the same view if
    there is only one. More than two views raise an error. With labels, the two contradict each
    other: for MixCo, all images but the two of a pair are negatives, including those of the same
    class, which SelfCon pulls together.

    - [0]: SelfCon, 2021, https://arxiv.org/abs/2106.15499; settings as in
      raymin0223/self-contrastive-learning at commit 5e7c2c5

    Args:
        network: The backbone with its sub-networks.
        criterion: The loss of all exits' projections.
        supervised: Whether the loss gets the labels.
        mix_criterion: Without labels, a loss without a queue whose term for mixtures is added with
            its ``mix_weight``. Batches must then have mixtures of each view, or an empty list of
            mixtures for no such term.
        projection_dim: Dimension of the projections.
        batch_norm: Whether the projection heads have BatchNorm, as SimCLR's in Lightly. The default
            False is the authors'. Untrained pooled features of all images point in nearly the same
            direction; without BatchNorm so do their projections, and short runs hardly change that.
        learning_rate: Highest learning rate. The default 0.5 is the authors' for batches of 1024.
        weight_decay: The default 1e-4 is the authors'.
        warmup_epochs: Epochs of linear warm-up; the authors use 10 for batches of at least 1024,
            and none below.
        optimizer: "sgd", the authors'; "adamw" for attention and LayerNorm; or "lars" for large
            batches.
        chunk_size: Most images that the network keeps activations of; see :func:`run_in_chunks`.
            The projection heads always have the whole batch. Default: all images.

    Attributes:
        step_features: The backbone's features (N, feature_dim) of view 0 in the last training step,
            without gradient, for a probe beside the training.

    Raises:
        ValueError: If mix_criterion has a queue, or is given for supervised training.

    Examples:
        >>> from mixco_lightly import MultiExitBackbone, SelfConLoss
        >>> from mixco_lightly.models import SelfCon
        >>> network = MultiExitBackbone("test_resnet", image_size=32, exits=(2,))
        >>> model = SelfCon(network, SelfConLoss())
    """

    step_features: Tensor | None = None

    def __init__(
        self,
        network: MultiExitBackbone,
        criterion: SelfConLoss,
        supervised: bool = True,
        mix_criterion: MixCoLoss | None = None,
        projection_dim: int = 128,
        batch_norm: bool = False,
        learning_rate: float = 0.5,
        weight_decay: float = 1e-4,
        warmup_epochs: float = 0,
        optimizer: OptimizerName = "sgd",
        chunk_size: int = 0,
    ) -> None:
        super().__init__()
        if mix_criterion is not None and supervised:
            raise ValueError(
                "MixCo's term treats images of the same class as negatives: mix_criterion needs "
                "supervised=False."
            )
        if mix_criterion is not None and mix_criterion.queue is not None:
            raise ValueError("mix_criterion must have no queue: set its memory_bank_size=0.")
        dim = network.feature_dim
        self.network = network
        self.projection_heads = nn.ModuleList(
            MoCoProjectionHead(dim, dim, projection_dim, batch_norm=batch_norm)
            for _ in range(len(network.exits) + 1)
        )
        self.criterion = criterion
        self.supervised = supervised
        self.mix_criterion = mix_criterion
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.warmup_epochs = warmup_epochs
        self.optimizer = optimizer
        self.chunk_size = chunk_size

    @property
    def backbone(self) -> Backbone:
        """The backbone without its sub-networks."""
        return self.network.backbone

    def forward(self, images: Tensor) -> Tensor:
        """Computes the backbone's features (N, feature_dim) of images (N, C, H, W)."""
        features: Tensor = self.backbone(images)
        return features

    def setup(self, stage: str) -> None:
        """Makes Lightning's ``sync_batchnorm`` keep the activations in timm's layers."""
        keep_activations(self)

    def training_step(self, batch: Sequence[Any], batch_idx: int) -> Tensor:
        """Runs one step: all views and, with a mix_criterion, their mixtures in one forward.

        Raises:
            ValueError: If there is a mix_criterion and each image has more than two views.
        """
        views = find_views(batch)
        mixtures: list[Mixture] = []
        if self.mix_criterion is not None:
            if len(views) > 2:
                raise ValueError(
                    "MixCo's term contrasts the mixtures of one view with the other view, but the "
                    f"batch has {len(views)} views of each image. Use one or two views, or no "
                    "mix_criterion."
                )
            check_views = batch_idx == 0
            mixtures = find_mixtures(batch, len(views), check_views, may_be_plain=True)
        parts = [*views, *(mixture.images for mixture in mixtures)]
        features = run_in_chunks(self.network, torch.cat(parts), self.chunk_size)
        self.step_features = features[-1][: len(views[0])].detach()
        projections = self._project(features).split([len(part) for part in parts])
        plain, mixed = projections[: len(views)], projections[len(views) :]
        labels = batch[1].repeat(len(views)) if self.supervised else None
        contrast = self.criterion(torch.cat(plain), labels)
        loss, logged = contrast, {"contrast": contrast}
        if self.mix_criterion is not None and mixtures:
            mix = self._mix_term(self.mix_criterion, plain, mixed, mixtures)
            loss = contrast + self.mix_criterion.mix_weight * mix
            logged["mix"] = mix
        if is_logged_step(self):
            if not mixtures:
                forget_mixed_step(self)
            self.log_dict({"loss": loss, **logged}, sync_dist=True)
        return loss

    def _project(self, features: Sequence[Tensor]) -> Tensor:
        """Computes the projections of all exits, (N, E, projection_dim)."""
        pairs = zip(self.projection_heads, features, strict=True)
        return torch.stack([head(x) for head, x in pairs], dim=1)

    @staticmethod
    def _mix_term(
        criterion: MixCoLoss,
        plain: Sequence[Tensor],
        mixed: Sequence[Tensor],
        mixtures: Sequence[Mixture],
    ) -> Tensor:
        z = [projections[:, -1] for projections in plain]
        z_mixed = [projections[:, -1] for projections in mixed]
        if len(z) == 1:  # also computes the contrast of the view with itself, which is not used
            return criterion.forward_components(z[0], z[0], z_mixed[0], mixtures[0]).mix
        return criterion.forward_components(
            z[0], z[1], z_mixed[0], mixtures[0], z_mixed[1], mixtures[1]
        ).mix

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """Returns the optimiser with a cosine schedule."""
        return create_optimizer(
            self,
            self.optimizer,
            self.learning_rate,
            self.weight_decay,
            self.warmup_epochs,
            _FINAL_FACTOR,
        )


class SelfConClassifier(LightningModule):
    """SelfCon in one stage [0]: trains classifiers on all exits with an additional SelfCon loss.

    The loss is the authors' for joint training,

        CE(backbone) + exit_weight * sum of CE(sub-networks) + contrast_weight * SelfCon,

    where each exit has a linear projection for the third term. The backbone's projection is never
    trained, but passes the gradient on to the backbone. With ``criterion=None`` there is no third
    term: this is deep supervision or, without sub-networks, the cross-entropy baseline.

    The criterion's temperature is 0.1 in the authors' first release and 3.0 in their last, which
    seems an oversight: 3.0 used to be the temperature of distillation.

    - [0]: SelfCon, 2021, https://arxiv.org/abs/2106.15499; raymin0223/self-contrastive-learning at
      commit 5e7c2c5, main_ce.py

    Args:
        network: The backbone with its sub-networks.
        num_classes: Number of classes.
        criterion: The loss of all exits' projections, or None.
        exit_weight: Weight of the sub-networks' cross-entropies. The default 1 is the authors'.
        contrast_weight: Weight of the criterion. The default 0.8 is the authors'.
        projection_dim: Dimension of the projections.
        learning_rate: Highest learning rate. The default 0.8 is the authors' for batches of 1024.
        weight_decay: The default 1e-4 is the authors'.
        warmup_epochs: Epochs of linear warm-up; see :class:`SelfCon`.
        optimizer: "sgd", the authors'; "adamw" for attention and LayerNorm; or "lars" for large
            batches.
        chunk_size: As in :class:`SelfCon`.

    Attributes:
        step_features: As in :class:`SelfCon`.
        classifiers: Linear layers in the order of the exits, the backbone's last.

    Raises:
        ValueError: If num_classes is less than 2, or if there is a criterion but no sub-network.

    Examples:
        >>> from mixco_lightly import MultiExitBackbone, SelfConLoss
        >>> from mixco_lightly.models import SelfConClassifier
        >>> network = MultiExitBackbone("test_resnet", image_size=32, exits=(2,))
        >>> model = SelfConClassifier(network, num_classes=10, criterion=SelfConLoss())
    """

    step_features: Tensor | None = None

    def __init__(
        self,
        network: MultiExitBackbone,
        num_classes: int,
        criterion: SelfConLoss | None = None,
        exit_weight: float = 1.0,
        contrast_weight: float = 0.8,
        projection_dim: int = 128,
        learning_rate: float = 0.8,
        weight_decay: float = 1e-4,
        warmup_epochs: float = 0,
        optimizer: OptimizerName = "sgd",
        chunk_size: int = 0,
    ) -> None:
        super().__init__()
        if num_classes < 2:
            raise ValueError(f"num_classes must be at least 2, got {num_classes}.")
        if criterion is not None and not network.exits:
            raise ValueError(
                "SelfCon contrasts exits, but the network has one: add at least one sub-network."
            )
        num_exits, dim = len(network.exits) + 1, network.feature_dim
        self.network = network
        self.classifiers = nn.ModuleList(nn.Linear(dim, num_classes) for _ in range(num_exits))
        self.projections = nn.ModuleList()
        if criterion is not None:
            self.projections.extend(nn.Linear(dim, projection_dim) for _ in range(num_exits))
            self.projections[-1].requires_grad_(False)
        self.criterion = criterion
        self.exit_weight = exit_weight
        self.contrast_weight = contrast_weight
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.warmup_epochs = warmup_epochs
        self.optimizer = optimizer
        self.chunk_size = chunk_size

    @property
    def backbone(self) -> Backbone:
        """The backbone without its sub-networks."""
        return self.network.backbone

    def forward(self, images: Tensor) -> Tensor:
        """Computes the backbone's features (N, feature_dim) of images (N, C, H, W)."""
        features: Tensor = self.backbone(images)
        return features

    def classify(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Computes logits (N, num_classes) of each exit from its features (N, feature_dim)."""
        return [classifier(x) for classifier, x in zip(self.classifiers, features, strict=True)]

    def setup(self, stage: str) -> None:
        """Makes Lightning's ``sync_batchnorm`` keep the activations in timm's layers."""
        keep_activations(self)

    def training_step(self, batch: Sequence[Any], batch_idx: int) -> Tensor:
        """Runs one step: cross-entropy of all exits and, with a criterion, their contrast."""
        views, targets = find_views(batch), batch[1]
        targets = targets.repeat(len(views))
        features = run_in_chunks(self.network, torch.cat(views), self.chunk_size)
        self.step_features = features[-1][: len(views[0])].detach()
        *exits, last = (cross_entropy(logits, targets) for logits in self.classify(features))
        loss = last + self.exit_weight * sum(exits)
        logged = {"cross_entropy": last}
        if self.criterion is not None:
            pairs = zip(self.projections, features, strict=True)
            z = torch.stack([projection(x) for projection, x in pairs], dim=1)  # n x e x c
            contrast = self.criterion(z, targets)
            loss = loss + self.contrast_weight * contrast
            logged["contrast"] = contrast
        if is_logged_step(self):
            self.log_dict({"loss": loss, **logged}, sync_dist=True)
        return loss

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """Returns the optimiser with a cosine schedule."""
        return create_optimizer(
            self,
            self.optimizer,
            self.learning_rate,
            self.weight_decay,
            self.warmup_epochs,
            _FINAL_FACTOR,
        )
