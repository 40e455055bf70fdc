"""What is trained, its Lightning side: LightningModules that wire backbone, head and loss."""

from typing import TYPE_CHECKING

from mixco_lightly.lazy import lazy_exports

if TYPE_CHECKING:
    from mixco_lightly.models.moco import MoCo as MoCo
    from mixco_lightly.models.selfcon import (
        SelfCon as SelfCon,
        SelfConClassifier as SelfConClassifier,
    )
    from mixco_lightly.models.simclr import SimCLR as SimCLR

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    moco="MoCo",
    selfcon="SelfCon SelfConClassifier",
    simclr="SimCLR",
)
