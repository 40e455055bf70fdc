"""Classifiers that train on augmented images: the paper's linear evaluation, and fine-tuning."""

from __future__ import annotations

import copy
import random
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
import pytorch_lightning as pl
import torch
from lightly.utils.benchmarking import FinetuneClassifier, LinearClassifier, MetricCallback
from lightning_fabric.plugins.environments.lightning import LightningEnvironment
from pytorch_lightning.callbacks import Callback, ProgressBar
from torch import Tensor, nn
from torch.optim import SGD
from torch.optim.lr_scheduler import MultiStepLR
from torch.utils.data import DataLoader, Dataset, TensorDataset

from mixco_lightly.evaluation.features import Features
from mixco_lightly.evaluation.linear import ProbeResult

# Features that are classified at a time.
_TEST_BATCH = 4096
# A loader without workers and a frozen backbone in eval mode are meant; Lightning warns of both.
_EXPECTED_WARNINGS = (
    ".*does not have many workers.*",
    ".*in eval mode at the start of training.*",
    ".*treespec, LeafSpec.*",
)


class EpochResults(NamedTuple):
    """Accuracies of a classifier that was tested after each epoch.

    Attributes:
        last: After the last epoch. This is the figure to compare.
        best: After the epoch with the highest top-1, the earliest of equals. The epoch is chosen
            on the test images, so it is biased upwards. The authors' evaluation reports this
            figure, with the last epoch's top-5 beside it.
        best_epoch: That epoch, from 1.
    """

    last: ProbeResult
    best: ProbeResult
    best_epoch: int


class PaperClassifier(LinearClassifier):
    """Lightly's linear classifier with the optimiser and schedule of the authors' code.

    SGD with momentum 0.9 and without weight decay, at ``lr`` whatever the batch size, divided by
    ten after 60% and 80% of the epochs. Where Lightly's classifier is validated on images, this
    one is on features: those of a frozen backbone are the same in each epoch.
    """

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits of images in training mode, and of their features in eval mode."""
        logits: Tensor = super().forward(inputs) if self.training else self.classify(inputs)
        return logits

    def classify(self, features: Tensor) -> Tensor:
        """Logits of features (N, feature_dim): shape (N, num_classes)."""
        logits: Tensor = self.classification_head(features)
        return logits

    def configure_optimizers(self) -> tuple[list[SGD], list[MultiStepLR]]:
        """The classifier's optimiser and schedule."""
        parameters = self.get_trainable_parameters()
        optimizer = SGD(parameters, lr=self.lr, momentum=0.9, weight_decay=0.0)
        epochs = self.trainer.max_epochs or 1
        milestones = [round(epochs * part) for part in (0.6, 0.8)]
        return [optimizer], [MultiStepLR(optimizer, milestones, gamma=0.1)]


