"""Features of a frozen backbone, extracted once, and the check that two sets match."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn


class Features(NamedTuple):
    """Features of a dataset and its targets, on the CPU.

    Attributes:
        features: float32 of shape (N, D).
        targets: int64 of shape (N,).
    """

    features: Tensor
    targets: Tensor


@torch.no_grad()
def extract_features(
    backbone: nn.Module,
    dataloader: Iterable[Any],
    device: torch.device | str | None = None,
    progress: bool = False,
) -> Features:
    """Runs a frozen backbone once over a dataset.

    The backbone runs in eval mode, so neither weights nor BatchNorm statistics change. Its mode
    and device are restored afterwards.

    Args:
        backbone: Maps images (N, C, H, W) to features (N, D).
        dataloader: Yields batches that start with images and targets. Further elements, such as
            Lightly's file names, are ignored.
        device: Where to run. Default: the backbone's device.
        progress: Whether to show a progress bar.

    Returns:
        The features and targets, in the dataloader's order.

    Raises:
        ValueError: If the dataloader yields nothing.

    Examples:
        >>> import torch
        >>> from mixco_lightly import create_backbone, extract_features
        >>> backbone = create_backbone("test_resnet", image_size=32)
        >>> batches = [(torch.rand(4, 3, 32, 32), torch.tensor([0, 1, 2, 3]))]
        >>> features, targets = extract_features(backbone, batches)
        >>> features.shape == (4, backbone.feature_dim)
        True
    """
    modes = [(module, module.training) for module in backbone.modules()]
    home = next((tensor.device for tensor in backbone.parameters()), torch.device("cpu"))
    target_device = torch.device(device) if device is not None else home
    if progress:
        from rich.progress import track

        dataloader = track(dataloader, description="features", transient=True)
    features, targets = [], []
    backbone.to(target_device).eval()
    try:
        for images, target, *_ in dataloader:
            images = images.to(target_device, non_blocking=True)
            features.append(backbone(images).float().cpu())
            targets.append(torch.as_tensor(target).cpu())
    finally:
        backbone.to(home)
        for module, training in modes:
            module.training = training
    if not features:
        raise ValueError("The dataloader yielded no batch, so there are no features.")
    return Features(torch.cat(features), torch.cat(targets).long())


def check_features(train: Features, test: Features) -> int:
    """Checks that training and test features match.

    Args:
        train: Training features.
        test: Test features.

    Returns:
        The number of classes, one more than the largest target.

    Raises:
        ValueError: If a set is empty, its numbers of features and targets differ, the two sets'
            dimensions differ, a target is negative, a feature is not finite, or all training
            features are of one class.
    """
    for name, part in [("training", train), ("test", test)]:
        num_rows = len(part.targets)
        if part.features.dim() != 2 or len(part.features) != num_rows or not part.features.numel():
            raise ValueError(
                f"The {name} features must have shape (N, D) with N targets and N, D > 0, got "
                f"{tuple(part.features.shape)} and {tuple(part.targets.shape)}."
            )
        if part.targets.min() < 0:
            raise ValueError(
                f"The {name} targets must be class indices from 0, got {part.targets.min()}."
            )
        # aminmax propagates NaN; isfinite of every feature takes twenty times as long.
        if not torch.stack(part.features.aminmax()).isfinite().all():
            raise ValueError(f"The {name} features have values that are not finite.")
    if train.features.shape[1] != test.features.shape[1]:
        raise ValueError(
            f"The training features have {train.features.shape[1]} dimensions, the test "
            f"features {test.features.shape[1]}."
        )
    if train.targets.unique().numel() < 2:
        raise ValueError("The training features are all of one class.")
    return int(torch.cat([train.targets, test.targets]).max()) + 1
