"""Draw the mixtures of a batch: query views, partners, and for each mixing weights and mixtures.

    python recipes/draw_mixtures.py
    python recipes/draw_mixtures.py --mixing cutmix --data_dir cifar10-images --image_size 32

The batch is one that MoCo trains on: Lightly augments the images, a Mixer mixes them.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from mixco_lightly.data.mixing_names import MixingName
from mixco_lightly.training.command_line import parse_options
from mixco_lightly.training.errors import fail_in_one_line
from mixco_lightly.training.interrupts import end_in_one_line
from mixco_lightly.training.option_types import NonNegativeInt, PositiveFloat, PositiveInt


@dataclass(frozen=True)
class DrawConfig:
    """Options of the picture.

    Args:
        dataset: A dataset's name, as for a recipe. Default: what is found in data_dir; digits if
            that is not given.
        data_dir: Folder of the data; not used for digits. Default: data.
        image_size: Height and width in pixels. Default: the dataset's.
        mixing: The mixing to draw: mixup, weighted sums; cutmix, a box of the partner; mask, blocks
            of the query view; mixup-or-cutmix, one of the two for the batch. Default: all of them.
        pairs: Number of mixtures to draw.
        alpha: The mixtures' weights follow Beta(alpha, alpha); 1 is uniform.
        seed: Seed of the images, the augmentations and the weights.
        output: File of the picture: PNG, SVG or PDF.
    """

    dataset: str | None = None
    data_dir: str | None = None
    image_size: PositiveInt | None = None
    mixing: MixingName | None = None
    pairs: PositiveInt = 8
    alpha: PositiveFloat = 1.0
    seed: NonNegativeInt = 0
    output: str = "mixtures.png"


def main() -> None:
    """Draws the mixtures of one batch."""
    end_in_one_line()
    config = parse_options(DrawConfig, __doc__)
    from mixco_lightly.training.mixture_picture import draw_mixtures, load_mixtures
    from mixco_lightly.training.resolve import choose_dataset

    with fail_in_one_line():
        dataset, data_dir = choose_dataset(config.dataset, config.data_dir)
        pictured = load_mixtures(
            dataset,
            data_dir,
            config.image_size,
            [config.mixing] if config.mixing else get_args(MixingName),
            config.pairs,
            config.alpha,
            config.seed,
        )
        draw_mixtures(pictured, Path(config.output))
    mixings = ", ".join(pictured.mixtures)
    print(f"{config.pairs} mixtures of {dataset} are in {config.output}: {mixings}.")


if __name__ == "__main__":
    main()