def paper_probe(
    backbone: nn.Module,
    train: Dataset[tuple[Any, int]],
    test: Features,
    num_classes: int,
    *,
    epochs: int = 100,
    batch_size: int = 256,
    learning_rate: float = 3.0,
    augment: Callable[[Tensor], Tensor] | None = None,
    num_workers: int = 0,
    seed: int = 0,
    device: torch.device | str | None = None,
    precision: str = "32-true",
    callbacks: Sequence[Callback] = (),
) -> EpochResults:
    """Trains a linear classifier on a frozen backbone as the authors' code does.

    In each epoch the images are augmented anew and go through the backbone, which stays in eval
    mode: no weight and no BatchNorm statistic changes. Its mode and device are restored
    afterwards. Features are not standardised; the classifier starts from N(0, 0.01) and bias 0.

    - [0]: MixCo, 2020, https://arxiv.org/abs/2010.06300

    Args:
        backbone: Maps images (N, C, H, W) to features (N, D).
        train: Training images and targets: augmented, or as ``augment`` takes them. The authors
            crop and flip, see :func:`mixco_lightly.data.transforms.create_probe_transform`.
        test: The backbone's features of the test images.
        num_classes: Number of classes.
        epochs: Passes over the training images. The default is the authors'.
        batch_size: Images in a step. The default is the authors'.
        learning_rate: Initial learning rate. The default 3.0 is the authors' for ResNet-18 on
            TinyImageNet.
        augment: Called with the images of a batch, on the device.
        num_workers: Processes that load images.
        seed: Seed of initial weights, order and augmentations. All random generators (PyTorch's
            on every device, NumPy's and Python's) are afterwards as they were before. On a CPU
            the same seed gives the same figures.
        device: Where to run. Default: where the backbone is.
        precision: Lightning's precision.
        callbacks: For Lightning's trainer, such as a progress bar.

    Returns:
        Accuracies in percent after the last and after the best epoch.

    Raises:
        ValueError: If a number is not positive, if there are not two classes, or if the classifier
            diverges.

    Examples:
        >>> import torch
        >>> from torch.utils.data import TensorDataset
        >>> from mixco_lightly import create_backbone, extract_features
        >>> from mixco_lightly.evaluation.image_probes import paper_probe
        >>> backbone = create_backbone("test_resnet", image_size=32)
        >>> images = TensorDataset(torch.rand(4, 3, 32, 32), torch.tensor([0, 1, 0, 1]))
        >>> test = extract_features(backbone, [images[:]])
        >>> results = paper_probe(backbone, images, test, num_classes=2, epochs=2)
        >>> results.best.top1 >= results.last.top1
        True
    """
    home = next((tensor.device for tensor in backbone.parameters()), torch.device("cpu"))
    device = torch.device(device) if device is not None else home
    modes = [(module, module.training) for module in backbone.modules()]
    try:
        with _seeded(seed, device):
            classifier = PaperClassifier(
                backbone.eval(),
                batch_size_per_device=batch_size,
                lr=learning_rate,
                feature_dim=test.features.shape[1],
                num_classes=num_classes,
                topk=_top_k(num_classes),
            )
            nn.init.normal_(classifier.classification_head.weight, std=0.01)
            nn.init.zeros_(classifier.classification_head.bias)
            batches = _Batches(
                train,
                TensorDataset(test.features, test.targets),
                augment,
                batch_size=batch_size,
                test_batch_size=_TEST_BATCH,
                num_workers=(num_workers, 0),
                seed=seed,
            )
            return _fit(classifier, batches, epochs, device, precision, callbacks)
    finally:
        backbone.to(home)
        for module, training in modes:
            module.training = training


def finetune_probe(
    backbone: nn.Module,
    train: Dataset[tuple[Any, int]],
    test: Dataset[tuple[Any, int]],
    num_classes: int,
    *,
    epochs: int = 30,
    batch_size: int = 256,
    learning_rate: float = 0.05,
    augment: Callable[[Tensor], Tensor] | None = None,
    num_workers: int = 0,
    seed: int = 0,
    device: torch.device | str | None = None,
    precision: str = "32-true",
    callbacks: Sequence[Callback] = (),
) -> EpochResults:
    """Fine-tunes a copy of a backbone together with a linear classifier.

    This is Lightly's ``FinetuneClassifier`` with the settings of Lightly's benchmark, which are
    SimCLR's [0]: SGD with momentum 0.9 and without weight decay, the learning rate times
    batch_size / 256, a cosine schedule without warm-up. The backbone that is given does not
    change.

    - [0]: SimCLR, 2020, https://arxiv.org/abs/2002.05709

    Args:
        backbone: Maps images (N, C, H, W) to features (N, feature_dim); has ``.feature_dim``.
        train: Training images and targets: augmented, or as ``augment`` takes them.
        test: Test images and targets.
        num_classes: Number of classes.
        epochs: Passes over the training images. The default is Lightly's.
        batch_size: Images in a step. A last batch of a single image, which BatchNorm cannot take,
            is left out.
        learning_rate: Highest learning rate, for batches of 256. The default is Lightly's.
        augment: As for :func:`paper_probe`.
        num_workers: As for :func:`paper_probe`.
        seed: As for :func:`paper_probe`.
        device: As for :func:`paper_probe`.
        precision: As for :func:`paper_probe`.
        callbacks: As for :func:`paper_probe`.

    Returns:
        Accuracies in percent after the last and after the best epoch.

    Raises:
        ValueError: As for :func:`paper_probe`.
    """
    home = next((tensor.device for tensor in backbone.parameters()), torch.device("cpu"))
    device = torch.device(device) if device is not None else home
    with _seeded(seed, device):
        # Lightning leaves a module in the mode that it has, and a loaded backbone is in eval mode.
        model = copy.deepcopy(backbone).requires_grad_(True).train()
        classifier = FinetuneClassifier(
            model.to(memory_format=torch.channels_last),
            batch_size_per_device=batch_size,
            lr=learning_rate,
            feature_dim=backbone.feature_dim,
            num_classes=num_classes,
            topk=_top_k(num_classes),
        )
        batches = _Batches(
            train,
            test,
            augment,
            batch_size=batch_size,
            test_batch_size=batch_size,
            num_workers=(num_workers, num_workers),
            seed=seed,
            drop_single=True,
        )
        return _fit(classifier, batches, epochs, device, precision, callbacks)


