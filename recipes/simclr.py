"""SimCLR with MixCo: pretrain a timm backbone and read off its linear probe.

    python recipes/simclr.py
    python recipes/simclr.py --dataset cifar10 --data_dir data --backbone resnet18 --epochs 100
    python recipes/simclr.py --mix_weight 0    (plain SimCLR: the baseline, same code path)

Without options it trains on the digits images that scikit-learn embeds: 1.5 minutes on two CPU
cores, linear probe 97.1% (random initialisation 90.6%), kNN 93.5% (66.4%); seed 0, last of 30
epochs, in float32 (--precision 32-true).

For photographs, start from a measured preset:

    python recipes/simclr.py --config start-simclr --data_dir FOLDER
    python recipes/simclr.py --config start-simclr-crop-flip --data_dir FOLDER

The second is for images whose class may depend on colour or sharpness. Each preset starts with the
accuracy it reached on CIFAR-10, beside plain SimCLR, with a narrow network on a tenth of the
images: --train_fraction 1 takes all of yours, and docs/your_images.md says what else to change.
With the package installed, `mixco-lightly simclr` is the same command.
"""

from __future__ import annotations

from dataclasses import dataclass

from mixco_lightly import backbones, loss, models
from mixco_lightly.training import (
    MixCoConfig,
    NonNegativeInt,
    OptimiserDefaults,
    PositiveFloat,
    Recipe,
    optimiser_arguments,
)


@dataclass(frozen=True)
class SimCLRConfig(MixCoConfig):
    """SimCLR.

    Args:
        chunk_size: Most images that the network keeps activations of, for large batches on little
            memory; the step takes up to 4/3 of the time. BatchNorm then has each chunk's
            statistics. 0 for all images.
    """

    sgd_defaults = OptimiserDefaults(0.1, 5e-4)

    temperature: PositiveFloat = 0.5
    mix_temperature: PositiveFloat = 0.5
    chunk_size: NonNegativeInt = 0
    output_dir: str = "runs/simclr"


def create_model(backbone: backbones.Backbone, config: SimCLRConfig) -> models.SimCLR:
    """Wires backbone and loss."""
    criterion = loss.MixCoLoss(
        temperature=config.temperature,
        mix_temperature=config.mix_temperature,
        mix_weight=config.mix_weight,
        gather_distributed=config.num_processes > 1,
    )
    return models.SimCLR(
        backbone,
        criterion,
        projection_dim=config.projection_dim,
        chunk_size=config.chunk_size,
        **optimiser_arguments(config),
    )


def count_negatives(config: SimCLRConfig) -> int:
    """The negatives of a view are both views of the other images on all devices."""
    return 2 * (config.batch_size * config.num_processes - 1)


recipe = Recipe(
    "simclr", SimCLRConfig, create_model, mixed_views=(0, 1), count_negatives=count_negatives
)

if __name__ == "__main__":
    recipe.main()
