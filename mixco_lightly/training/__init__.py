"""How a run goes: options, recipe, data, trainer, run folder, summary."""

from typing import TYPE_CHECKING

from mixco_lightly.lazy import lazy_exports

if TYPE_CHECKING:
    from mixco_lightly.training.option_types import (
        ClosedUnitInterval as ClosedUnitInterval,
        NonNegativeFloat as NonNegativeFloat,
        NonNegativeInt as NonNegativeInt,
        PositiveFloat as PositiveFloat,
        PositiveInt as PositiveInt,
    )
    from mixco_lightly.training.options import (
        MixCoConfig as MixCoConfig,
        OptimiserDefaults as OptimiserDefaults,
        PretrainConfig as PretrainConfig,
        optimiser_arguments as optimiser_arguments,
    )
    from mixco_lightly.training.pretraining import pretrain as pretrain
    from mixco_lightly.training.recipe import Recipe as Recipe, load_recipe as load_recipe

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    option_types=("ClosedUnitInterval NonNegativeFloat NonNegativeInt PositiveFloat PositiveInt"),
    options="MixCoConfig OptimiserDefaults PretrainConfig optimiser_arguments",
    pretraining="pretrain",
    recipe="Recipe load_recipe",
)
