"""How many steps and epochs a run has."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch.utils.data import IterableDataset

from mixco_lightly.data.subset import choose_part
from mixco_lightly.training.open_data import RunImages
from mixco_lightly.training.options import Config, OptimiserOptions, PretrainConfig

# About a checkpoint in ten minutes.
_STREAM_EPOCH = 1000


def complete_length(config: Config, images: RunImages) -> Config:
    """Completes ``epochs`` if max_steps decides it, and for a stream ``steps_per_epoch``.

    Args:
        config: The options.
        images: The images.

    Raises:
        ValueError: If a stream has no max_steps or a part of it is asked for, if steps_per_epoch is
            given for images that are no stream, if the images are too few for a batch, or if the
            warm-up is not shorter than max_steps.
    """
    if isinstance(images.train, IterableDataset):
        config = _complete_stream(config)
    elif config.steps_per_epoch is not None:
        raise ValueError(
            "--steps_per_epoch is for streams; here an epoch is a pass over the "
            f"{len(images.train):,} training images: leave it out."
        )
    if config.max_steps is None:
        return config
    steps = config.steps_per_epoch
    if not isinstance(images.train, IterableDataset):
        targets = torch.tensor(images.train.targets)
        steps = count_steps(len(choose_part(targets, config.train_fraction, config.seed)), config)
    assert steps is not None
    config = replace(config, epochs=math.ceil(config.max_steps / steps))
    check_warmup(config)
    return config


def _complete_stream(config: Config) -> Config:
    if config.max_steps is None:
        raise ValueError(
            "The training images are a stream, whose number is not known: give --max_steps, the "
            "length of the run."
        )
    if config.train_fraction != 1:
        raise ValueError(
            f"--train_fraction {config.train_fraction:g} needs images whose number is known, and "
            "the training images are a stream: leave it out."
        )
    steps = min(config.steps_per_epoch or _STREAM_EPOCH, config.max_steps)
    return replace(config, steps_per_epoch=steps)


def count_steps(num_images: int, config: PretrainConfig) -> int:
    """Returns the number of steps in a pass over images.

    Raises:
        ValueError: If the images are too few for a batch.
    """
    processes = config.num_processes
    batches = num_images // processes // config.batch_size
    if batches < 1:
        raise ValueError(
            f"{num_images} images are too few for a batch of {config.batch_size} on each of "
            f"{processes} device(s): lower --batch_size."
        )
    return math.ceil(batches / config.accumulate)


def check_warmup(options: OptimiserOptions) -> None:
    """Raises a ValueError if the warm-up is not shorter than the run."""
    if options.warmup_epochs is not None and options.warmup_epochs >= options.epochs:
        steps = "" if options.max_steps is None else f" of --max_steps {options.max_steps}"
        raise ValueError(
            f"--warmup_epochs must be less than --epochs, got {options.warmup_epochs:g} and "
            f"{options.epochs}{steps}."
        )
