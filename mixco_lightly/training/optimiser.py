"""Completes the options of the optimiser, by what the network is made of."""

from __future__ import annotations

import math
from dataclasses import replace

from torch import nn

from mixco_lightly.backbones.optimiser_facts import choose_optimizer, has_depthwise
from mixco_lightly.training.options import Config, OptimiserDefaults

# Published weights are near an optimum, which the rate of a training from scratch leaves.
_PRETRAINED_FACTOR = 0.1
# Of the epochs. MoCo's queue begins with random keys. As long as they are the negatives, one
# direction for all projections answers every query. SGD at the full rate leads a depthwise network
# there, and no gradient leads back (docs/backbones.md).
_DEPTHWISE_WARMUP = 0.1


def complete_optimiser(config: Config, network: nn.Module) -> tuple[Config, str]:
    """Completes the options of the optimiser.

    Args:
        config: The options.
        network: The backbone, from whose layers "auto" chooses.

    Returns:
        The options with the numbers that are used, and a line that says what was chosen and why.
    """
    name, reason = config.optimizer, ""
    if name == "auto":
        name, reason = choose_optimizer(network)
        reason = f", chosen for {reason}"
    default: OptimiserDefaults = {
        "sgd": config.sgd_defaults,
        "adamw": config.adamw_defaults,
        "lars": config.lars_defaults,
    }[name]
    rate, origin = config.learning_rate, ""
    if config.base_learning_rate is not None:
        images = config.batch_size * config.num_processes * config.accumulate
        rate = scale_rate(name, config.base_learning_rate, images)
        origin = f" ({config.base_learning_rate:g} for 256 images, scaled to {images:,})"
    elif rate is None and config.pretrained:
        rate = default.learning_rate * _PRETRAINED_FACTOR
        origin = f" (a tenth of {default.learning_rate:g}, to keep what pretrained weights know)"
    elif rate is None:
        rate = default.learning_rate
    decay = default.weight_decay if config.weight_decay is None else config.weight_decay
    warmup, cause = config.warmup_epochs, ""
    if warmup is None:
        warmup = default.warmup * config.epochs
        if name == "sgd" and has_depthwise(network):
            warmup = max(warmup, _DEPTHWISE_WARMUP * config.epochs)
            cause = ", for depthwise convolutions"
    config = replace(
        config,
        optimizer=name,
        learning_rate=rate,
        base_learning_rate=None,  # it is in the learning rate now
        weight_decay=decay,
        warmup_epochs=warmup,
    )
    line = f"Optimiser: {name}{reason}; learning rate {rate:g}{origin}, weight decay {decay:g}"
    return config, f"{line}, {warmup:g} epochs of warm-up{cause}."


def scale_rate(optimizer: str, base: float, images: int) -> float:
    """Scales a learning rate for batches of 256 to another batch size.

    Args:
        optimizer: "sgd" and "lars" scale linearly [0], "adamw" with the square root [1].
        base: The learning rate for 256 images.
        images: Images in a step, on all devices.

    - [0]: Accurate, Large Minibatch SGD, 2017, https://arxiv.org/abs/1706.02677
    - [1]: On the SDEs and Scaling Rules for Adaptive Gradient Algorithms, 2022,
      https://arxiv.org/abs/2205.10287

    Examples:
        >>> scale_rate("sgd", 0.1, 1024), scale_rate("adamw", 0.1, 1024)
        (0.4, 0.2)
    """
    factor = images / 256
    return base * (math.sqrt(factor) if optimizer == "adamw" else factor)
