"""Classifiers that train on augmented images: the paper's linear evaluation, and fine-tuning."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from lightly.utils.benchmarking import FinetuneClassifier, LinearClassifier
from pytorch_lightning.callbacks import Callback
from torch import Tensor, nn
from torch.optim import SGD
from torch.optim.lr_scheduler import MultiStepLR
from torch.utils.data import Dataset, TensorDataset

from mixco_lightly.evaluation.features import Features
from mixco_lightly.evaluation.image_training import Batches, fit_classifier, seeded, top_k
from mixco_lightly.evaluation.probe_result import EpochResults

# Features in a batch of the test.
_TEST_BATCH = 4096


class PaperClassifier(LinearClassifier):
    """Lightly's linear classifier with the optimiser and schedule of the authors' code.

    SGD with momentum 0.9 and no weight decay; the learning rate is ``lr`` at every batch size,
    divided by ten after 60% and 80% of the epochs. Lightly validates its classifier on images.
    This one is validated on features, which a frozen backbone does not change between epochs.
    """

    def forward(self, inputs: Tensor) -> Tensor:
        """Computes logits, in training mode of images and in eval mode of features."""
        logits: Tensor = super().forward(inputs) if self.training else self.classify(inputs)
        return logits

    def classify(self, features: Tensor) -> Tensor:
        """Computes the logits (N, num_classes) of features (N, feature_dim)."""
        logits: Tensor = self.classification_head(features)
        return logits

    def configure_optimizers(self) -> tuple[list[SGD], list[MultiStepLR]]:
        """Creates the classifier's optimiser and schedule."""
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

    The images are augmented and pass through the backbone anew in each epoch. The backbone stays
    in eval mode, so neither its weights nor its BatchNorm statistics change; its mode and device
    are restored afterwards. Features are not standardised. The classifier starts with weights
    from N(0, 0.01) and bias 0.

    - [0]: MixCo, 2020, https://arxiv.org/abs/2010.06300

    Args:
        backbone: Maps images (N, C, H, W) to features (N, D).
        train: Training images and targets, either augmented already or as ``augment`` takes them.
            The authors crop and flip, see
            :func:`mixco_lightly.data.transforms.create_probe_transform`.
        test: The backbone's features of the test images.
        num_classes: Number of classes.
        epochs: Passes over the training images. The default is the authors'.
        batch_size: Images in a step. The default is the authors'.
        learning_rate: Initial learning rate. The default 3.0 is the authors' for ResNet-18 on
            TinyImageNet.
        augment: Augments the images of a batch, on the device.
        num_workers: Processes that load images.
        seed: Seed of initial weights, order and augmentations. The states of all random
            generators (PyTorch's on every device, NumPy's and Python's) are restored afterwards.
            On a CPU the same seed gives the same figures.
        device: Where to run. Default: the backbone's device.
        precision: Lightning's precision.
        callbacks: For Lightning's trainer, such as a progress bar.

    Returns:
        Accuracies in percent after the last and after the best epoch.

    Raises:
        ValueError: If a number is not positive, there are fewer than two classes, or the
            classifier diverges.

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
        with seeded(seed, device):
            classifier = PaperClassifier(
                backbone.eval(),
                batch_size_per_device=batch_size,
                lr=learning_rate,
                feature_dim=test.features.shape[1],
                num_classes=num_classes,
                topk=top_k(num_classes),
            )
            nn.init.normal_(classifier.classification_head.weight, std=0.01)
            nn.init.zeros_(classifier.classification_head.bias)
            batches = Batches(
                train,
                TensorDataset(test.features, test.targets),
                augment,
                batch_size=batch_size,
                test_batch_size=_TEST_BATCH,
                num_workers=(num_workers, 0),
                seed=seed,
            )
            return fit_classifier(classifier, batches, epochs, device, precision, callbacks)
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

    It trains Lightly's ``FinetuneClassifier`` with the settings of Lightly's benchmark, which are
    SimCLR's [0]: SGD with momentum 0.9 and no weight decay, the learning rate times
    batch_size / 256, a cosine schedule without warm-up. The given backbone does not change.

    - [0]: SimCLR, 2020, https://arxiv.org/abs/2002.05709

    Args:
        backbone: Maps images (N, C, H, W) to features (N, feature_dim); has ``.feature_dim``.
        train: Training images and targets, either augmented already or as ``augment`` takes them.
        test: Test images and targets.
        num_classes: Number of classes.
        epochs: Passes over the training images. The default is Lightly's.
        batch_size: Images in a step. A last batch of one image is skipped, because BatchNorm
            cannot normalise it.
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
    with seeded(seed, device):
        # A loaded backbone is in eval mode, and Lightning does not change a module's mode.
        model = copy.deepcopy(backbone).requires_grad_(True).train()
        classifier = FinetuneClassifier(
            model.to(memory_format=torch.channels_last),
            batch_size_per_device=batch_size,
            lr=learning_rate,
            feature_dim=backbone.feature_dim,
            num_classes=num_classes,
            topk=top_k(num_classes),
        )
        batches = Batches(
            train,
            test,
            augment,
            batch_size=batch_size,
            test_batch_size=batch_size,
            num_workers=(num_workers, num_workers),
            seed=seed,
            drop_single=True,
        )
        return fit_classifier(classifier, batches, epochs, device, precision, callbacks)
