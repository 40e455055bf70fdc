"""Draws mixtures of a batch as a run would train on them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from mixco_lightly.data.catalogue import create_dataset, get_dataset
from mixco_lightly.data.mixers import Mixer
from mixco_lightly.data.mixing import pair_halves
from mixco_lightly.data.mixing_names import MixingName
from mixco_lightly.data.mixture import Mixture
from mixco_lightly.data.transforms import create_pretrain_transform


class PicturedMixtures(NamedTuple):
    """Mixtures of one batch and what they were mixed from, in [0, 1].

    Attributes:
        query: Query views, shape (M, 3, H, W).
        partner: Their partners, of the same shape.
        mixtures: Their mixtures by each mixing.
    """

    query: Tensor
    partner: Tensor
    mixtures: dict[MixingName, Mixture]


def load_mixtures(
    dataset: str,
    data_dir: str,
    image_size: int | None,
    mixings: Sequence[MixingName],
    pairs: int,
    alpha: float,
    seed: int,
) -> PicturedMixtures:
    """Loads a batch as MoCo trains on it, and mixes its halves.

    Args:
        dataset: The dataset's name.
        data_dir: Folder of the data.
        image_size: Height and width in pixels. Default: the dataset's.
        mixings: The mixings, each with weights of its own.
        pairs: Number of mixtures by each mixing.
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
    )
    (view, _), _ = next(iter(loader))
    mean, std = (torch.tensor(x).view(3, 1, 1) for x in (spec.facts.mean, spec.facts.std))

    def show(images: Tensor) -> Tensor:
        return (images * std + mean).clamp(0, 1)

    mixtures = {}
    for mixing in mixings:
        mixture = Mixer.mixco(mixing, alpha)(view)
        mixtures[mixing] = mixture._replace(images=show(mixture.images))
    first, second = pair_halves(len(view))
    return PicturedMixtures(show(view[first]), show(view[second]), mixtures)


def draw_mixtures(pictured: PicturedMixtures, output: Path) -> None:
    """Draws one column for each pair, and two rows for each mixing: weights and mixtures.

    Args:
        pictured: The mixtures.
        output: File to write: PNG, SVG or PDF.
    """
    from matplotlib.figure import Figure

    pairs, count = len(pictured.query), len(pictured.mixtures)
    figure = Figure(figsize=(1.1 * pairs + 0.9, 2 + 2 * count), layout="constrained")
    heights = [1, 1] + [0.25, 1] * count
    rows = figure.subplots(
        len(heights), pairs, squeeze=False, gridspec_kw={"height_ratios": heights}
    )
    _draw_images(rows[0], "query view", pictured.query)
    _draw_images(rows[1], "partner", pictured.partner)
    for at, (mixing, mixture) in enumerate(pictured.mixtures.items()):
        _draw_weights(rows[2 + 2 * at], mixture.lam)
        _draw_images(rows[3 + 2 * at], mixing, mixture.images)
    for axes in rows.flat:
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
    figure.savefig(output, dpi=100)


def _draw_images(axes: Any, name: str, images: Tensor) -> None:
    _name_row(axes, name)
    for column, image in zip(axes, images, strict=True):
        column.imshow(image.permute(1, 2, 0).numpy())


def _draw_weights(axes: Any, lam: Tensor) -> None:
    _name_row(axes, "weight λ")
    for column, weight in zip(axes, lam.tolist(), strict=True):
        column.barh([0], [weight], color="tab:blue")
        column.barh([0], [1 - weight], left=[weight], color="tab:orange")
        column.set(xlim=(0, 1), title=f"{weight:.2f}")
        column.title.set_fontsize(9)


def _name_row(axes: Any, name: str) -> None:
    axes[0].set_ylabel(name, rotation=0, ha="right", va="center")
