"""How a run goes: options, data, trainer, run folder."""

from typing import TYPE_CHECKING

from mixco_lightly.lazy import lazy_exports

if TYPE_CHECKING:
    from mixco_lightly.training.pretraining import (
        PretrainConfig as PretrainConfig,
        pretrain as pretrain,
    )

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    pretraining="PretrainConfig pretrain",
)
