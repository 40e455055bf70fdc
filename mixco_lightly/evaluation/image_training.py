"""How image probes train: batches, seeds and Lightning's trainer."""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from lightly.utils.benchmarking import FinetuneClassifier, LinearClassifier, MetricCallback
from lightning_fabric.plugins.environments.lightning import LightningEnvironment
from pytorch_lightning.callbacks import Callback, ProgressBar
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from mixco_lightly.evaluation.calibration import calibration_error
from mixco_lightly.evaluation.probe_result import EpochResults, ProbeResult

# Lightning warns of a loader without workers and of a frozen backbone in eval mode; both are meant.
_EXPECTED_WARNINGS = (
    ".*does not have many workers.*",
    ".*in eval mode at the start of training.*",
    ".*treespec, LeafSpec.*",
)


class Batches(pl.LightningDataModule):
    """Shuffled training images, augmented on the device, and test samples in their order.

    Args:
        train: Training images and targets.
        test: Samples that are tested after each epoch.
        augment: Augments the training images of a batch, on the device.
        batch_size: Images in a training step.
        test_batch_size: Samples in a batch of the test.
        num_workers: Processes that load the training and the test samples.
        seed: Seed of the order.
        drop_single: Whether a last training batch of one image is skipped.
    """

    def __init__(
        self,
        train: Dataset[Any],
        test: Dataset[Any],
        augment: Callable[[Tensor], Tensor] | None,
        *,
        batch_size: int,
        test_batch_size: int,
        num_workers: tuple[int, int],
        seed: int,
        drop_single: bool = False,
    ) -> None:
        super().__init__()
        if batch_size < 1:
            raise ValueError(f"batch_size must be positive, got {batch_size}.")
        count = len(train)  # type: ignore[arg-type]
        self.augment = augment
        self.num_test_images = len(test)  # type: ignore[arg-type]
        self._train: DataLoader[Any] = DataLoader(
            train,
            batch_size=batch_size,
            shuffle=True,
            drop_last=drop_single and count > batch_size and count % batch_size == 1,
            num_workers=num_workers[0],
            persistent_workers=num_workers[0] > 0,
            pin_memory=torch.cuda.is_available(),
            generator=torch.Generator().manual_seed(seed),
        )
        self._test: DataLoader[Any] = DataLoader(
            test,
            batch_size=test_batch_size,
            num_workers=num_workers[1],
            persistent_workers=num_workers[1] > 0,
            # A loader without its own generator draws from the global one, as the training does.
            generator=torch.Generator(),
        )

    def train_dataloader(self) -> DataLoader[Any]:
        """Returns the training batches."""
        return self._train

    def val_dataloader(self) -> DataLoader[Any]:
        """Returns the test batches."""
        return self._test

    def on_after_batch_transfer(self, batch: list[Any], dataloader_idx: int) -> list[Any]:
        """Augments a training batch on the device."""
        images, targets = batch
        assert self.trainer is not None
        if self.augment is not None and self.trainer.training:
            images = self.augment(images)
        return [images, targets]


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seeds all generators that a probe may draw from, and restores them afterwards.

    ``torch.manual_seed`` would also seed the generators of devices that the probe does not use.

    Args:
        seed: The seed.
        device: The probe's device, whose generator is seeded beside those of the CPU.
    """
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()  # noqa: NPY002
    module: Any = None if device.type == "cpu" else torch.get_device_module(device)
    place = () if device.type == "mps" else (device,)  # torch.mps has one device and no argument
    device_state = module.get_rng_state(*place) if module else None
    try:
        torch.set_rng_state(torch.Generator().manual_seed(seed).get_state())
        random.seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002
        if module:
            module.set_rng_state(torch.Generator(device).manual_seed(seed).get_state(), *place)
        yield
    finally:
        torch.set_rng_state(states[0])
        random.setstate(states[1])
        np.random.set_state(states[2])  # noqa: NPY002
        if module:
            module.set_rng_state(device_state, *place)


class MeasureCalibration(Callback):
    """Computes the expected calibration error after each epoch, from the logits of the test."""

    def __init__(self) -> None:
        self.errors: list[float] = []
        self._logits: list[Tensor] = []
        self._targets: list[Tensor] = []

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Starts to read the classifier's logits in the test."""

        def keep(module: nn.Module, inputs: Any, logits: Tensor) -> None:
            if not module.training:
                self._logits.append(logits.detach())

        head: Any = pl_module.classification_head
        head.register_forward_hook(keep)

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keeps the targets of a batch."""
        self._targets.append(batch[1])

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Computes the error of all test samples."""
        self.errors.append(calibration_error(torch.cat(self._logits), torch.cat(self._targets)))
        self._logits.clear()
        self._targets.clear()


def top_k(num_classes: int) -> tuple[int, int]:
    """Returns the two k whose top-k accuracies are measured; ValueError below two classes."""
    if num_classes < 2:
        raise ValueError(f"There must be at least two classes, got {num_classes}.")
    return 1, min(5, num_classes)


def fit_classifier(
    classifier: LinearClassifier | FinetuneClassifier,
    batches: Batches,
    epochs: int,
    device: torch.device,
    precision: str,
    callbacks: Sequence[Callback],
) -> EpochResults:
    """Trains a classifier with Lightning's trainer and tests it after each epoch.

    Args:
        classifier: One of Lightly's classifiers.
        batches: Training and test batches.
        epochs: Passes over the training images.
        device: Where to run.
        precision: Lightning's precision.
        callbacks: Further callbacks of the trainer.

    Returns:
        Accuracies and calibration error in percent after the last and after the best epoch.

    Raises:
        ValueError: If a number is not positive or the classifier diverges.
    """
    if epochs < 1 or not classifier.lr > 0:
        raise ValueError(
            f"epochs and learning_rate must be positive, got {epochs} and {classifier.lr}."
        )
    metrics, calibration = MetricCallback(), MeasureCalibration()
    on_gpu = device.type == "cuda"
    with TemporaryDirectory() as folder, warnings.catch_warnings():
        for message in _EXPECTED_WARNINGS:
            warnings.filterwarnings("ignore", message=message)
        trainer = pl.Trainer(
            max_epochs=epochs,
            accelerator="gpu" if on_gpu else device.type,
            devices=[device.index or 0] if on_gpu else 1,
            precision=precision,  # type: ignore[arg-type]
            # A probe is one process, also in a SLURM job. Otherwise Lightning would requeue the
            # job, and would load any hpc_ckpt_*.ckpt in its default_root_dir.
            plugins=[LightningEnvironment()],
            default_root_dir=folder,
            callbacks=[metrics, calibration, *callbacks],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=any(isinstance(callback, ProgressBar) for callback in callbacks),
            enable_model_summary=False,
            num_sanity_val_steps=0,
        )
        trainer.fit(classifier, datamodule=batches)
    values = metrics.val_metrics
    if not torch.tensor(values["val_loss"]).isfinite().all():
        raise ValueError(f"The classifier diverged with a learning rate of {classifier.lr:g}.")
    # Lightning's means are in single precision, but they count whole images.
    n, k = batches.num_test_images, max(classifier.topk)
    top1, top5 = ([100 * round(share * n) / n for share in values[f"val_top{j}"]] for j in (1, k))
    note = f"top5 is top{k}: {k} classes" if k < 5 else ""
    results = [
        ProbeResult(first, fifth, note, {"ECE": error})
        for first, fifth, error in zip(top1, top5, calibration.errors, strict=True)
    ]
    best = top1.index(max(top1))
    return EpochResults(results[-1], results[best], best + 1)
