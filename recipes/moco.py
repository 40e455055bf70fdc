"""MoCo v2 with MixCo: pretrain a timm backbone and read off its linear probe.

    python recipes/moco.py
    python recipes/moco.py --dataset cifar10 --data_dir data --backbone resnet18 --epochs 100
    python recipes/moco.py --mix_weight 0      (plain MoCo v2: the baseline, same code path)

Without options it trains on the digits images that scikit-learn embeds: a minute on two CPU cores,
linear probe 97.6% (random initialisation 90.6%), kNN 91.8% (66.4%); seed 0, last of 30 epochs, in
float32 (--precision 32-true).

For photographs, start from a measured preset:

    python recipes/moco.py --config start-moco --data_dir FOLDER
    python recipes/moco.py --config start-moco-crop-flip --data_dir FOLDER

The second is for images whose class may depend on colour or sharpness. Each preset starts with the
accuracy it reached on CIFAR-10, beside plain MoCo v2, with a narrow network on a tenth of the
images: --train_fraction 1 takes all of yours, and docs/your_images.md says what else to change.
With the package installed, `mixco-lightly moco` is the same command.
"""

from __future__ import annotations

from dataclasses import dataclass

from mixco_lightly import backbones, loss, models
from mixco_lightly.training import (
    ClosedUnitInterval,
    MixCoConfig,
    PositiveInt,
    Recipe,
    optimiser_arguments,
)


@dataclass(frozen=True)
class MoCoConfig(MixCoConfig):
    """MoCo.

    Args:
        memory_bank_size: Number of keys in the queue.
        momentum: Share of its old weights that the momentum encoder keeps in a step. Long runs use
            0.999, short ones less.
        final_momentum: Its value in the last step; it follows half a cosine. Default: momentum.
    """

    memory_bank_size: PositiveInt = 1024
    momentum: ClosedUnitInterval = 0.99
    final_momentum: ClosedUnitInterval | None = None
    output_dir: str = "runs/moco"


def create_model(backbone: backbones.Backbone, config: MoCoConfig) -> models.MoCo:
    """Wires backbone and loss."""
    criterion = loss.MixCoLoss(
        temperature=config.temperature,
        mix_temperature=config.mix_temperature,
        mix_weight=config.mix_weight,
        memory_bank_size=(config.memory_bank_size, config.projection_dim),
        gather_distributed=config.num_processes > 1,
    )
    return models.MoCo(
        backbone,
        criterion,
        momentum=config.momentum,
        final_momentum=config.final_momentum,
        **optimiser_arguments(config),
    )


def count_negatives(config: MoCoConfig) -> int:
    """The negatives of a query are the keys in the queue."""
    return config.memory_bank_size


recipe = Recipe("moco", MoCoConfig, create_model, mixed_views=(0,), count_negatives=count_negatives)

if __name__ == "__main__":
    recipe.main()
