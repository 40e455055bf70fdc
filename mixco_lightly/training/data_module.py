"""The batches of a pretraining run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader, DistributedSampler, Subset
from torchvision.transforms import PILToTensor

import mixco_lightly.machine as machine
from mixco_lightly import mix_pairs
from mixco_lightly.data.batches import in_batches
from mixco_lightly.data.catalogue import (
    create_dataset,
    create_train_test,
    get_dataset,
    has_labels,
)
from mixco_lightly.data.device_transforms import DeviceTransform
from mixco_lightly.data.image_folder import find_splits
from mixco_lightly.data.images import LabelledImages, broken_images, have_one_size
from mixco_lightly.data.subset import choose_part
from mixco_lightly.data.transforms import create_pretrain_transform
from mixco_lightly.evaluation.evaluator import Normalisation
from mixco_lightly.training.processes import one_at_a_time

if TYPE_CHECKING:
    from mixco_lightly.training.pretraining import PretrainConfig


class PretrainData(pl.LightningDataModule):
    """Batches of views and their mixtures, in an order that seed and epoch decide.

    Attributes:
        unlabelled: Why the images have no labels to train or measure with; empty if they have.
        unmeasured: Why nothing can be measured, or should not be; empty otherwise.
    """

    def __init__(
        self,
        method: str,
        config: PretrainConfig,
        image_size: int,
        mixed_views: Sequence[int],
        num_views: int = 2,
        normalize: Normalisation = (None, None),
    ) -> None:
        super().__init__()
        assert config.dataset is not None
        assert config.data_dir is not None
        transform = create_pretrain_transform(
            method,
            get_dataset(config.dataset).facts.normalised(*normalize),
            image_size,
            config.min_scale,
            config.augmentations,
            num_views,
        )
        # The test images are opened here too, so that a missing one fails before the training.
        with one_at_a_time(Path(config.data_dir), create=config.download):
            options: dict[str, Any] = {
                "download": config.download,
                "keep_decoded": config.keep_decoded,
                "max_broken_images": config.max_broken_images,
            }
            self.images: LabelledImages
            test_images: list[LabelledImages] = []
            if has_labels(config.dataset, config.data_dir):
                self.images, *test_images = create_train_test(
                    config.dataset, config.data_dir, **options
                )
            else:
                check_output(Path(config.output_dir), find_splits(config.data_dir).train)
                self.images = create_dataset(config.dataset, config.data_dir, train=True, **options)
        self.broken = broken_images(self.images, *test_images)
        self.unlabelled = describe_labels(self.images, Path(config.data_dir))
        self.unmeasured = self.unlabelled if config.protocol else "--protocol none"
        one_size = have_one_size(self.images)
        if config.augment == "device" and not one_size:
            raise ValueError(
                f"--augment device needs images of one size that are decoded once; those in "
                f"{config.data_dir} are not: use --augment workers."
            )
        on_device = config.augment == "device" or (config.augment == "auto" and one_size)
        self.device_transform = DeviceTransform(transform) if on_device else None
        self.images.transform = PILToTensor() if on_device else transform
        self.part: Subset[Any] = Subset(
            in_batches(self.images),
            choose_part(
                torch.tensor(self.images.targets), config.train_fraction, config.seed
            ).tolist(),
        )
        # A worker beside a network on the same processors only takes turns with it.
        workers = 0 if on_device and machine.runs_on_cpu(config.accelerator) else None
        self.config = replace(
            config,
            augment="device" if on_device else "workers",
            num_workers=machine.default_num_workers(
                workers if config.num_workers is None else config.num_workers
            ),
        )
        config = self.config
        self.normalize = normalize
        self.mixed_views = mixed_views if config.mix_weight > 0 else ()
        processes = config.devices * config.num_nodes
        self.steps_per_epoch = len(self.part) // processes // config.batch_size
        if config.warmup_epochs >= config.epochs:
            raise ValueError(
                f"--warmup_epochs must be less than --epochs, got {config.warmup_epochs:g} and "
                f"{config.epochs}."
            )
        if config.batch_size < 2:
            raise ValueError(f"--batch_size must be at least 2, got {config.batch_size}.")
        if self.steps_per_epoch < 1:
            raise ValueError(
                f"{len(self.part)} images are too few for a batch of {config.batch_size} on "
                f"each of {processes} device(s): lower --batch_size."
            )

    def train_dataloader(self) -> DataLoader[Any]:
        """The loader of one epoch.

        It is made anew for every epoch, and all random generators are seeded for that epoch and
        process: a resumed run then draws what the uninterrupted one would have drawn.
        """
        trainer = self.trainer
        assert trainer is not None
        epoch, rank = trainer.current_epoch, trainer.global_rank
        entropy = np.random.SeedSequence((self.config.seed, epoch, rank))
        epoch_seed = int(entropy.generate_state(1)[0])
        pl.seed_everything(epoch_seed, verbose=False)
        sampler: DistributedSampler[Any] = DistributedSampler(
            self.part,
            num_replicas=trainer.world_size,
            rank=rank,
            seed=self.config.seed,
            drop_last=True,
        )
        # Lightning tells it too, but on a resume its workers have begun by then.
        sampler.set_epoch(epoch)
        return DataLoader(
            self.part,
            batch_size=self.config.batch_size,
            sampler=sampler,
            num_workers=machine.default_num_workers(self.config.num_workers),
            drop_last=True,
            pin_memory=torch.cuda.is_available(),
            # The loader would draw a new seed for its workers from this generator each time that it
            # is opened, which a resumed run does more than once: seed_worker makes them the same.
            generator=torch.Generator().manual_seed(epoch_seed),
            worker_init_fn=partial(seed_worker, epoch_seed),
        )

    @torch.no_grad()
    def on_after_batch_transfer(self, batch: list[Any], dataloader_idx: int) -> list[Any]:
        """Makes [views, targets] of a batch, and appends the mixtures, on the device."""
        images, targets = batch
        if self.device_transform is not None:
            images = self.device_transform.to(images.device)(images)
        mixtures = [mix_pairs(images[view], self.config.alpha) for view in self.mixed_views]
        return [images, targets, mixtures]


def check_output(output_dir: Path, images: Path) -> None:
    """Raises a ValueError if a run's pictures would be images to train on."""
    if output_dir.resolve().is_relative_to(images.resolve()):
        raise ValueError(
            f"All images in {images} are trained on, and --output_dir {output_dir} is in it: "
            "choose a folder elsewhere."
        )


def describe_labels(images: LabelledImages, data_dir: Path) -> str:
    """Why images have no labels to train or measure with; empty if they have."""
    if not images.classes:
        return (
            f"{data_dir} has no labels (these are train/CLASS/*.jpg beside test/CLASS/*.jpg or "
            "val/CLASS/*.jpg)"
        )
    if len(images.classes) == 1:
        return f"{data_dir} has a single class, {images.classes[0]}"
    return ""


def seed_worker(epoch_seed: int, worker: int) -> None:
    """Seeds all random generators of a worker process."""
    entropy = np.random.SeedSequence((epoch_seed, worker))
    pl.seed_everything(int(entropy.generate_state(1)[0]), verbose=False)