class _Batches(pl.LightningDataModule):
    """Shuffled training images, augmented on the device, and what is tested after each epoch."""

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
            # Its own, so that the training's random numbers do not depend on the tests.
            generator=torch.Generator(),
        )

    def train_dataloader(self) -> DataLoader[Any]:
        return self._train

    def val_dataloader(self) -> DataLoader[Any]:
        return self._test

    def on_after_batch_transfer(self, batch: list[Any], dataloader_idx: int) -> list[Any]:
        images, targets = batch
        assert self.trainer is not None
        if self.augment is not None and self.trainer.training:
            images = self.augment(images)
        return [images, targets]


@contextmanager
def _seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seeds all generators that a probe may draw from, and restores them afterwards.

    torch.manual_seed would also seed the generators of devices that the probe does not use.
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


def _top_k(num_classes: int) -> tuple[int, int]:
    if num_classes < 2:
        raise ValueError(f"There must be at least two classes, got {num_classes}.")
    return 1, min(5, num_classes)


def _fit(
    classifier: LinearClassifier | FinetuneClassifier,
    batches: _Batches,
    epochs: int,
    device: torch.device,
    precision: str,
    callbacks: Sequence[Callback],
) -> EpochResults:
    if epochs < 1 or not classifier.lr > 0:
        raise ValueError(
            f"epochs and learning_rate must be positive, got {epochs} and {classifier.lr}."
        )
    metrics = MetricCallback()
    on_gpu = device.type == "cuda"
    with TemporaryDirectory() as folder, warnings.catch_warnings():
        for message in _EXPECTED_WARNINGS:
            warnings.filterwarnings("ignore", message=message)
        trainer = pl.Trainer(
            max_epochs=epochs,
            accelerator="gpu" if on_gpu else device.type,
            devices=[device.index or 0] if on_gpu else 1,
            precision=precision,  # type: ignore[arg-type]
            # A probe is one process, also in a SLURM job. Lightning would otherwise requeue the
            # job, and would load an hpc_ckpt_*.ckpt that it finds in its default_root_dir.
            plugins=[LightningEnvironment()],
            default_root_dir=folder,
            callbacks=[metrics, *callbacks],
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
    # Lightning's means are in single precision; what they count is whole images.
    n, k = batches.num_test_images, max(classifier.topk)
    top1, top5 = ([100 * round(share * n) / n for share in values[f"val_top{j}"]] for j in (1, k))
    note = f"top5 is top{k}: {k} classes" if k < 5 else ""
    results = [ProbeResult(*shares, note) for shares in zip(top1, top5, strict=True)]
    best = top1.index(max(top1))
    return EpochResults(results[-1], results[best], best + 1)
