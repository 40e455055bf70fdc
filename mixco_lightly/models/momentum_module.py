"""What MoCo and i-Mix on MoCo share: the momentum encoder, its keys, and the optimiser."""

from __future__ import annotations

import copy

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
from mixco_lightly.loss.gather import check_equal_sizes
from mixco_lightly.loss.queue_loss import QueueLoss
from mixco_lightly.models.optimizer import OptimizerName, count_steps, create_optimizer
from mixco_lightly.models.step_log import is_first_batch_of_step
from mixco_lightly.models.sync_batchnorm import keep_activations


class MomentumModule(LightningModule):
    """Base of the modules with a query encoder, a momentum encoder and a queue of keys.

    A training step calls ``update_momentum_encoder`` and ``compute_keys``.

    Args:
        backbone: Backbone of the query encoder.
        criterion: Loss with a queue, whose dimension is also that of the projections.
        momentum: Fraction of its weights that the momentum encoder keeps in each step.
        final_momentum: Momentum in the last step, or None if it does not change.
        learning_rate: Highest learning rate.
        weight_decay: L2 penalty.
        warmup_epochs: Epochs of linear warm-up.
        optimizer: The optimiser's name.

    Attributes:
        step_features: Features of the last training step, set by it, without gradient.

    Raises:
        ValueError: If the criterion has no queue, or a momentum is not in [0, 1].
    """

    criterion: QueueLoss
    step_features: Tensor | None = None

    def __init__(
        self,
        backbone: Backbone,
        criterion: QueueLoss,
        momentum: float,
        final_momentum: float | None,
        learning_rate: float,
        weight_decay: float,
        warmup_epochs: float,
        optimizer: OptimizerName,
    ) -> None:
        super().__init__()
        name = type(self).__name__
        if criterion.queue is None:
            raise ValueError(
                f"{name} needs a loss with a queue: set its memory_bank_size=(n, dim)."
            )
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

    def current_momentum(self) -> float:
        """Returns the momentum of the trainer's current step; ``momentum`` without a trainer."""
        if self.final_momentum == self.momentum or not self._steps:
            return self.momentum
        step = self.trainer.global_step
        return cosine_schedule(step, self._steps, self.momentum, self.final_momentum)

    def update_momentum_encoder(self, batch_idx: int) -> None:
        """Moves the momentum encoder toward the query encoder, once per optimiser step.

        With accumulated gradients, it moves before the first batch of the step.

        Args:
            batch_idx: Index of the batch in its epoch.
        """
        if is_first_batch_of_step(self, batch_idx):
            self._update_momentum_encoder()

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
    def compute_keys(self, images: Tensor) -> Tensor:
        """Computes the keys of a view with the momentum encoder.

        On several devices, the images are shuffled over the devices before and the keys are put
        back in order after.

        Args:
            images: The key view, shape (N, C, H, W).

        Returns:
            Projections without gradient, shape (N, dim).

        Raises:
            ValueError: If the processes' batches differ in size.
        """
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
