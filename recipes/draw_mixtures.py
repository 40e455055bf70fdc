"""Draw the mixtures of a batch: query view, partner, weight and mixture.

    python recipes/draw_mixtures.py
    python recipes/draw_mixtures.py --data_dir cifar10-images --image_size 32

The batch is one that MoCo trains on: Lightly augments the images, MixCoCollate mixes them.
"""

from __future__ import annotations

if __name__ == "__main__":  # before the imports, which take seconds
    from mixco_lightly.training.interrupts import end_in_one_line

    end_in_one_line()

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from mixco_lightly import MixCoCollate
from mixco_lightly.data.catalogue import create_dataset, get_dataset
from mixco_lightly.data.transforms import create_pretrain_transform
from mixco_lightly.training.command_line import parse_options
from mixco_lightly.training.errors import fail_in_one_line
from mixco_lightly.training.option_types import NonNegativeInt, PositiveFloat, PositiveInt
from mixco_lightly.training.resolve import choose_dataset


@dataclass(frozen=True)
class DrawConfig:
    """Options of the picture.

    Args:
        dataset: One of digits, cifar10, cifar100, tiny-imagenet, imagefolder. Default: what is
            found in data_dir; digits if that is not given.
        data_dir: Folder of the data; not used for digits. Default: data.
        image_size: Height and width in pixels. Default: the dataset's.
        pairs: Number of mixtures to draw.
        alpha: The mixtures' weights follow Beta(alpha, alpha); 1 is uniform.
        seed: Seed of the images, the augmentations and the weights.
        output: File of the picture: PNG, SVG or PDF.
    """

    dataset: str | None = None
    data_dir: str | None = None
    image_size: PositiveInt | None = None
    pairs: PositiveInt = 8
    alpha: PositiveFloat = 1.0
    seed: NonNegativeInt = 0
    output: str = "mixtures.png"


def draw(query: Tensor, partner: Tensor, mixed: Tensor, lam: Tensor, output: Path) -> None:
    """Draws one column for each pair.

    Args:
        query: Query views, shape (M, 3, H, W), in [0, 1].
        partner: Their partners, of the same shape.
        mixed: Their mixtures, of the same shape.
        lam: Weights of the query views, shape (M,).
        output: File to write.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(1.1 * len(lam) + 0.9, 4), layout="constrained")
    rows = figure.subplots(
        4, len(lam), squeeze=False, gridspec_kw={"height_ratios": [1, 1, 0.25, 1]}
    )
    names = ["query view", "partner", "weight λ", "mixture"]
    for axes, name in zip(rows[:, 0], names, strict=True):
        axes.set_ylabel(name, rotation=0, ha="right", va="center")
    for column in range(len(lam)):
        weight = lam[column].item()
        for row, images in [(0, query), (1, partner), (3, mixed)]:
            rows[row, column].imshow(images[column].permute(1, 2, 0).numpy())
        rows[2, column].barh([0], [weight], color="tab:blue")
        rows[2, column].barh([0], [1 - weight], left=[weight], color="tab:orange")
        rows[2, column].set(xlim=(0, 1), title=f"{weight:.2f}")
        rows[2, column].title.set_fontsize(9)
    for axes in rows.flat:
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
    figure.savefig(output, dpi=100)


def main() -> None:
    """Draws the mixtures of one batch."""
    config = parse_options(DrawConfig, __doc__)
    with fail_in_one_line():
        dataset, data_dir = choose_dataset(config.dataset, config.data_dir)
        spec = get_dataset(dataset)
        image_size = config.image_size or spec.image_size
        if image_size is None:
            raise ValueError(f"{dataset} has no image size of its own: give --image_size.")
        transform = create_pretrain_transform("moco", spec.facts, image_size)
        images = create_dataset(dataset, data_dir, True, transform)
        pl.seed_everything(config.seed, verbose=False)
        loader: DataLoader[Any] = DataLoader(
            images,  # type: ignore[arg-type]
            batch_size=2 * config.pairs,
            shuffle=True,
            collate_fn=MixCoCollate(alpha=config.alpha),
        )
        (view, _), _, (mixture,) = next(iter(loader))
        mean, std = (torch.tensor(x).view(3, 1, 1) for x in (spec.facts.mean, spec.facts.std))
        query, partner, mixed = (
            (x * std + mean).clamp(0, 1)
            for x in (view[mixture.first], view[mixture.second], mixture.images)
        )
        draw(query, partner, mixed, mixture.lam, Path(config.output))
    print(f"{len(mixture.lam)} mixtures of {dataset} are in {config.output}.")


if __name__ == "__main__":
    main()
