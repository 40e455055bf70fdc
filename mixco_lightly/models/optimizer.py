"""The optimiser and schedule that the methods share."""

from __future__ import annotations

from lightly.utils.scheduler import CosineWarmupScheduler
from pytorch_lightning import LightningModule
from pytorch_lightning.utilities.types import OptimizerLRSchedulerConfig
from torch.optim import SGD


def create_sgd(
    module: LightningModule,
    learning_rate: float,
    weight_decay: float,
    warmup_epochs: float,
    final_factor: float = 0.0,
) -> OptimizerLRSchedulerConfig:
    """SGD with momentum 0.9 and a cosine schedule, for a module with a trainer.

    Args:
        module: Its parameters that require a gradient are trained.
        learning_rate: Highest learning rate.
        weight_decay: L2 penalty, on all parameters as in the authors' code.
        warmup_epochs: Epochs of linear warm-up from zero, before the cosine.
        final_factor: Part of the highest learning rate that the cosine ends at.

    Returns:
        What ``configure_optimizers`` returns. The schedule moves with every step.

    Raises:
        ValueError: If the warm-up is not shorter than the training.
    """
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    optimizer = SGD(parameters, lr=learning_rate, momentum=0.9, weight_decay=weight_decay)
    total_steps = int(module.trainer.estimated_stepping_batches)
    epochs = module.trainer.max_epochs or 1
    if not 0 <= warmup_epochs < epochs:
        raise ValueError(f"warmup_epochs must be in [0, {epochs}), got {warmup_epochs}.")
    warmup_steps = round(total_steps * warmup_epochs / epochs)
    scheduler = CosineWarmupScheduler(
        optimizer, warmup_epochs=warmup_steps, max_epochs=total_steps, end_value=final_factor
    )
    return {
        "optimizer": optimizer,
        "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
    }
