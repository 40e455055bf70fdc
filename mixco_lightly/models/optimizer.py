"""Creates the optimiser and the learning rate's schedule, which all methods share."""

from __future__ import annotations

import math
from typing import Any, Literal

from lightly.utils.lars import LARS
from lightly.utils.scheduler import CosineWarmupScheduler
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.utilities.types import OptimizerLRSchedulerConfig
from torch.optim import SGD, AdamW, Optimizer

from mixco_lightly.backbones.optimiser_facts import find_decayed

OptimizerName = Literal["sgd", "adamw", "lars"]


def create_optimizer(
    module: LightningModule,
    name: OptimizerName,
    learning_rate: float,
    weight_decay: float,
    warmup_epochs: float,
    final_factor: float = 0.0,
) -> OptimizerLRSchedulerConfig:
    """Creates an optimiser and a cosine schedule, for a module with a trainer.

    The schedule ends after the trainer's ``max_epochs`` or ``max_steps``, whichever comes first.

    Args:
        module: The module. Its parameters that require a gradient are trained.
        name: "sgd" with momentum 0.9 decays all parameters, as in the authors' code. "adamw" and
            "lars" (Lightly's, with momentum 0.9) decay only the weights of layers. LARS scales the
            learning rate of the decayed weights alone, as in SimCLR.
        learning_rate: Highest learning rate.
        weight_decay: L2 penalty; for "adamw" decoupled from the gradient.
        warmup_epochs: Epochs of linear warm-up from zero, before the cosine.
        final_factor: Fraction of the highest learning rate at which the cosine ends.

    Returns:
        What ``configure_optimizers`` returns. The learning rate changes in every optimiser step.

    Raises:
        ValueError: If there is no such optimiser, if LARS has no weight decay, if the trainer's
            options do not determine the number of steps, or if the warm-up is not shorter than the
            training.
    """
    optimizer: Optimizer
    if name == "sgd":
        parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
        optimizer = SGD(parameters, lr=learning_rate, momentum=0.9, weight_decay=weight_decay)
    elif name == "adamw":
        optimizer = AdamW(_group_parameters(module, weight_decay), lr=learning_rate)
    elif name == "lars":
        if not weight_decay:
            # Lightly's LARS takes a decay of zero for "not scaled", and would be plain SGD.
            raise ValueError("LARS scales only weights that decay: set weight_decay above 0.")
        groups = _group_parameters(module, weight_decay)
        optimizer = LARS(groups, lr=learning_rate, momentum=0.9)
    else:
        raise ValueError(f"optimizer must be 'sgd', 'adamw' or 'lars', got {name!r}.")
    total_steps, warmup_steps = count_steps(module.trainer, warmup_epochs)
    scheduler = CosineWarmupScheduler(
        optimizer, warmup_epochs=warmup_steps, max_epochs=total_steps, end_value=final_factor
    )
    return {
        "optimizer": optimizer,
        "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
    }


def _group_parameters(module: LightningModule, weight_decay: float) -> list[dict[str, Any]]:
    """Returns the trained parameters in two groups: those that decay, and those that do not."""
    names = set(find_decayed(module))
    trained = [(name, x) for name, x in module.named_parameters() if x.requires_grad]
    return [
        {"params": [x for name, x in trained if name in names], "weight_decay": weight_decay},
        {"params": [x for name, x in trained if name not in names], "weight_decay": 0.0},
    ]


def count_steps(trainer: Trainer, warmup_epochs: float) -> tuple[int, int]:
    """Returns the numbers of optimiser steps of the training and of its warm-up."""
    max_epochs = -1 if trainer.max_epochs is None else trainer.max_epochs
    # The loader is set up only if its length is needed.
    steps_per_epoch = math.inf if max_epochs == -1 and not warmup_epochs else _epoch_steps(trainer)
    limits = [trainer.max_steps] if trainer.max_steps != -1 else []
    if max_epochs != -1 and steps_per_epoch < math.inf:
        limits.append(int(steps_per_epoch) * max(max_epochs, 1))
    if not limits:
        unknown = (
            "it limits neither epochs nor steps"
            if max_epochs == -1
            else "its data loader has no length"
        )
        raise ValueError(
            "The learning rate's schedule needs the number of steps, which this Trainer does not "
            f"determine: {unknown}. Set Trainer(max_steps=...)."
        )
    total_steps = min(limits)
    if not warmup_epochs or not total_steps:
        return total_steps, 0
    if steps_per_epoch == math.inf:
        raise ValueError(
            f"warmup_epochs={warmup_epochs} needs the number of steps in an epoch, but the data "
            "loader has no length. Set warmup_epochs=0, or set the number of batches in an epoch "
            "with Trainer(limit_train_batches=...)."
        )
    epochs = total_steps / steps_per_epoch
    if not 0 <= warmup_epochs < epochs:
        raise ValueError(f"warmup_epochs must be in [0, {epochs:g}), got {warmup_epochs}.")
    return total_steps, round(total_steps * warmup_epochs / epochs)


def _epoch_steps(trainer: Trainer) -> float:
    """Returns the number of optimiser steps in an epoch; infinity if the loader has no length."""
    if trainer.train_dataloader is None:
        trainer.fit_loop.setup_data()
    batches = trainer.num_training_batches
    return math.ceil(batches / trainer.accumulate_grad_batches) if batches < math.inf else math.inf
