"""Lightning's trainer, set up for a pretraining run."""

from __future__ import annotations

import logging
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback, ModelCheckpoint
from rich.console import Console
from torch import nn

from mixco_lightly.data.transforms import create_test_transform
from mixco_lightly.models.sync_batchnorm import TimmSyncBatchNorm
from mixco_lightly.training.diagnosis import WarnAtChance
from mixco_lightly.training.kept_checkpoints import KeepCheckpoints
from mixco_lightly.training.metrics import LogLearningRate
from mixco_lightly.training.online_probe import OnlineProbe
from mixco_lightly.training.open_data import RunImages
from mixco_lightly.training.options import PretrainConfig
from mixco_lightly.training.processes import trainer_plugins
from mixco_lightly.training.progress import EpochLines, ProgressBar, Speed, StopOnNonFiniteLoss
from mixco_lightly.training.run_folder import CheckpointFiles, checkpoint_path
from mixco_lightly.training.training_knn import TrainingKNN


def create_trainer(
    config: PretrainConfig,
    run: Path,
    speed: Speed,
    steps_per_epoch: int,
    images: RunImages | None,
    negatives: int | None,
) -> pl.Trainer:
    """Creates a trainer that writes a checkpoint after every epoch; it has no logger yet.

    Args:
        config: The completed options.
        run: The run's folder.
        speed: Counts images and seconds.
        steps_per_epoch: Steps of an epoch.
        images: The images of the nearest neighbours while training; None for none.
        negatives: Number of negatives of a query; None if there is no chance level to compare with.
    """
    quieten_lightning()
    terminal = Console().is_terminal
    log_every_n_steps = min(10, steps_per_epoch)
    callbacks: list[Callback] = [speed, StopOnNonFiniteLoss(log_every_n_steps), LogLearningRate()]
    if images is not None and config.knn_every_n_epochs:
        assert config.image_size is not None
        assert config.num_workers is not None
        probe = OnlineProbe(images.train, config.seed) if config.online_probe else None
        callbacks += [] if probe is None else [probe]
        callbacks.append(
            TrainingKNN(
                images.train,
                create_test_transform(images.facts, config.image_size),
                every_n_epochs=config.knn_every_n_epochs,
                batch_size=max(config.batch_size, 256),
                num_workers=config.num_workers,
                seed=config.seed,
                probe=probe,
            )
        )
    if negatives is not None:
        callbacks.append(WarnAtChance(run, negatives))
    checkpoint = checkpoint_path(run)
    if config.keep_every_n_epochs:
        # Before last.ckpt: a run killed between the two repeats the epoch and writes both.
        callbacks.append(KeepCheckpoints(checkpoint.parent, config.keep_every_n_epochs))
    checkpoints = ModelCheckpoint(
        dirpath=checkpoint.parent,
        filename=checkpoint.stem,
        save_top_k=1,
        every_n_epochs=1,
        save_on_train_epoch_end=True,
        enable_version_counter=False,
    )
    plugins: list[Any] = [CheckpointFiles(asdict(config)), *trainer_plugins()]
    if config.sync_batchnorm:
        plugins.append(TimmSyncBatchNorm())
    bar = ProgressBar(speed, log_every_n_steps) if terminal else EpochLines(speed)
    return pl.Trainer(
        max_epochs=config.epochs,
        accumulate_grad_batches=config.accumulate,
        gradient_clip_val=config.gradient_clip or None,
        accelerator=config.accelerator,
        devices=config.devices,
        num_nodes=config.num_nodes,
        precision=config.precision,  # type: ignore[arg-type]
        plugins=plugins,
        # In a SLURM job Lightning loads any hpc_ckpt_*.ckpt in this folder, which is the current
        # one by default.
        default_root_dir=run,
        logger=False,
        log_every_n_steps=log_every_n_steps,
        callbacks=[*callbacks, checkpoints, bar],
        enable_progress_bar=terminal,
        enable_model_summary=False,
        use_distributed_sampler=False,
        reload_dataloaders_every_n_epochs=1,
    )


def quieten_lightning() -> None:
    """Silences what Lightning says about itself; other warnings still come through."""
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    for message in (
        ".*Checkpoint directory.*exists and is not empty.*",  # made just now, or resumed
        ".*does not have many workers.*",  # chosen by the user or by machine.default_num_workers
        ".*treespec, LeafSpec.*",
        ".*callbacks used to create the checkpoint.*",  # resumed without the online probe
    ):
        warnings.filterwarnings("ignore", message=message)


def compile_parts(model: nn.Module) -> None:
    """Compiles the networks and losses of a model, and each module of its lists."""
    parts: list[nn.Module] = []
    for part in model.children():
        # A list is never called itself.
        parts += part if isinstance(part, nn.ModuleList) else [part]
    for part in parts:
        part.compile()
    # torch compiles all parts through one function and counts them against one limit.
    config = torch._dynamo.config
    config.recompile_limit = max(config.recompile_limit, 8 * len(parts))
