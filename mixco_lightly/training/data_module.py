"""The batches of a pretraining run."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from lightly.transforms.multi_view_transform import MultiViewTransform
from torch import Tensor
from torch.utils.data import DataLoader, DistributedSampler, Subset
from torchvision.transforms import PILToTensor

from mixco_lightly.data.batches import in_batches
from mixco_lightly.data.device_transforms import DeviceTransform
from mixco_lightly.data.images import LabelledImages
from mixco_lightly.data.mixture import Mixture
from mixco_lightly.data.subset import choose_part


class PretrainData(pl.LightningDataModule):
    """Batches [views, targets, mixtures], in an order that seed and epoch decide.

    Args:
        images: The training images. They are not changed.
        transform: Makes the views of an image.
        on_device: Whether the views are made in batches where the network runs, instead of image
            by image in the loader's processes.
        mixed_views: The views that are mixed.
        mixer: Mixes a view's images, usually a :class:`Mixer`.
        mix_probability: Probability with which a batch is mixed. All processes mix the same steps,
            and a resumed run those of the uninterrupted one. Below 1, a batch that is not mixed has
            an empty list of mixtures.
        train_fraction: Part of the images, the same part of each class.
        batch_size: Images in a batch, on each device.
        num_workers: Processes that load images.
        seed: Decides the part, the order, the augmentations and the mixtures.

    Attributes:
        part: The images that are trained on.

    Raises:
        ValueError: If the part has fewer images than the smallest part with one of each class.
    """

    def __init__(
        self,
        images: LabelledImages,
        transform: MultiViewTransform,
        *,
        on_device: bool,
        mixed_views: Sequence[int],
        mixer: Callable[[Tensor], Mixture],
        train_fraction: float,
        batch_size: int,
        num_workers: int,
        seed: int,
        mix_probability: float = 1.0,
    ) -> None:
        super().__init__()
        images = copy.copy(images)
        images.transform = PILToTensor() if on_device else transform
        self.device_transform = DeviceTransform(transform) if on_device else None
        chosen = choose_part(torch.tensor(images.targets), train_fraction, seed)
        self.part: Subset[Any] = Subset(in_batches(images), chosen.tolist())
        self.mixed_views = mixed_views
        self.mixer = mixer
        self.mix_probability = mix_probability
        self._mix_choices = np.random.default_rng()
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.seed = seed

    def train_dataloader(self) -> DataLoader[Any]:
        """Creates the loader of one epoch.

        It is created anew for every epoch, and all random generators are seeded for that epoch and
        process, so that a resumed run draws what the uninterrupted one would have drawn.
        """
        trainer = self.trainer
        assert trainer is not None
        epoch, rank = trainer.current_epoch, trainer.global_rank
        # Not of the rank: a step is mixed in all processes or in none. The key keeps it apart from
        # the sequence below, which would be the same for rank 0.
        self._mix_choices = np.random.default_rng(
            np.random.SeedSequence((self.seed, epoch), spawn_key=(1,))
        )
        entropy = np.random.SeedSequence((self.seed, epoch, rank))
        epoch_seed = int(entropy.generate_state(1)[0])
        pl.seed_everything(epoch_seed, verbose=False)
        sampler: DistributedSampler[Any] = DistributedSampler(
            self.part,
            num_replicas=trainer.world_size,
            rank=rank,
            seed=self.seed,
            drop_last=True,
        )
        # Lightning sets it too, but on a resume the workers have begun by then.
        sampler.set_epoch(epoch)
        return DataLoader(
            self.part,
            batch_size=self.batch_size,
            sampler=sampler,
            num_workers=self.num_workers,
            drop_last=True,
            pin_memory=torch.cuda.is_available(),
            # The loader draws a seed for its workers from this generator each time it is opened,
            # which a resumed run does more often: seed_worker overrides that seed.
            generator=torch.Generator().manual_seed(epoch_seed),
            worker_init_fn=partial(seed_worker, epoch_seed),
        )

    @torch.no_grad()
    def on_after_batch_transfer(self, batch: list[Any], dataloader_idx: int) -> list[Any]:
        """Makes [views, targets] of a batch and appends the mixtures, on the device."""
        images, targets = batch
        if self.device_transform is not None:
            images = self.device_transform.to(images.device)(images)
        is_mixed = self.mix_probability >= 1 or self._mix_choices.random() < self.mix_probability
        mixtures = [self.mixer(images[view]) for view in self.mixed_views if is_mixed]
        return [images, targets, mixtures]


def seed_worker(epoch_seed: int, worker: int) -> None:
    """Seeds all random generators of a worker process."""
    entropy = np.random.SeedSequence((epoch_seed, worker))
    pl.seed_everything(int(entropy.generate_state(1)[0]), verbose=False)
