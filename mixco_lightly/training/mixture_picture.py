"""Draws mixtures of a batch as a run would train on them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from mixco_lightly.data.catalogue import create_dataset, get_dataset
from mixco_lightly.data.collate import MixCoCollate
from mixco_lightly.data.transforms import create_pretrain_transform


class PicturedMixtures(NamedTuple):
    """Mixtures and what they were mixed from, in [0, 1].

    Attributes:
        query: Query views, shape (M, 3, H, W).
        partner: Their partners, of the same shape.
        mixed: Their mixtures, of the same shape.
        lam: Weights of the query views, shape (M,).
    """

    query: Tensor
    partner: Tensor
    mixed: Tensor
    lam: Tensor


def load_mixtures(
    dataset: str, data_dir: str, image_size: int | None, pairs: int, alpha: float, seed: int
) -> PicturedMixtures:
    """Loads a batch as MoCo trains on it.

    Args:
        dataset: The dataset's name.
        data_dir: Folder of the data.
        image_size: Height and width in pixels. Default: the dataset's.
        pairs: Number of mixtures.
        alpha: Their weights follow Beta(alpha, alpha).
        seed: Seed of the images, the augmentations and the weights.

    Raises:
        ValueError: If the dataset has no image size of its own and none is given.
        OSError: If data is missing.
    """
    spec = get_dataset(dataset)
    image_size = image_size or spec.image_size
    if image_size is None:
        raise ValueError(f"{dataset} has no image size of its own: give --image_size.")
    transform = create_pretrain_transform("moco", spec.facts, image_size)
    images = create_dataset(dataset, data_dir, True, transform)
    pl.seed_everything(seed, verbose=False)
    loader: DataLoader[Any] = DataLoader(
        images,  # type: ignore[arg-type]
        batch_size=2 * pairs,
        shuffle=True,
        collate_fn=MixCoCollate(alpha=alpha),
    )
    (view, _), _, (mixture,) = next(iter(loader))
    mean, std = (torch.tensor(x).view(3, 1, 1) for x in (spec.facts.mean, spec.facts.std))
    query, partner, mixed = (
        (x * std + mean).clamp(0, 1)
        for x in (view[mixture.first], view[mixture.second], mixture.images)
    )
    return PicturedMixtures(query, partner, mixed, mixture.lam)


def draw_mixtures(pictured: PicturedMixtures, output: Path) -> None:
    """Draws one column for each pair.

    Args:
        pictured: The mixtures.
        output: File to write: PNG, SVG or PDF.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(1.1 * len(pictured.lam) + 0.9, 4), layout="constrained")
    rows = figure.subplots(
        4, len(pictured.lam), squeeze=False, gridspec_kw={"height_ratios": [1, 1, 0.25, 1]}
    )
    names = ["query view", "partner", "weight λ", "mixture"]
    for axes, name in zip(rows[:, 0], names, strict=True):
        axes.set_ylabel(name, rotation=0, ha="right", va="center")
    for column in range(len(pictured.lam)):
        weight = pictured.lam[column].item()
        for row, images in [(0, pictured.query), (1, pictured.partner), (3, pictured.mixed)]:
            rows[row, column].imshow(images[column].permute(1, 2, 0).numpy())
        rows[2, column].barh([0], [weight], color="tab:blue")
        rows[2, column].barh([0], [1 - weight], left=[weight], color="tab:orange")
        rows[2, column].set(xlim=(0, 1), title=f"{weight:.2f}")
        rows[2, column].title.set_fontsize(9)
    for axes in rows.flat:
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
    figure.savefig(output, dpi=100)
